"""The panels in a real JupyterLab in a real browser, offline: what moves, what it shows, and that nothing complains."""

import io
import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from spherear.live.picture import read_picture, sheet
from spherear.sampling.pipeline import cached_pipeline
from spherear.sampling.settings import SamplingSettings
from tests.browser.jupyter import browser, find_chromium, notebook, offline, running_lab, running_page
from tests.browser.latency import drag, picture_number, press, wait_for_picture
from tests.conftest import as_the_panel_runs, until
from tests.node import accessibility_faults, find_axe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]

DIGITS = "label=3, guidance_scale=3.0, settings='fast', preset='digits'"
GUIDANCE = f"from spherear.live import GuidanceExplorer\npanel = GuidanceExplorer({DIGITS})\npanel"
HAND = (
    f"from spherear.live import latest_wins\n{GUIDANCE}.runner.wait(60)\n"
    "latest_wins.SHORT = latest_wins.DEBOUNCE = 1000\npanel"
)
OTHERS = ["from spherear.live import *\nSphereExplorer()", "TokenExplorer()", "PerturbationExplorer()"]
TRAINING = [
    "from dataclasses import replace\nfrom spherear import preset\nfrom spherear.train import train_vae\n"
    "from spherear.training.data.catalog import load_data\nfrom spherear.training.recipes import recipes\n"
    "from spherear.figures.display import still\nfrom spherear.live import TrainingMonitor\n"
    "states = train_vae(preset('digits').vae, load_data('digits', 16), replace(recipes('digits').vae, steps=5000))",
    "monitor = TrainingMonitor(states, 5000)\ndisplay(monitor)\nawait monitor.finished()\nstill(monitor, 'at its end')",
]
SHOWN = """selector => {
  const image = document.querySelector(selector);
  const canvas = document.createElement("canvas");
  Object.assign(canvas, {width: image.naturalWidth, height: image.naturalHeight});
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="module")
def context():
    with browser(1280, 1300) as opened:
        yield opened
        assert opened.refused == []  # nothing here asks for anything beyond this machine


@pytest.fixture(scope="module")
def guidance(context, lab):
    with notebook(context, lab, [GUIDANCE], "guidance") as opened:
        opened.page.wait_for_selector(".spherear-status >> text=done", timeout=60_000)
        opened.page.wait_for_selector(".spherear-trace-1 .main-svg", timeout=60_000)
        opened.page.click(".spherear-more")
        opened.page.wait_for_selector(".spherear-others", timeout=60_000)
        yield opened.page
        assert opened.troubles == []


def shown(page, place=0):
    """The pixels that the page enlarges."""
    import base64

    with Image.open(io.BytesIO(base64.b64decode(page.evaluate(SHOWN, f".spherear-grid-{place}")))) as image:
        return np.asarray(image.convert("RGB"))


def burst(page):
    """Thirty keys on the slider at once, by events of the page: sent one by one, they are late on a busy machine."""
    page.focus(".spherear-scale .noUi-handle")
    page.evaluate("""() => {
        for (let move = 0; move < 30; move++) {
            const key = move < 20 ? "ArrowLeft" : "ArrowRight";
            document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
        }
    }""")


def scale_shown(page):
    return float(re.search(r"guidance ([\d.]+)", page.inner_text(".spherear-status"))[1])


def seconds_to_stop(page):
    """From a click on Stop to the line that says so, by the page's clock; infinity where the picture was done first."""
    seconds = page.evaluate("""() => new Promise(done => {
        const began = performance.now(), status = document.querySelector(".spherear-status");
        const look = () => status.innerText.startsWith("drawing") ? setTimeout(look, 10)
                                                                  : done((performance.now() - began) / 1000);
        document.querySelector(".spherear-stop").click();
        look();
    })""")
    return seconds if page.inner_text(".spherear-status").startswith("stopped") else math.inf


