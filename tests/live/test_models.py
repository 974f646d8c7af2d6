"""Panels of any model: what is offered beside it, how it is run, the choice among many classes, and slow pictures."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from spherear import Pipeline, SphereAR, cli
from spherear.analysis.trajectories import token_path
from spherear.live import GuidanceExplorer, PerturbationExplorer, TokenExplorer
from spherear.live import server as launch
from spherear.live.latest_wins import Cancellation
from spherear.live.parts.classes import ClassSearch
from spherear.live.parts.models import Models
from spherear.live.picture import FRAME_SHARE, sheet, shown
from spherear.models.sources import imagenet_classes
from spherear.sampling.placement import Placement
from tests.conftest import TINY_AR, randomise
from tests.live.test_panels import settled
from tests.live.test_server import read_cells
from tests.models.test_sources import WIDE_AR, WIDE_VAE, published  # noqa: F401


@pytest.fixture
def panel_of():
    """Makes guidance panels, and closes them."""
    made = []

    def make(*args, kind=GuidanceExplorer, **options):
        made.append(kind(*args, **options))
        return made[-1]

    yield make
    for panel in made:
        panel.close()


@pytest.fixture
def ten(tiny_vae, tiny_ar):
    return Pipeline(tiny_vae, tiny_ar)


def check_pixels(panel, pipeline):
    """Of the first model, by another path: sampled at once, by itself, with the panel's engine."""
    picture = panel.read().picture
    pipeline.engine = panel.models.pipeline(picture.models[0]).engine
    images = pipeline.sample(list(picture.labels), picture.settings, seeds=picture.seed)
    np.testing.assert_array_equal(panel.model_columns[0].pixels, sheet(images, picture.columns, picture.zoom))


def test_published_files_are_drawn_and_said(panel_of, published, monkeypatch):  # noqa: F811
    vae, ar, folder = published
    monkeypatch.chdir(folder)
    panel = settled(panel_of(ar="ar.pt", vae="vae.pt", images=4))
    check_pixels(panel, Pipeline(vae, ar))
    assert panel.compare.options == ((("nothing"), "nothing"), ("ar.pt", "ar.pt with vae.pt"))
    assert "ar.pt with vae.pt: AR model of 0.2 million parameters" in panel.machine.value
    assert "engine numpy, float32, on cpu" in panel.machine.value
    code = panel.read().picture.code(panel.models.code)
    assert "Pipeline.from_pretrained('ar.pt', vae='vae.pt', engine='numpy')" in code
    exec(code, {})
    assert (folder / "picture-1.png").exists()


def test_a_thousand_classes_are_searched(panel_of, published):  # noqa: F811
    vae, ar, folder = published
    panel = settled(panel_of(ar=folder / "ar.pt", vae=folder / "vae.pt", images=1, label="golden retriever"))
    assert panel.label.value == 207
    assert "class 207: <b>golden retriever</b>" in panel.label.chosen.value
    started = panel.runner.started
    panel.label.field.value = "retr"
    listed = [text for text, _ in panel.label.found.options]
    assert "207  golden retriever" in listed
    assert len(listed) == sum("retr" in name.lower() for name in imagenet_classes())
    assert settled(panel).runner.started == started  # typing draws nothing
    panel.label.found.value = panel.label.found.options[0][1]
    assert settled(panel).runner.started == started + 1
    panel.label.field.value = "volcano"
    panel.label.field._handle_custom_msg({"event": "submit"}, [])  # Enter
    assert settled(panel).read().picture.labels == (980,)
    check_pixels(panel, Pipeline(vae, ar))
    saved = panel.read().picture
    panel.label.value = 7
    settled(panel)
    panel.take(saved)
    assert settled(panel).read().picture == saved
    assert panel.label.found.value == 980


