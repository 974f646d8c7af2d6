"""The panels without a browser: what controls stand for, what is shown, and that nothing is stale or left running."""

import asyncio
import gc
import io
import json
import linecache
import random
import re
import struct
import threading
import weakref
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import psutil
import pytest
import torch
from ipywidgets.widgets.widget import _instances
from PIL import Image

from spherear import VAE
from spherear.live import (
    GuidanceExplorer,
    PerturbationExplorer,
    SphereExplorer,
    TokenExplorer,
    TrainingMonitor,
    reconstructions,
    samples,
)
from spherear.live.figure import live_figure
from spherear.live.picture import Picture, png_bytes, read_picture, sheet
from spherear.models.presets import preset
from spherear.registry import Table
from spherear.sampling.pipeline import cached_pipeline
from spherear.sampling.settings import NAMED_SETTINGS, SCHEDULES, SamplingSettings
from spherear.sampling.solvers import SOLVERS
from spherear.train import train_ar, train_vae
from spherear.training.data.catalog import load_data
from spherear.training.recipes import recipes
from spherear.training.run import TrainState
from tests.conftest import as_the_panel_runs, until


def settled(panel):
    assert panel.runner.wait(120)
    assert panel.error_box.value == ""
    assert panel.runner.errors == []
    return panel


def pixels(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def expected_sheets(picture):
    """By the other path: each model sampled at once."""
    for name in picture.models:
        images = as_the_panel_runs(name).sample(list(picture.labels), picture.settings, seeds=picture.seed)
        yield sheet(images, picture.columns, picture.zoom)


@pytest.fixture
def guidance():
    panel = GuidanceExplorer(images=4, seed=5, label=3, preset="digits", guidance_scale=3.0, settings="fast")
    yield panel
    panel.close()
    assert not any(thread.name == "spherear-live" for thread in threading.enumerate())


def shows_what_its_controls_say(panel):
    picture = panel.read().picture
    for side, expected in zip(panel.model_columns, expected_sheets(picture), strict=False):
        np.testing.assert_array_equal(side.pixels, expected)
        if not panel.overlay.value:
            np.testing.assert_array_equal(pixels(side.image.value), expected[:: picture.zoom, :: picture.zoom])
    assert f"guidance {picture.settings.guidance_scale:g}," in panel.status.value
    return True


def test_the_picture_is_that_of_the_controls(guidance):
    settled(guidance)
    assert shows_what_its_controls_say(guidance)
    guidance.scale.value, guidance.label.value, guidance.schedule.value = 7.5, "one of each", "constant"
    guidance.project.value, guidance.temperature.value = False, 0.7
    settled(guidance)
    assert guidance.read().picture.labels == tuple(range(10))
    assert guidance.read().picture.settings == replace(
        SamplingSettings.named("fast"), guidance_scale=7.5, schedule="constant", project=False, temperature=0.7
    )
    assert shows_what_its_controls_say(guidance)


def test_a_schedule_of_ones_own_is_in_the_menu_and_live(guidance, as_users_do):
    settled(guidance)

    def late(scale, index, tokens):
        return scale if 2 * index >= tokens else 1.0

    try:
        SCHEDULES.register(late)
        assert (guidance.schedule.value, guidance.schedule.options[-1]) == ("linear", "late")
        guidance.schedule.value = "late"
        settled(guidance)
        assert shows_what_its_controls_say(guidance)
        before = guidance.model_columns[0].pixels.copy()
        SCHEDULES.register(lambda scale: scale + 3.0, "late")  # the cell, edited and run again
        settled(guidance)
        assert guidance.schedule.value == "late"
        assert shows_what_its_controls_say(guidance)
        assert (guidance.model_columns[0].pixels != before).any()
    finally:
        del SCHEDULES["late"]


CELL = """
@SCHEDULES.register
def late(scale, index, tokens):
    return scale if 2 * index >= tokens else 1.0
"""


@pytest.mark.parametrize("cell", [CELL, CELL.replace("@SCHEDULES.register\n", "") + "SCHEDULES.register(late)\n"])
def test_the_code_defines_a_schedule_of_ones_own(cell, tmp_path, monkeypatch, as_users_do):
    """As a cell of a notebook defines it: IPython gives the source of a cell to linecache."""
    monkeypatch.chdir(tmp_path)
    lines = cell.splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, "<cell>", (len(cell), None, lines, "<cell>"))
    defined = {"__name__": "__main__", "SCHEDULES": SCHEDULES}
    try:
        exec(compile(cell, "<cell>", "exec"), defined)
        settings = SamplingSettings(3.0, schedule="late", solver="euler", steps=2)
        picture = Picture(("digits-power_spherical",), (1, 2), 4, settings, 2, 1)
        code = picture.code()
        (expected,) = expected_sheets(picture)
        del SCHEDULES["late"], SCHEDULES.modules["late"]  # another process
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
        np.testing.assert_array_equal(pixels(Path("picture-1.png").read_bytes()), expected)
        assert code.count("SCHEDULES.register") == 1
        SCHEDULES.modules["late"] = "my_parts"
        assert "import my_parts  # registers late" in picture.code()
    finally:
        SCHEDULES.pop("late", None)
        SCHEDULES.modules.pop("late", None)