def expected(name, scale):
    """By the other path: sampled at once, in this process."""
    settings = SamplingSettings.named("fast", guidance_scale=scale)
    return sheet(as_the_panel_runs(name).sample([3] * 16, settings, seeds=0), 4, 1)


def lengths(page, place):
    least, most = re.search(r"handed on: ([\d.]+) to ([\d.]+)", page.inner_text(f".spherear-norms-{place}")).groups()
    return float(least), float(most)


def test_keys_move_the_slider_and_the_picture_follows(guidance, tmp_path):
    before, number = shown(guidance), picture_number(guidance)
    press(guidance, "ArrowRight")
    wait_for_picture(guidance, number)
    assert scale_shown(guidance) == pytest.approx(3.1)
    assert not np.array_equal(shown(guidance), before)
    guidance.screenshot(path=tmp_path / "keys.png")


def test_the_pointer_moves_it_and_lengths_stay_or_leave(guidance, tmp_path):
    number = picture_number(guidance)
    drag(guidance, 0.9)
    wait_for_picture(guidance, number)
    scale = scale_shown(guidance)
    assert scale > 11
    assert float(guidance.input_value(".spherear-scale-number input")) == scale
    radius = cached_pipeline("digits-power_spherical").vae.bottleneck.radius
    assert lengths(guidance, 0) == (pytest.approx(radius, abs=1e-3), pytest.approx(radius, abs=1e-3))
    least, most = lengths(guidance, 1)
    assert most > 1.3 * radius
    assert least < 0.8 * radius
    guidance.screenshot(path=tmp_path / "pointer.png")


def test_a_picture_begins_when_the_hand_lets_go(context, lab):
    """Nothing else begins it here: a pause would have to last a quarter of an hour."""
    with notebook(context, lab, [HAND], "hand") as opened:
        page = opened.page
        page.wait_for_selector(".spherear-status >> text=done", timeout=60_000)
        for move in (lambda: drag(page, 0.5), lambda: press(page, "ArrowRight"), lambda: drag(page, 0.7)):
            number = picture_number(page)
            move()
            wait_for_picture(page, number)
        assert opened.troubles == []


def test_a_burst_of_thirty_ends_with_the_last_value_and_at_most_three_decodes(guidance):
    number, before = picture_number(guidance), float(guidance.input_value(".spherear-scale-number input"))
    burst(guidance)
    wait_for_picture(guidance, number)
    assert picture_number(guidance) - number <= 3
    scale = round(float(guidance.input_value(".spherear-scale-number input")), 6)  # as the panel reads it
    assert scale == pytest.approx(before - 1.0)  # twenty steps of 0.1 down, ten up
    assert scale_shown(guidance) == scale
    for place, family in enumerate(("power_spherical", "gaussian")):
        np.testing.assert_array_equal(shown(guidance, place), expected(f"digits-{family}", scale))


def test_stop_returns_within_a_second_with_the_partial_image(guidance, tmp_path):
    guidance.select_option(".spherear-named select", "reference")
    taken = []
    while not taken or (min(taken) > 1 and len(taken) < 3):  # another chance where the machine is busy with others
        if taken:
            guidance.click(".spherear-dice")
        guidance.wait_for_selector(".spherear-status >> text=drawing", timeout=60_000)
        taken.append(seconds_to_stop(guidance))
    print("stopped after", *(f"{seconds:.2f} s" for seconds in taken))
    assert min(taken) <= 1
    drawn = int(re.search(r"token (\d+) of 16", guidance.inner_text(".spherear-status"))[1])
    assert 0 < drawn < 16
    below = shown(guidance)[-15:].reshape(-1, 3)  # the last row of images; grey where nothing is drawn yet
    assert (below == 128).all(axis=1).mean() > 0.2
    guidance.screenshot(path=tmp_path / "stopped.png")
    number = picture_number(guidance)
    guidance.select_option(".spherear-named select", "fast")
    wait_for_picture(guidance, number)