def test_a_search_lists_the_closest_first():
    names = ["tiger", "tiger cat", "sabre-toothed tiger", "Tiger Lily", "lion", "cat 7"]
    search = ClassSearch(names, 4, "label")
    assert search.matches("tiger") == [0, 1, 3, 2]
    assert search.matches("CAT") == [5, 1]
    assert search.matches("cat tiger") == [1]
    assert search.matches("5") == [5]
    assert search.matches("zebra") == []
    assert search.matches("  ") == list(range(6))
    search.field.value = "zebra"
    search.field._handle_custom_msg({"event": "submit"}, [])
    assert (search.value, search.found.options) == (4, ())
    search.field.value = ""
    assert search.found.value == 4
    search.close()


def test_a_pipeline_is_used_as_it_is(panel_of, ten):
    ten.place(Placement("cpu", "float32", "packed"))
    panel = settled(panel_of(ten, images=4))
    check_pixels(panel, ten)
    assert panel.models.pipeline("pipeline 1") is ten
    assert "engine packed, float32, on cpu" in panel.machine.value
    assert panel.read().picture.code(panel.models.code).splitlines()[3].startswith("# pipeline: as it was given")
    with pytest.raises(ValueError, match="a Pipeline is used as it is, and engine eager"):
        panel_of(ten, engine="eager")


def test_a_run_stands_beside_the_shipped_models_that_fit_it(panel_of, ten, tmp_path):
    ten.save_pretrained(tmp_path / "mine")
    panel = settled(panel_of(str(tmp_path / "mine"), "gaussian", images=1))
    names = [name for _, name in panel.family.options]
    assert {"digits-power_spherical", "digits-gaussian", str(tmp_path / "mine")} <= set(names)
    assert panel.compare.value == "digits-gaussian"
    check_pixels(panel, ten)


def test_heads_beside_a_model_are_offered_with_it(panel_of, ten, tmp_path, monkeypatch):
    """A model with a distilled head stands in the menus beside its teacher, and takes its own solver, in code too."""
    monkeypatch.chdir(tmp_path)
    student = Pipeline(ten.vae, randomise(SphereAR(replace(TINY_AR, head="mean_velocity")), 7))
    ten.save_pretrained("mine")
    student.save_pretrained("mine/heads/mean_velocity")
    panel = settled(panel_of("mine", "mine/heads/mean_velocity", images=1))
    titles = {name: title for title, name in panel.family.options}
    assert titles["mine/heads/mean_velocity"].endswith("head: mean velocity")
    assert panel.compare.value == "mine/heads/mean_velocity"
    check_pixels(panel, ten)
    picture = panel.read().picture
    own = replace(picture.settings, solver="euler", steps=1)
    images = student.sample(list(picture.labels), own, seeds=picture.seed)
    np.testing.assert_array_equal(panel.model_columns[1].pixels, sheet(images, picture.columns, picture.zoom))
    assert "(euler, 1 per token)" in panel.model_columns[1].title.value
    assert "per token" not in panel.model_columns[0].title.value
    code = picture.code(panel.models.code, panel.models.head)
    assert code.count("settings = SamplingSettings(") == 2
    exec(compile(code, "code", "exec"), {})
    for column, file in zip(panel.model_columns, ("picture-1.png", "picture-2.png"), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), column.pixels)


def test_two_pipelines_are_compared(panel_of, ten, tiny_vae):
    other = Pipeline(tiny_vae, randomise(SphereAR(TINY_AR), 7))
    panel = settled(panel_of(ten, other, images=1))
    assert [name for _, name in panel.family.options if name.startswith("pipe")] == ["pipeline 1", "pipeline 2"]
    panel.family.value, panel.compare.value = "pipeline 2", "nothing"
    check_pixels(settled(panel), other)


def test_options_of_a_panel_choose_the_engine(panel_of):
    panel = settled(panel_of(images=1, label=3, compare=None, engine="packed", dtype="float32", preset="digits"))
    assert panel.models.pipeline("digits-power_spherical").placement == Placement("cpu", "float32", "packed")
    code = panel.read().picture.code(panel.models.code)
    assert "from_pretrained('digits-power_spherical', dtype='float32', engine='packed')" in code


