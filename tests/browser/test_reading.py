"""The notebooks as read on paper or in a page without a kernel: exported to HTML and opened in a browser, offline."""

from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

from spherear.figures.display import PNG
from spherear.live.notebooks import RAW, find_notebooks
from tests.browser.jupyter import browser, find_chromium

FOLDER = Path(__file__).parents[2] / "notebooks"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]
PICTURES = """() => [...document.querySelectorAll(".jp-OutputArea-output img")].map(image => ({
  alt: image.alt, loaded: image.complete && image.naturalWidth > 0, right: image.getBoundingClientRect().right,
}))"""
OUTPUTS = '() => [...document.querySelectorAll(".jp-OutputArea-output")].map(output => output.innerText)'
TROUBLE = '[data-mime-type="application/vnd.jupyter.stderr"], [data-mime-type="application/vnd.jupyter.error"]'
WIDTH = 1280


@pytest.fixture(scope="module")
def page():
    with browser(WIDTH, 1000, webgl=False) as opened:
        page = opened.context.new_page()
        yield page
        assert opened.refused == []


@pytest.mark.parametrize("path", find_notebooks(FOLDER), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_notebook_reads_well_without_a_kernel(path, page, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    exported, _ = HTMLExporter(mathjax_url="", require_js_url="").from_notebook_node(notebook)
    (tmp_path / "read.html").write_text(exported)
    page.goto((tmp_path / "read.html").as_uri())
    page.wait_for_load_state("load")
    pictures = page.evaluate(PICTURES)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert len(pictures) == sum(PNG in output.get("data", {}) for output in outputs)
    assert pictures or path.parent != FOLDER  # solutions may be words and numbers alone
    for picture in pictures:
        assert picture["loaded"]
        assert len(picture["alt"]) > 20
        assert picture["right"] <= WIDTH
    texts = page.evaluate(OUTPUTS)
    assert len(texts) == len(outputs)
    assert not any(RAW.search(text) or "Loading widget" in text for text in texts)
    assert page.locator(TROUBLE).count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
    page.screenshot(path=tmp_path / "read.png", full_page=True)