def test_copied_code_in_a_fresh_kernel_draws_the_identical_image(guidance, tmp_path):
    guidance.context.grant_permissions(["clipboard-read", "clipboard-write"])
    guidance.click(".spherear-copy")
    guidance.wait_for_selector(".spherear-note >> text=it is in your clipboard", timeout=60_000)
    clipboard = guidance.evaluate("navigator.clipboard.readText()")
    guidance.wait_for_selector(".spherear-code textarea")
    guidance.wait_for_function("document.querySelector('.spherear-code textarea').value.length > 50")
    code = guidance.input_value(".spherear-code textarea")
    assert clipboard == code
    copied = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(copied, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for place in range(2):
        with Image.open(tmp_path / f"picture-{place + 1}.png") as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), enlarged(shown(guidance, place), 6))


def enlarged(pixels, zoom):
    """As a panel saves them."""
    return pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)


def test_every_control_has_a_label_and_is_reached_by_tab(guidance):
    guidance.focus(".spherear-scale .noUi-handle")
    reached = set()
    for _ in range(80):
        inside = "document.activeElement.closest('[class*=spherear-]')?.className || ''"
        reached |= set(re.findall(r"spherear-([\w-]+)", guidance.evaluate(inside)))
        guidance.keyboard.press("Tab")
    wanted = {
        "label", "scale", "scale-number", "family", "compare", "named", "schedule", "solver", "steps", "temperature",
        "seed", "dice", "lock", "project", "overlay", "stop", "copy", "save", "file", "open", "more", "strip-button",
    }  # fmt: skip
    assert wanted <= reached
    for control in wanted - {
        "dice",
        "stop",
        "copy",
        "save",
        "open",
        "lock",
        "project",
        "overlay",
        "more",
        "strip-button",
    }:
        assert guidance.inner_text(f".spherear-{control} .widget-label >> nth=0").strip(), control


def test_a_narrow_page_shows_everything_within_its_width(context, lab, guidance, tmp_path):
    guidance.set_viewport_size({"width": 390, "height": 1400})
    parts = "[...document.querySelectorAll('.spherear-panel *')]"
    guidance.wait_for_function(f"() => {parts}.every(e => e.getBoundingClientRect().right <= 390)")
    guidance.screenshot(path=tmp_path / "narrow.png", full_page=True)
    widest = guidance.evaluate(f"() => Math.max(...{parts}.map(e => e.getBoundingClientRect().right))")
    assert 0 < widest <= 390
    guidance.set_viewport_size({"width": 1280, "height": 1300})


EARLY = [
    "from spherear.live.figure import PlotlySource, live_figure\nfrom ipywidgets import Widget\n"
    "import plotly.graph_objects as go\nfigure = live_figure('early', [go.Scatter(y=[1.0, 2.0])], 'x', 'y')",
    "figure.data[0].y = [3.0, 4.0, 5.0]\nfigure.layout.xaxis.title.text = 'renamed'\n"
    "figure.add_scatter(y=[7.0])\nwith figure.batch_update():\n    figure.data[0].y = [3.0, 4.0, 6.0]",
    "figure",
    "figure.data[1].y = [8.0, 9.0]",
    "again = live_figure('again', [go.Scatter(y=[1.0])], 'x', 'y')\nagain",
]
DRAWN = """selector => {
  const plot = document.querySelector(`${selector} .js-plotly-plot`) ?? document.querySelector(selector);
  return [plot.data.map(trace => Array.from(trace.y)), plot.layout.xaxis.title.text];
}"""


def test_a_figure_shows_what_came_before_its_first_view(context, lab):
    """Messages to a page that has not loaded plotly yet are not lost; further figures share the one bundle."""
    with notebook(context, lab, EARLY, "early", run=3) as opened:
        opened.page.wait_for_selector(".spherear-early .main-svg", timeout=60_000)
        assert opened.page.evaluate(DRAWN, ".spherear-early") == [[[3, 4, 6], [7]], "renamed"]
        opened.run_cells(len(EARLY))
        opened.page.wait_for_selector(".spherear-again .main-svg", timeout=60_000)
        until(lambda: opened.page.evaluate(DRAWN, ".spherear-early")[0] == [[3, 4, 6], [8, 9]])
        assert opened.page.evaluate("globalThis.spherearPlotly instanceof Promise")
        assert opened.troubles == []