def test_panels_share_weights_while_one_of_them_lives(ten, tmp_path):
    ten.save_pretrained(tmp_path / "mine")
    first, second = (Models(str(tmp_path / "mine"), Placement(), "digits") for _ in range(2))
    assert first.pipeline(first.first) is second.pipeline(second.first)


def test_other_panels_take_any_model(panel_of, ten, published):  # noqa: F811
    *_, folder = published
    panel = settled(panel_of(ar=folder / "ar.pt", vae=folder / "vae.pt", kind=PerturbationExplorer, images=1))
    assert "AR model of 0.2 million parameters" in panel.machine.value
    panel.label.field.value = "tench"
    panel.label.found.value = 0
    assert settled(panel).read().perturbation.labels == (0,)
    assert settled(panel_of(ten, kind=PerturbationExplorer, images=1)).numbers[0].value != ""
    panel = settled(panel_of("digits3-gaussian", kind=TokenExplorer, dtype="bfloat16", device="cpu"))
    assert "engine eager, bfloat16, on cpu" in panel.machine.value
    assert np.isfinite(panel.space.data[1].x).all()


def four_classes(ten):
    return Pipeline(ten.vae, SphereAR(replace(TINY_AR, num_classes=4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ten: GuidanceExplorer(ten, four_classes(ten)), "pipeline 2 has 4 classes; expected 10, as pipeline 1"),
        (lambda ten: GuidanceExplorer("gaussian", ar="x.pt"), "family and ar are both given"),
        (lambda ten: GuidanceExplorer(ar="x.pt"), "'x.pt' is not a folder here"),
        (lambda ten: GuidanceExplorer(vae="x.pt"), "'shapes-power_spherical' is not a file"),
        (lambda ten: GuidanceExplorer(engine="warp"), "engine is 'warp'"),
        (lambda ten: GuidanceExplorer(device="abacus"), "device is 'abacus'"),
        (lambda ten: GuidanceExplorer(3), "the model is 3; expected a name, a path or a Pipeline"),
        (lambda ten: GuidanceExplorer(label="cat"), "class is 'cat'; expected one of 'one disc', 'one ring'"),
        (lambda ten: GuidanceExplorer(ten, label="cat"), "class is 'cat'; expected a number"),
        (lambda ten: TokenExplorer(ten), "pipeline 1 has tokens of 4 dimensions; expected continuous tokens of 3"),
        (lambda ten: PerturbationExplorer(ten, label=10), "class is 10; expected one of 0, 1"),
    ],
)
def test_what_a_panel_cannot_take_is_refused(make, message, ten, as_users_do):
    with pytest.raises((ValueError, FileNotFoundError, TypeError), match=message):
        make(ten)