def test_a_closed_table_watches_no_longer(as_users_do):
    """The table holds no panel alive."""
    table = Table({}, lambda function: function)

    class Watcher:
        def __init__(self):
            self.seen = []

        def see(self, name):
            self.seen.append(name)

    watcher = Watcher()
    table.watch(watcher.see)
    table.register(abs)
    assert watcher.seen == ["abs"]
    gone = weakref.ref(watcher)
    del watcher
    gc.collect()
    assert gone() is None
    table.register(abs)
    assert table.watchers == []


def test_lengths_stay_at_r_on_the_sphere_and_leave_it_elsewhere(guidance):
    guidance.scale.value = 12.0
    settled(guidance)
    spherical, gaussian = (side.norms.value for side in guidance.model_columns)
    radius = cached_pipeline("digits-power_spherical").vae.bottleneck.radius
    assert f"handed on: {radius:.3f} to {radius:.3f} " in spherical
    least, most = (float(x) for x in gaussian.split("handed on: ")[1].split(" ·")[0].split(" to "))
    assert most > 1.3 * radius
    assert least < 0.8 * radius
    token = guidance.model_columns[0].trace.data[3].y
    np.testing.assert_allclose(token, radius, rtol=1e-5)


def test_thirty_quick_moves_take_at_most_three_decodes(guidance):
    settled(guidance)
    before = guidance.runner.started
    for move in range(30):
        guidance.scale.value = 1.0 + move / 10
    settled(guidance)
    assert guidance.runner.started - before <= 3
    assert guidance.read().picture.settings.guidance_scale == 3.9
    assert shows_what_its_controls_say(guidance)


def test_a_slider_that_means_the_same_draws_nothing_again(guidance):
    """As a page does when it shows one: 2 comes back as 1.9999999999999998."""
    started = settled(guidance).runner.started
    guidance.scale.value = np.nextafter(guidance.scale.value, 0)
    assert settled(guidance).runner.started == started
    guidance.scale.value += 0.1
    assert settled(guidance).runner.started == started + 1


def test_a_page_that_opens_later_sees_the_figures_as_they_are(guidance):
    """After a reload, or by Voila, a page asks for the whole state of what exists."""
    settled(guidance)
    side = guidance.model_columns[0]
    seen = side.trace.get_state()["_widget_data"]
    assert seen[4]["name"] == "R = 1.73"
    mean = np.frombuffer(seen[2]["y"]["buffer"], seen[2]["y"]["dtype"])
    raw, _ = guidance._last[1][0].lengths()
    np.testing.assert_array_equal(mean, raw.mean(0).numpy())


def test_stop_leaves_the_partial_picture(guidance):
    settled(guidance)
    guidance.steps.value = 100
    until(lambda: "drawing" in guidance.status.value)
    guidance.stop_button.click()
    settled(guidance)
    assert "stopped" in guidance.status.value
    drawn = int(guidance.status.value.split("token ")[1].split(" of")[0])
    assert 0 < drawn < 16
    tokens = list(as_the_panel_runs("digits-power_spherical").steps([3] * 4, guidance.read().picture.settings, 5))
    partial = torch.stack([step.token for step in tokens], dim=1)
    partial[:, drawn:] = 0
    images = cached_pipeline("digits-power_spherical").images(partial)
    mask = (torch.arange(16) < drawn).float().view(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1)
    picture = guidance.read().picture
    np.testing.assert_array_equal(guidance.model_columns[0].pixels, sheet(images * mask, picture.columns, picture.zoom))
    with pytest.raises(ValueError, match="it was stopped"):
        guidance.snapshot()