def test_plotly_that_does_not_load_is_an_error_of_the_page_and_is_tried_again(context, lab):
    cells = [
        "import plotly.graph_objects as go\nfrom spherear.live.figure import PlotlySource, live_figure\n"
        "source = PlotlySource.of_kernel()\nwhole, source.text = source.text, 'export default 1 +'\n"
        "live_figure('broken', [go.Scatter(y=[1.0])], 'x', 'y')",
        "source.text = whole\nlive_figure('mended', [go.Scatter(y=[1.0])], 'x', 'y')",
    ]
    with notebook(context, lab, cells, "broken", run=1) as opened:
        until(lambda: opened.page.evaluate("globalThis.spherearPlotly === undefined") and opened.troubles)
        assert any("Unexpected" in trouble for trouble in opened.troubles)
        opened.run_cells(2)
        opened.page.wait_for_selector(".spherear-mended .main-svg", timeout=60_000)
        assert opened.page.evaluate(DRAWN, ".spherear-mended") == [[[1]], "x"]


def test_the_page_of_the_panel_alone_moves_too(context, tmp_path):
    """By Voila, which asks no other host for anything; a second visit is one too many here."""
    opened = offline(context.context.browser, 1280, 1100)
    with running_page(tmp_path, visits=1) as address:
        page, troubles = opened.context.new_page(), []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(address, timeout=120_000)
        page.wait_for_selector(".spherear-status >> text=done", timeout=90_000)
        page.wait_for_selector(".spherear-trace-0 .legendtext >> text=/R = 2.00/", timeout=60_000)
        number = picture_number(page)
        press(page, "ArrowRight")
        wait_for_picture(page, number)
        assert scale_shown(page) == pytest.approx(12.1)
        for place, family in enumerate(("power_spherical", "gaussian")):
            np.testing.assert_array_equal(shown(page, place), in_colour(f"shapes-{family}", 12.1))
        fits_its_place(page)
        assert page.title() == page.inner_text("h1")
        assert page.evaluate("document.documentElement.lang") == "en"
        is_seen_at_once(page, tmp_path)
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("Tab")  # the first stop is the slider
        assert page.evaluate("document.activeElement.closest('.spherear-scale') !== null")
        assert unnamed(page) == []
        page.click(".spherear-more")
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert page.locator(".jp-InputArea-editor").count() == 0  # no code
        saves_on_the_visitors_disk(page, tmp_path)
        refuses_a_second_visit(opened, address, tmp_path)
        assert troubles == []
        assert opened.refused == []
        page.close(run_before_unload=True)  # its kernel ends with it
        until(lambda: opened.context.request.get(address, timeout=120_000).ok)
        opened.context.close()


def in_colour(name, scale):
    """One of each, by the other path."""
    settings = SamplingSettings.named("balanced", guidance_scale=scale)
    return sheet(as_the_panel_runs(name).sample(list(range(10)), settings, seeds=0), 5, 1)


def fits_its_place(page):
    plot, place = (page.locator(f".spherear-trace-0{part} >> nth=0").bounding_box() for part in (" .main-svg", ""))
    assert plot["width"] <= place["width"] + 1


SCREENS = {"laptop": (1366, 768), "phone": (390, 844), "zoom": (683, 384)}
"""Of CSS pixels; the last one is a laptop's at 200 %."""
IN_SIGHT = (".spherear-scale", ".spherear-grid-0", ".spherear-grid-1", ".spherear-sentence")


