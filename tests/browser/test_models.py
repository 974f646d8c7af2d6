"""A published model of a thousand classes in the guidance panel, in a real browser: it is read, drawn and searched."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from spherear import VAE, SphereAR, preset
from spherear.models.published_weights import to_published
from tests.browser.jupyter import browser, find_chromium, notebook, running_lab
from tests.browser.latency import picture_number
from tests.browser.test_lab import shown
from tests.conftest import randomise, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]

CELL = 'from spherear.live import GuidanceExplorer\nGuidanceExplorer(vae="vae.pt", ar="SphereAR_B.pt")'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Published files of B's width, classes and 256 tokens, in random weights; fewer layers, to be drawn in a test."""
    folder, sizes = tmp_path_factory.mktemp("published"), preset("imagenet256-B")
    vae = VAE(replace(sizes.vae, encoder_layers=1, decoder_layers=1))
    ar = SphereAR(replace(sizes.ar, layers=4, head_depth=2, head_groups=1))
    torch.save({"ema": to_published(randomise(vae))}, folder / "vae.pt")
    torch.save({"ema": to_published(randomise(ar, 1))}, folder / "SphereAR_B.pt")
    return folder


def drawn(page):
    """The number of the newest token; 0 while none is drawn."""
    found = re.search(r"token (\d+) of 256", page.inner_text(".spherear-status"))
    return int(found[1]) if found else 0


def test_a_published_model_streams_and_its_classes_are_searched(folder, tmp_path):
    with running_lab(folder) as lab, browser(1280, 1300) as context:
        with notebook(context, lab, [CELL], "published") as opened:
            page = opened.page
            page.click(".spherear-more")
            said = page.locator(".spherear-machine")
            until(lambda: "million parameters" in said.inner_text(), 120)
            assert re.search(r"SphereAR_B.pt with vae.pt: .* MiB of weights; engine \w+, \w+, on c", said.inner_text())
            until(lambda: drawn(page) > 0, 240)
            first, before = drawn(page), shown(page)
            page.screenshot(path=tmp_path / "streams.png")
            until(lambda: drawn(page) > first + 1, 240)
            until(lambda: not np.array_equal(shown(page), before), 240)
            searches(page, tmp_path)
            page.click(".spherear-stop")
            page.wait_for_selector(".spherear-status >> text=stopped", timeout=240_000)
            page.locator(".spherear-panel").screenshot(path=tmp_path / "stopped.png")
            with Image.open(io.BytesIO((tmp_path / "stopped.png").read_bytes())) as picture:
                assert picture.width > 400
            assert opened.troubles == []
        assert context.refused == []


def searches(page, folder):
    """By keys: typing lists and draws nothing, Enter chooses."""
    number = picture_number(page)
    page.fill(".spherear-label-search input", "retriever")
    lines = page.locator(".spherear-label-list option")
    until(lambda: lines.count() == 5)
    assert any("golden\xa0retriever" in line for line in lines.all_inner_texts())
    page.locator(".spherear-panel").screenshot(path=folder / "search.png")
    page.fill(".spherear-label-search input", "golden r")
    until(lambda: lines.count() == 1)
    page.press(".spherear-label-search input", "Enter")
    page.wait_for_selector(".spherear-label-chosen >> text=class 207: golden retriever")
    until(lambda: picture_number(page) == number + 1, 240)