def test_the_picture_is_that_of_torch_but_for_rounding(guidance):
    settled(guidance)
    picture = guidance.read().picture
    for name, side in zip(picture.models, guidance.model_columns, strict=True):
        images = cached_pipeline(name).sample(list(picture.labels), picture.settings, seeds=picture.seed)
        off = np.abs(side.pixels.astype(int) - sheet(images, picture.columns, picture.zoom).astype(int))
        assert off.max() <= 1  # of 255
        assert (off > 0).mean() < 0.01


def test_the_code_draws_exactly_the_picture(guidance, tmp_path, monkeypatch):
    guidance.scale.value = 6.3
    settled(guidance)
    guidance.copy_code.click()
    monkeypatch.chdir(tmp_path)
    exec(guidance.code.value, {})
    for number, side in enumerate(guidance.model_columns, 1):
        saved = pixels((tmp_path / f"picture-{number}.png").read_bytes())
        np.testing.assert_array_equal(saved, side.pixels)


def test_a_saved_png_holds_the_settings_and_sets_them_again(guidance, tmp_path):
    guidance.scale.value, guidance.solver.value, guidance.steps.value = 5.5, "euler", 7
    guidance.label.value, guidance.file.value, guidance.folder = 8, "mine.png", tmp_path
    settled(guidance)
    assert guidance.named.value == "by hand"
    for _ in range(2):
        guidance.save_png.click()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine-2.png", "mine.png"]  # nothing is overwritten
    png = (tmp_path / "mine.png").read_bytes()
    picture = guidance.read().picture
    assert read_picture(png) == picture
    np.testing.assert_array_equal(pixels(png), np.concatenate(list(expected_sheets(picture)), axis=1))
    guidance.scale.value, guidance.label.value, guidance.compare.value = 1.0, "one of each", "nothing"
    guidance.named.value = "balanced"
    settled(guidance)
    assert guidance.read().picture != picture
    for _ in range(2):  # the same file a second time, too
        guidance.scale.value = 2.0
        upload(guidance, png)
        settled(guidance)
        assert guidance.read().picture == picture
        assert shows_what_its_controls_say(guidance)
    assert guidance.upload.value == ()