def is_seen_at_once(page, folder):
    """Slider, both pictures side by side, and the sentence, without scrolling; in the light and the dark theme."""
    for name, (width, height) in SCREENS.items():
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate("window.scrollTo(0, 0)")
        until(lambda width=width, height=height: all(is_within(page, part, width, height) for part in IN_SIGHT))
        until(lambda: abs(np.subtract(*(page.locator(part).bounding_box()["y"] for part in IN_SIGHT[1:3]))) < 30)
        left, right = (page.locator(part).bounding_box() for part in IN_SIGHT[1:3])
        assert left["x"] + left["width"] <= right["x"]
        assert min(left["width"], right["width"]) > 0.3 * min(width, 600)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=folder / f"{name}-{scheme}.png")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 1100})


def is_within(page, selector, width, height):
    box = page.locator(selector).first.bounding_box()
    return box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= height


UNNAMED = """() => [...document.querySelectorAll(`.spherear-panel :is(button, input, select, textarea, img, [role],
    .noUi-handle, .widget-readout)`)].filter(e => e.checkVisibility() && e.type !== "hidden" && !(
  e.getAttribute("aria-label") || e.alt || e.title || e.innerText?.trim() || e.labels?.[0]?.innerText.trim()
)).map(e => e.outerHTML.slice(0, 200))"""


def test_the_page_of_the_panel_alone_has_no_fault_of_accessibility(context, tmp_path):
    """By axe, light and dark, also with everything shown."""
    script, opened = find_axe(), offline(context.context.browser, 1280, 1100)
    with running_page(tmp_path) as address:
        page = opened.context.new_page()
        page.goto(address, timeout=120_000)
        page.wait_for_selector(".spherear-status >> text=done", timeout=90_000)
        page.add_script_tag(path=str(script))
        faults = []
        for _ in range(2):
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.wait_for_timeout(500)  # colours follow
                faults += accessibility_faults(page)
            page.click(".spherear-more")
        page.close()
    assert faults == []


def unnamed(page):
    """What can be reached or is a picture, and has no name for assistive software."""
    page.wait_for_timeout(500)  # names follow what is drawn
    return page.evaluate(UNNAMED)


def saves_on_the_visitors_disk(page, folder):
    before = {*folder.iterdir(), *Path.cwd().iterdir()}
    page.fill(".spherear-file input", "mine")
    page.press(".spherear-file input", "Tab")
    with page.expect_download(timeout=60_000) as waiting:
        page.click(".spherear-save")
    assert waiting.value.suggested_filename == "mine.png"
    page.wait_for_selector("text=mine.png is among the downloads of your browser")
    png = Path(waiting.value.path()).read_bytes()
    with Image.open(io.BytesIO(png)) as image:
        both = np.concatenate([shown(page, place) for place in range(2)], axis=1)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), enlarged(both, 2))
    assert read_picture(png).settings.guidance_scale == scale_shown(page)
    assert {*folder.iterdir(), *Path.cwd().iterdir()} == before


def refuses_a_second_visit(opened, address, folder):
    second = opened.context.new_page()
    assert second.goto(address, timeout=120_000).status == 503
    assert "All 1 places of this page are taken" in second.inner_text("main")
    second.screenshot(path=folder / "refused.png")
    second.close()