class Clock:
    """Time that passes only when something says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def frames(clock, token, showing, count=256):
    """Tokens shown, of a drawing with so many seconds per token and per picture."""

    def drawing():
        for drawn in range(count + 1):
            clock.now += token if drawn else 0
            yield SimpleNamespace(drawn=drawn, done=drawn == count)

    canvases = drawing()
    for canvas, _ in shown(canvases, lambda canvas: canvas, Cancellation(), 0.06, first=2):
        yield canvas.drawn
        clock.now += showing


def test_a_slow_picture_takes_a_share_of_the_time(monkeypatch):
    """The VAE of a large model decodes for seconds: a 256-token decode still moves, and takes a third longer."""
    clock = Clock(monkeypatch)
    drawn = list(frames(clock, token=0.1, showing=1.0))
    spent = len(drawn) * 1.0
    assert drawn[0] == 1
    assert drawn[-1] == 256
    assert 5 <= len(drawn) <= 11
    # all but the first and the last one
    assert (spent - 2) / (clock.now - 2) <= FRAME_SHARE + 0.01
    assert max(np.diff(drawn)) * 0.1 <= 1.0 * (1 - FRAME_SHARE) / FRAME_SHARE + 0.1


def test_a_quick_picture_is_shown_as_before(monkeypatch):
    drawn = list(frames(Clock(monkeypatch), token=0.03, showing=0.002, count=16))
    assert max(np.diff(drawn)) <= 3
    assert (drawn[0], drawn[-1]) == (2, 16)


def test_a_panel_says_how_a_model_is_run_before_it_is_read(panel_of, monkeypatch):
    """And what it takes."""
    begun, go = threading.Event(), threading.Event()
    real = Pipeline.from_plan

    def slowly(plan):
        begun.set()
        assert go.wait(60)
        return real(plan)

    monkeypatch.setattr(Pipeline, "from_plan", slowly)
    panel = panel_of("digits-normalized_gaussian", None, images=1, dtype="float32", engine="eager")
    assert begun.wait(60)
    assert "MiB of weights; engine eager, float32, on cpu" in panel.machine.value
    assert panel.status.value == "reading digits-normalized_gaussian"
    go.set()
    settled(panel)


def test_lab_opens_a_notebook_with_the_model(published, tmp_path, monkeypatch, capsys):  # noqa: F811
    *_, folder = published
    started = []
    monkeypatch.setattr(launch, "run_lab", lambda command: started.append(command) or 0)
    monkeypatch.chdir(folder)
    options = ["lab", str(tmp_path / "mine"), "--ar", "ar.pt", "--vae", "vae.pt", "--engine", "eager", "--no-browser"]
    assert cli.main(options) == 0
    assert "ar.pt with" in capsys.readouterr().out
    assert "--LabApp.default_url=/lab/tree/ar.ipynb" in started[0]
    (cell,) = read_cells(tmp_path / "mine" / "ar.ipynb")
    assert f"GuidanceExplorer(ar='{folder / 'ar.pt'}', vae='{folder / 'vae.pt'}', engine='eager')" in cell
    edited = (tmp_path / "mine" / "ar.ipynb").read_text().replace("null", "3")
    (tmp_path / "mine" / "ar.ipynb").write_text(edited)
    assert cli.main(options) == 0  # the same cell: opened again, as it is
    assert (tmp_path / "mine" / "ar.ipynb").read_text() == edited
    (tmp_path / "mine" / "ar.ipynb").write_text("my own")
    assert cli.main(options) == 0
    assert (tmp_path / "mine" / "ar.ipynb").read_text() == "my own"
    assert "--LabApp.default_url=/lab/tree/ar-2.ipynb" in started[2]


def test_page_shows_the_model_and_says_what_a_visit_takes(published, monkeypatch, capsys):  # noqa: F811
    *_, folder = published
    cells = []
    monkeypatch.setattr(launch, "run_lab", lambda command: cells.extend(read_cells(command[3])) or 0)
    assert cli.main(["page", "--ar", str(folder / "ar.pt"), "--vae", str(folder / "vae.pt"), "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    assert "AR model of 0.2 million parameters" in said
    assert "of about 0.5 GB each" in said
    assert f"ar='{folder / 'ar.pt'}', vae='{folder / 'vae.pt'}', dtype='float32', folder=None)" in cells[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lab", "mine", "--ar", "nowhere"], "'nowhere' is not a folder here"),
        (["lab", "mine", "--vae", "x.pt"], "vae is 'x.pt' without an AR model; expected --ar"),
        (["lab", "mine", "--engine", "eager"], "engine eager, auto, on auto is given without a model; expected --ar"),
        (["page", "--ar", "digits-vq", "--engine", "warp"], "engine is 'warp'"),
        (["page", "--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_servers_refuse_a_model_before_they_start(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run_lab", lambda command: pytest.fail("it began"))
    assert cli.main(args) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_panels_use_a_cuda_device(panel_of):
    panel = settled(panel_of(images=4))
    assert "engine cuda_graphs, bfloat16, on cuda:0" in panel.machine.value
    assert panel.models.pipeline("shapes-power_spherical").ar.proj_in.weight.device.type == "cuda"
    assert settled(panel_of(kind=PerturbationExplorer, images=1)).snapshot().data.startswith(b"\x89PNG")
    panel = settled(panel_of(kind=TokenExplorer))
    assert token_path(panel.models.pipeline("digits3-power_spherical"), 3, 2, panel.read().settings, 0) is not None