@pytest.mark.parametrize(("name", "file"), [("mine", "mine.png"), ("a.b", "a.b.png"), ("Mine.PNG", "Mine.PNG")])
def test_a_file_name_gets_its_ending(guidance, tmp_path, name, file):
    guidance.folder, guidance.file.value = tmp_path, name
    settled(guidance)
    guidance.save_png.click()
    assert [path.name for path in tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("name", ["", "..", "sub/mine.png", "/tmp/mine.png", "../mine.png", "sub\\mine.png"])
def test_a_picture_is_saved_in_its_folder_alone(guidance, tmp_path, name):
    guidance.folder, guidance.file.value = tmp_path, name
    settled(guidance)
    guidance.save_png.click()
    assert "expected a name without folders" in guidance.error_box.value
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_picture_is_not_saved(guidance, tmp_path):
    settled(guidance)
    guidance.folder, guidance.steps.value = tmp_path, 100
    guidance.save_png.click()
    assert "still being drawn; expected it to be done" in guidance.error_box.value
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_picture_is_saved_as_far_as_it_was_drawn(guidance, tmp_path):
    settled(guidance)
    guidance.folder, guidance.steps.value = tmp_path, 100
    until(lambda: "drawing" in guidance.status.value)
    guidance.stop_button.click()
    settled(guidance)
    drawn = int(guidance.status.value.split("token ")[1].split(" of")[0])
    guidance.save_png.click()
    (path,) = tmp_path.iterdir()
    np.testing.assert_array_equal(
        pixels(path.read_bytes()), np.concatenate([side.pixels for side in guidance.model_columns], axis=1)
    )
    saved = read_picture(path.read_bytes())
    assert saved == replace(guidance.read().picture, drawn=drawn)
    assert f"after token {drawn} of 16" in guidance.sentence.value


def test_what_a_button_complains_of_ends_with_its_next_success(guidance, tmp_path):
    """And it is no error of the picture."""
    settled(guidance)
    guidance.folder, guidance.file.value = tmp_path, "sub/mine.png"
    guidance.save_png.click()
    assert "expected a name without folders" in guidance.error_box.value
    assert guidance.snapshot().data.startswith(b"\x89PNG")
    guidance.file.value = "mine.png"
    guidance.save_png.click()
    assert guidance.error_box.value == ""
    assert (tmp_path / "mine.png").exists()


def test_an_error_of_the_picture_outlives_a_button(guidance):
    settled(guidance)
    guidance.draw = lambda request, cancellation: guidance.no_such_thing
    guidance.runner._work = guidance.draw
    guidance.steps.value = 3
    assert guidance.runner.wait(60)
    assert "no_such_thing" in guidance.error_box.value
    guidance.copy_code.click()
    assert "no_such_thing" in guidance.error_box.value
    with pytest.raises(AttributeError, match="no_such_thing"):
        guidance.snapshot()


def test_stop_leaves_a_finished_picture_that_is_asked_for_again(guidance):
    settled(guidance)
    before, status = guidance.model_columns[0].pixels, guidance.status.value
    guidance.overlay.value = True
    guidance.stop_button.click()
    settled(guidance)
    np.testing.assert_array_equal(guidance.model_columns[0].pixels, before)
    assert guidance.status.value == status
    assert guidance.snapshot().data.startswith(b"\x89PNG")


def test_an_error_stays_until_the_next_request(guidance):
    """A drawing that ends meanwhile does not take it away."""
    settled(guidance)
    guidance.steps.value = 20
    upload(guidance, b"no picture at all")
    assert guidance.runner.wait(60)
    assert "expected a PNG that a panel saved" in guidance.error_box.value
    guidance.steps.value = 2
    assert guidance.error_box.value == ""


def test_after_controls_that_stand_for_nothing_the_old_ones_draw_again(guidance, monkeypatch):
    started = settled(guidance).runner.started

    def unreadable():
        raise ValueError("no such model")

    with monkeypatch.context() as patch:
        patch.setattr(guidance, "read", unreadable)
        guidance.steps.value = 7
        assert "no such model" in guidance.error_box.value
        guidance.steps.value = 6
    guidance.changed({"owner": guidance.steps, "new": 6})
    assert guidance.runner.wait(60)
    assert guidance.error_box.value == ""
    assert guidance.runner.started == started + 1


def test_what_was_stopped_can_be_asked_for_again(guidance):
    settled(guidance)
    guidance.steps.value = 100
    guidance.stop_button.click()
    assert guidance.runner.wait(60)
    guidance.changed({"owner": guidance.steps, "new": 100})
    settled(guidance)
    assert shows_what_its_controls_say(guidance)


def test_a_cell_may_await_what_is_drawn(guidance):
    guidance.scale.value = 7.0
    asyncio.run(guidance.finished())
    assert guidance.runner.idle
    assert guidance._last[0].settings.guidance_scale == 7.0


def test_callbacks_may_arrive_on_a_second_thread(guidance):
    """As subshells of the kernel bring them, while a cell runs on the first."""
    settled(guidance)
    both = threading.Barrier(2)

    def move(values):
        for value in values:
            both.wait(60)
            guidance.scale.value = value

    other = threading.Thread(target=move, args=(np.linspace(1, 6, 50),))
    other.start()
    for _ in range(50):
        both.wait(60)
        guidance.overlay.value = not guidance.overlay.value
    other.join()
    settled(guidance)
    assert guidance.read().picture.settings.guidance_scale == 6.0
    assert shows_what_its_controls_say(guidance)


def upload(panel, content):
    """As the browser's file dialogue does."""
    file = {"name": "mine.png", "type": "image/png", "size": len(content), "content": content, "last_modified": 0}
    panel.upload.set_state({"value": [{**file, "content": memoryview(content)}]})


def enormous():
    """A PNG that says it has 65,536 pixels a side."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 65536, 65536, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture at all", "expected a PNG that a panel saved"),
        (png_bytes(np.zeros((4, 4, 3), np.uint8)), "no settings inside"),
        (enormous(), "expected a PNG that a panel saved"),
    ],
)
def test_a_foreign_file_is_an_error_in_the_panel_and_changes_nothing(guidance, content, message):
    settled(guidance)
    before = guidance.read()
    upload(guidance, content)
    assert message in guidance.error_box.value
    assert 'role="alert"' in guidance.error_box.value
    assert guidance.read() == before
    assert message in str(guidance.runner.errors[-1])
    guidance.scale.value = 2.0  # and goes on
    assert guidance.runner.wait(60)
    assert guidance.error_box.value == ""
    assert shows_what_its_controls_say(guidance)


def test_settings_of_a_picture_that_the_panel_cannot_show_are_refused(guidance):
    settled(guidance)
    before = guidance.read()
    strange = replace(before.picture, labels=(1, 2, 3))
    with pytest.raises(ValueError, match="expected one class, or each once"):
        guidance.take(strange)
    assert guidance.read() == before
    settings = before.picture.settings
    for part, message in (
        ({"settings": replace(settings, guidance_scale=25.0)}, "guidance is 25.0; expected 0 to 20"),
        ({"settings": replace(settings, steps=500)}, "solver steps is 500; expected 1 to 100"),
        ({"settings": replace(settings, temperature=3.0)}, "temperature is 3.0; expected 0 to 2"),
        ({"seed": 2**40}, "seed is 1099511627776"),
    ):
        with pytest.raises(ValueError, match=message):
            guidance.take(replace(before.picture, **part))
        assert guidance.read() == before


def test_facts_that_are_no_picture_are_refused():
    picture = Picture(("digits-gaussian",), (1,), 0, SamplingSettings(), 1)
    assert Picture.from_dict(json.loads(json.dumps(picture.to_dict()))) == picture
    for change, message in (
        ({"settings": 3}, "expected a JSON object"),
        ({"labels": []}, "expected some"),
        ({"unknown": 1}, "no field"),
    ):
        with pytest.raises(ValueError, match=message):
            Picture.from_dict({**picture.to_dict(), **change})
    with pytest.raises(ValueError, match="lacks"):
        Picture.from_dict({"models": ["x"]})


def test_an_unlocked_seed_moves_with_everything_else(guidance):
    guidance.lock.value = False
    guidance.scale.value = 4.0
    settled(guidance)
    assert guidance.seed.value != 5
    assert shows_what_its_controls_say(guidance)
    kept = guidance.seed.value
    guidance.lock.value = True
    guidance.scale.value = 4.5
    assert guidance.seed.value == kept
    guidance.dice.click()
    assert guidance.seed.value != kept


def test_named_settings_and_their_parts_follow_each_other(guidance):
    for name, row in NAMED_SETTINGS.items():
        guidance.named.value = name
        settings = guidance.read().picture.settings
        assert settings == replace(row, guidance_scale=3.0)
    guidance.named.value = "fast"
    guidance.steps.value += 1
    assert guidance.named.value == "by hand"
    guidance.steps.value -= 1
    assert guidance.named.value == "fast"


def test_lengths_over_the_images_draw_nothing_again(guidance):
    settled(guidance)
    plain, decodes = guidance.model_columns[0].image.value, guidance.status.value
    guidance.overlay.value = True
    settled(guidance)
    assert guidance.status.value == decodes  # no new picture was drawn
    assert guidance.model_columns[0].image.value != plain
    guidance.overlay.value = False
    settled(guidance)
    assert guidance.model_columns[0].image.value == plain


def fuzz(panel, moves, rng):
    """One random move of one control."""
    move = rng.choice(moves)
    move(panel, rng)


SAVED = png_bytes(
    np.zeros((4, 4, 3), np.uint8),
    Picture(("digits-gaussian", "digits-vq"), (7,) * 4, 3, SamplingSettings.named("fast", guidance_scale=4.0), 2),
)
MOVES = [
    lambda p, r: setattr(p.scale, "value", r.uniform(0, 15)),
    lambda p, r: setattr(p.scale, "value", r.uniform(0, 15)),
    lambda p, r: setattr(p.scale_number, "value", round(r.uniform(0, 15), 1)),
    lambda p, r: setattr(p.label, "value", r.choice([*range(10), "one of each"])),
    lambda p, r: setattr(p.family, "value", r.choice([v for _, v in p.family.options])),
    lambda p, r: setattr(p.compare, "value", r.choice(["nothing", *(v for _, v in p.family.options)])),
    lambda p, r: setattr(p.schedule, "value", r.choice(list(SCHEDULES))),
    lambda p, r: setattr(p.solver, "value", r.choice(list(SOLVERS))),
    lambda p, r: setattr(p.steps, "value", r.randint(1, 6)),
    lambda p, r: setattr(p.named, "value", "fast"),
    lambda p, r: setattr(p.temperature, "value", r.uniform(0, 2)),
    lambda p, r: setattr(p.project, "value", r.random() < 0.5),
    lambda p, r: setattr(p.overlay, "value", r.random() < 0.5),
    lambda p, r: setattr(p.lock, "value", r.random() < 0.8),
    lambda p, r: setattr(p.seed, "value", r.randint(0, 1000)),
    lambda p, r: p.dice.click(),
    lambda p, r: p.stop_button.click(),
    lambda p, r: p.copy_code.click(),
    lambda p, r: upload(p, SAVED),
    lambda p, r: p.runner.wait(r.uniform(0, 0.15)),
]


@pytest.mark.slow
def test_a_thousand_random_events(guidance):
    """No exception, no stale picture at any rest, no thread left, memory flat."""
    rng, process = random.Random(20), psutil.Process()
    threads = threading.active_count()
    memory = []
    for event in range(1000):
        fuzz(guidance, MOVES, rng)
        if event % 100 == 99:
            guidance.scale.value = event / 100  # a last move, after which the picture is that of the controls
            settled(guidance)
            assert shows_what_its_controls_say(guidance)
            memory.append(process.memory_info().rss)
    assert threading.active_count() <= threads
    warm = memory[2:]  # what libraries keep is there after the first few hundred
    assert max(warm) < 1.05 * min(warm), [m >> 20 for m in memory]


def test_the_sphere_explorer_shows_its_laws():
    panel = settled(SphereExplorer(5.0, samples=50))
    before = np.array(panel.spheres.data[0].intensity), np.array(panel.spheres.data[3].x)
    assert "kappa = 5," in panel.numbers.value
    panel.concentration.value = 100.0
    settled(panel)
    assert "kappa = 100," in panel.numbers.value
    assert not np.array_equal(before[0], panel.spheres.data[0].intensity)
    z = np.array(panel.spheres.data[3].z) / 1.02
    assert z.mean() == pytest.approx(100 / 102, abs=0.02)
    area = np.trapezoid(panel.density.data[0].y, np.deg2rad(panel.density.data[0].x))
    assert area == pytest.approx(1, abs=1e-2)
    panel.turn.value = 90
    assert panel.spheres.layout.scene.camera.eye.x == pytest.approx(1.7)
    assert panel.snapshot().data.startswith(b"\x89PNG")
    panel.close()


def test_the_token_explorer_shows_a_decodes_token():
    panel = settled(TokenExplorer("power_spherical", label=4, position=9, seed=3, guidance_scale=6.0))
    settings = panel.read().settings
    step = list(cached_pipeline("digits3-power_spherical").steps([4], settings, 3))[9]
    path = panel.space.data[1]
    end = np.array([path.x[-1], path.y[-1], path.z[-1]])
    np.testing.assert_allclose(end, step.raw[0], atol=1e-5)
    placed = panel.space.data[3]
    np.testing.assert_allclose([placed.x[-1], placed.y[-1], placed.z[-1]], step.token[0], atol=1e-5)
    drawn = panel._path[1]
    for shown in (7, 2):
        panel.step.value = shown
        settled(panel)
        starts = np.array([[arrow.x[0], arrow.y[0], arrow.z[0]] for arrow in panel.space.data[5:8]])
        np.testing.assert_allclose(starts, drawn.points[[shown - 1] * 3], atol=1e-6)
    assert panel._path[1] is drawn  # the path is not computed again
    panel.step.value, panel.steps.value = 12, 5
    settled(panel)
    assert (panel.step.max, panel.step.value) == (5, 5)
    assert len(panel._path[1].times) == 6
    assert panel.snapshot().data.startswith(b"\x89PNG")
    panel.close()


def test_the_perturbation_explorer_shows_that_a_projection_removes_a_radial_error():
    panel = settled(PerturbationExplorer(position=4, kind="radial", size=1.0, images=2))
    with_projection, without = (np.array(trace.y) for trace in list(panel.growth.data)[:2])
    assert with_projection[4:].max() < 1e-4
    assert without[4] == pytest.approx(1.0, rel=1e-4)
    assert without[5:].min() > 1e-3
    panel.kind.value = "tangential"
    settled(panel)
    assert np.array(panel.growth.data[0].y)[5:].min() > 1e-3
    assert panel.snapshot().data.startswith(b"\x89PNG")
    panel.close()


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", 16)


def test_training_is_watched_to_its_end(digits):
    recipe = replace(recipes("digits").vae, steps=12)
    images, _ = digits.batch(torch.arange(4))
    states = train_vae(preset("digits").vae, digits, recipe)
    panel = settled(TrainingMonitor(states, 12, reconstructions(images), columns=4, every=3))
    assert panel.ended == "done"
    assert panel.steps == [1, 3, 6, 9, 12]
    again = [s.metrics()["loss"] for s in train_vae(preset("digits").vae, digits, recipe)]
    np.testing.assert_allclose(panel.losses["loss"], [again[s - 1] for s in panel.steps], rtol=1e-6)
    assert panel.bar.value == 12
    assert pixels(panel.image.value).shape[0] > 2 * 16
    assert panel.snapshot().data.startswith(b"\x89PNG")
    panel.close()


class CountingEvent(threading.Event):
    """An event that counts the waits that ended without it."""

    missed = 0

    def wait(self, timeout=None):
        happened = super().wait(timeout)
        self.missed += not happened
        return happened


def test_training_pauses_stops_and_goes_on_where_it_was(digits, tmp_path):
    recipe = replace(recipes("digits").ar, steps=2000)
    vae, sizes = cached_pipeline("digits-power_spherical").vae, preset("digits").ar
    panel = TrainingMonitor(train_ar(sizes, vae, digits, recipe, tmp_path), 2000, samples(vae, [1, 2]), every=1)
    panel._running = running = CountingEvent()
    running.set()
    until(lambda: len(panel.steps) >= 3)
    panel.pause.click()
    until(lambda: running.missed > 0)
    held = list(panel.steps)
    until(lambda: running.missed > 5)
    assert panel.steps == held
    panel.pause.click()
    until(lambda: len(panel.steps) >= len(held) + 2)
    panel.stop_button.click()
    settled(panel)
    last = int(panel.status.value.split("step ")[1].split(" of")[0])
    assert panel.ended == "stopped"
    panel.close()
    states = train_ar(sizes, vae, digits, recipe, tmp_path)
    assert next(states).step == last + 1
    states.close()


def test_stop_at_the_last_step_lets_training_end(digits, tmp_path):
    recipe = replace(recipes("digits").vae, steps=2)
    states = train_vae(preset("digits").vae, digits, recipe, tmp_path)
    made = threading.Event()

    def stopping(model):
        assert made.wait(10)
        if panel.steps[-1] == 2:
            panel.stop_button.click()
        return torch.zeros(1, 3, 16, 16)

    panel = TrainingMonitor(states, 2, stopping)
    made.set()
    settled(panel)
    assert panel.ended == "done"
    assert VAE.from_pretrained(tmp_path).config == preset("digits").vae
    panel.close()


def test_losses_that_begin_late_stand_where_they_began():
    def states():
        for step in range(1, 5):
            late = {"gan": step / 10, "critic": step / 5} if step > 2 else {}
            losses = {"loss": 1.0, "l1": 0.5, "kl": 2.0, "lpips": 0.1, **late}
            losses = {name: torch.tensor(value) for name, value in losses.items()}
            yield TrainState(step, 4, losses, 1e-3, 1.0, torch.nn.Identity())

    panel = settled(TrainingMonitor(states(), 4, every=1))
    shown = {trace.name: list(trace.y) for trace in panel.curve.data if trace.visible}
    assert set(shown) == {"loss", "l1", "kl", "lpips", "gan", "critic"}
    np.testing.assert_allclose(shown["gan"], [np.nan, np.nan, 0.3, 0.4], rtol=1e-6)
    assert panel.snapshot().data.startswith(b"\x89PNG")
    panel.close()


def test_a_cell_that_is_interrupted_stops_the_training_that_it_awaits(digits):
    recipe = replace(recipes("digits").vae, steps=5000)
    panel = TrainingMonitor(train_vae(preset("digits").vae, digits, recipe), 5000, every=1)

    async def interrupted():
        waiting = asyncio.ensure_future(panel.finished())
        while not panel.steps:
            await asyncio.sleep(0.01)
        waiting.cancel()
        await waiting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    settled(panel)
    assert panel.ended == "stopped"
    panel.close()


def test_an_error_of_training_is_shown():
    def broken():
        yield from ()
        raise FloatingPointError("the loss is nan at step 3")

    panel = TrainingMonitor(broken(), 5)
    assert panel.runner.wait(10)
    assert "the loss is nan" in panel.error_box.value
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        panel.snapshot()
    panel.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidanceExplorer("no_such_family"), "no_such_family"),
        (lambda: GuidanceExplorer(settings="slow"), "slow"),
        (lambda: GuidanceExplorer(images=0), "images is 0"),
        (lambda: GuidanceExplorer(guidance_scale=25.0), "guidance is 25.0; expected 0 to 20"),
        (lambda: PerturbationExplorer(size=10), "size of the perturbation is 10; expected 0 to 3"),
        (lambda: SphereExplorer(-1.0), "concentration is -1"),
        (lambda: SphereExplorer(1000.0), "concentration is 1000.0; expected 0.1 to 300"),
        (lambda: GuidanceExplorer(label=10), "class is 10; expected one of 0, 1,"),
        (lambda: PerturbationExplorer(label=10), "class is 10; expected one of 0, 1,"),
        (lambda: TokenExplorer(label=-1), "class is -1; expected one of 0, 1,"),
        (lambda: TokenExplorer("vq"), "vq"),
        (lambda: TokenExplorer(position=16), "position is 16"),
        (lambda: TokenExplorer(step=12), "step and steps are 12 and 12"),
        (lambda: PerturbationExplorer(position=16), "position is 16"),
        (lambda: PerturbationExplorer(kind="sideways"), "sideways"),
        (lambda: TrainingMonitor(iter(()), 0), "total and every are 0"),
    ],
)
def test_what_cannot_be_shown_is_refused(make, message, as_users_do):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make()


def test_a_closed_panel_is_closed():
    panel = SphereExplorer()
    panel.close()
    panel.close()
    assert panel.comm is None
    assert panel.concentration.comm is None


def test_a_closed_panel_leaves_no_widget():
    PerturbationExplorer(images=1).close()
    before = len(_instances)
    panel = GuidanceExplorer(images=1)
    assert len(_instances) > before
    panel.close()
    assert len(_instances) == before


def test_a_figure_is_small_and_plotly_is_sent_once():
    """anywidget gives a module two seconds: it must not be plotly's, which is a thousand times as long."""
    figures = [live_figure("a", [go.Scatter(y=[1.0])], "x", "y") for _ in range(2)]
    assert max(len(figure._esm) for figure in figures) < 5000
    assert "export default" in figures[0]._esm
    source = figures[0]._plotly
    assert source is figures[1]._plotly
    assert len(source.text) > 1_000_000
    assert figures[0].get_state()["_plotly"] == f"IPY_MODEL_{source.model_id}"
    source.close()  # as Widget.close_all() does
    another = live_figure("b", [go.Scatter(y=[1.0])], "x", "y")._plotly
    assert another.comm is not None
    assert another.text == source.text
    for name in ("addTraces", "restyle", "relayout", "update"):
        assert f'"{name}"' in figures[0]._esm
    sent = {name for name in go.FigureWidget.class_trait_names() if name.startswith("_py2js_")}
    assert {f"_py2js_{name}" for name in re.findall(r'"(\w+)"', figures[0]._esm.split("].map")[0])} == sent