def test_the_other_panels_show_and_move(context, lab, tmp_path):
    with notebook(context, lab, OTHERS, "others") as opened:
        page = opened.page
        page.locator(".spherear-perturbation-status").scroll_into_view_if_needed()
        page.wait_for_selector(".spherear-perturbation-status >> text=done", timeout=90_000)
        before = page.inner_text(".spherear-sphere-numbers")
        press(page, "ArrowRight", ".spherear-concentration")
        page.wait_for_function("t => document.querySelector('.spherear-sphere-numbers').innerText !== t", arg=before)
        before = page.inner_text(".spherear-token-numbers")
        press(page, "ArrowRight", ".spherear-token-scale")
        page.wait_for_function("t => document.querySelector('.spherear-token-numbers').innerText !== t", arg=before)
        assert "guidance at this token: 4.10" in page.inner_text(".spherear-token-numbers")
        first, second = (page.inner_text(f".spherear-perturbation-numbers-{side}").split(": ")[1] for side in (0, 1))
        assert float(first) < 1e-4 < float(second)
        number = picture_number(page, ".spherear-perturbation-status")
        press(page, "ArrowRight", ".spherear-perturbation-size")
        wait_for_picture(page, number, ".spherear-perturbation-status")
        again = page.inner_text(".spherear-perturbation-numbers-1").split(": ")[1]
        assert float(again) > float(second)  # a larger perturbation
        for name in ("spheres", "density", "space", "token-lengths", "perturbation-growth"):
            is_drawn(page, name, tmp_path)
        assert ends_in_white(page.locator(".spherear-space"), tmp_path / "space.png", "blr")
        page.set_viewport_size({"width": 390, "height": 1400})
        for place, panel in enumerate(page.locator(".spherear-panel").all()):
            panel.scroll_into_view_if_needed()
            until(lambda panel=panel: panel.evaluate("e => e.scrollWidth <= e.clientWidth + 1"))  # wider parts scroll
            panel.screenshot(path=tmp_path / f"narrow-{place}.png")
        assert opened.troubles == []


def is_drawn(page, name, folder):
    part = page.locator(f".spherear-{name}")
    part.scroll_into_view_if_needed()
    part.locator(".main-svg >> nth=0").wait_for()

    def colors():
        part.screenshot(path=folder / f"{name}.png")
        with Image.open(folder / f"{name}.png") as image:
            return len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))

    until(lambda: colors() > 20)


FIGURE_3 = """from IPython.display import display
from spherear.analysis.latents import token_laws
from spherear.figures import gallery
from spherear.figures.display import interactive, picture
from spherear.figures.paper import token_laws_figure, token_laws_figure_3d
three = [gallery.shipped(family, "digits3") for family in ("vq", "gaussian", "power_spherical")]
tokens = token_laws(*three, positions=(1, 6, 9), label=2, images=40)
display(picture(token_laws_figure(tokens), "Figure 3"))
interactive(token_laws_figure_3d(tokens), "its sphere")"""
FIGURE_5 = """from spherear.analysis.densities import direction_laws
from spherear.figures.paper import direction_laws_figure, direction_laws_figure_3d
laws = direction_laws(resolution=40)
display(picture(direction_laws_figure(laws), "Figure 5"))
interactive(direction_laws_figure_3d(laws), "its spheres")"""
FAINT = """limit => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => numbers(color).slice(0, 3).map(c => c / 255).map(
    c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4,
  ).reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = e => {
    const color = getComputedStyle(e).backgroundColor;
    return (numbers(color)[3] ?? 1) > 0.5 ? color : ground(e.parentElement);
  };
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  return [...document.querySelectorAll(".spherear-panel *")].filter(
    e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()),
  ).filter(e => !e.closest("svg, .plot-container, option")).filter(
    e => contrast(light(getComputedStyle(e).color), light(ground(e))) < limit,
  ).map(e => e.outerHTML.slice(0, 120));
}"""
"""Elements of a panel whose text has less than a contrast to the ground behind it."""


@pytest.fixture(scope="module")
def dark_lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("dark"), theme="JupyterLab Dark") as running:
        yield running


def test_figures_3_and_5_stand_whole_below_their_panels_in_the_dark_theme(context, dark_lab, tmp_path):
    """Both the three panels and the figure that turns are shown, and neither is cut off."""
    with notebook(context, dark_lab, [FIGURE_3, FIGURE_5], "figures") as opened:
        page = opened.page
        assert page.evaluate("document.body.dataset.jpThemeLight") == "false"
        page.set_viewport_size({"width": 1366, "height": 1000})
        for number, name in enumerate(("figure 3", "figure 5")):
            cell = page.locator(".jp-Notebook .jp-CodeCell").nth(number)
            turning, still = cell.locator(".main-svg >> nth=0"), cell.locator(".jp-RenderedImage img")
            turning.scroll_into_view_if_needed(timeout=120_000)
            cell.locator("canvas >> nth=0").wait_for(timeout=120_000)
            assert still.is_visible()
            assert still.bounding_box()["y"] + still.bounding_box()["height"] <= turning.bounding_box()["y"]
            place = cell.locator(".jp-Cell-outputArea").bounding_box()
            for part in (still.bounding_box(), turning.bounding_box()):
                assert part["x"] + part["width"] <= place["x"] + place["width"]
            until(lambda turning=turning, name=name: ends_in_white(turning, tmp_path / f"{name}.png"), seconds=120)
        assert opened.troubles == []


def ends_in_white(part, path, sides="tblr"):
    """Whether something is drawn, and nothing reaches the sides of the picture, where it would be cut off."""
    part.screenshot(path=path, timeout=120_000)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))[2:-2, 2:-2]  # what lies beside it may show at its very edge
    edges = {"t": pixels[:2], "b": pixels[-2:], "l": pixels[:, :2], "r": pixels[:, -2:]}
    return len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100 and all((edges[side] == 255).all() for side in sides)


def test_the_guidance_panel_fits_a_lab_at_200_percent_in_the_dark_theme(context, dark_lab, tmp_path):
    """By keyboard alone; with the longest sentence, that of a large guidance scale."""
    cell = GUIDANCE.replace("guidance_scale=3.0", "guidance_scale=12.0")
    with notebook(context, dark_lab, [cell], "zoom") as opened:
        page, (width, height) = opened.page, SCREENS["zoom"]
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_selector(".spherear-status >> text=done", timeout=60_000)
        page.keyboard.press("Escape")
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.closest('.spherear-scale') !== null"):
                break
        number = picture_number(page)
        page.keyboard.press("ArrowRight")
        wait_for_picture(page, number)
        assert scale_shown(page) == pytest.approx(12.1)
        page.locator(".spherear-scale").evaluate("e => e.scrollIntoView({block: 'start'})")
        bar = page.locator("#jp-bottom-panel, #jp-main-statusbar").last.bounding_box()["y"]
        until(lambda: all(is_within(page, part, width, bar + 1) for part in IN_SIGHT))
        page.screenshot(path=tmp_path / "zoom.png")
        assert page.evaluate(FAINT, 4.5) == []
        page.click(".spherear-more")
        page.wait_for_selector(".spherear-others", timeout=60_000)
        assert page.evaluate(FAINT, 4.5) == []
        arrow = "getComputedStyle(document.querySelector('.spherear-family select')).backgroundImage"
        assert "white" in page.evaluate(arrow)
        page.set_viewport_size({"width": 1366, "height": 768})
        page.screenshot(path=tmp_path / "more.png")
        assert opened.troubles == []


def test_training_is_paused_and_stopped_while_a_cell_waits_for_it(context, lab, tmp_path):
    """As in the lessons, which await the end so that a still picture can stay."""
    with notebook(context, lab, TRAINING, "training", run=1) as opened:
        page, status = opened.page, ".spherear-train-status"
        opened.start(1)
        page.wait_for_selector(f"{status} >> text=training", timeout=90_000)
        page.click(".spherear-pause")
        page.wait_for_selector(".spherear-pause:has-text('go on')")
        page.wait_for_timeout(500)  # for the step at work
        before = page.inner_text(status)
        page.wait_for_timeout(1500)
        assert page.inner_text(status) == before
        page.click(".spherear-pause")
        page.wait_for_function(f"t => document.querySelector('{status}').innerText !== t", arg=before, timeout=60_000)
        page.click(".spherear-train-stop")
        page.wait_for_selector(f"{status} >> text=stopped at step", timeout=60_000)
        page.wait_for_selector(".jp-RenderedImage img", state="attached", timeout=60_000)  # the cell went on
        assert not page.locator(".jp-RenderedImage img").is_visible()  # the panel stands in the place of its still
        is_drawn(page, "curve", tmp_path)
        assert opened.troubles == []
