"""The guidance panel as it opens: what it says is what it shows, the strip of scales, code, downloads, other models."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from spherear import Pipeline
from spherear.evaluation.classifier import load_classifier
from spherear.evaluation.judge import as_saved
from spherear.live import GuidanceExplorer
from spherear.live.parts import words
from spherear.live.parts.guidance_controls import STRIP
from spherear.live.parts.models import fitting_preset
from spherear.live.parts.strip import FONT, GAP
from spherear.live.picture import sheet
from spherear.sampling.decode import trace
from spherear.sampling.pipeline import cached_pipeline
from spherear.training.data.catalog import load_data
from tests.conftest import as_the_panel_runs
from tests.live.test_panels import settled


@pytest.fixture(scope="module")
def opened():
    panel = settled(GuidanceExplorer(settings="fast"))
    yield panel
    panel.close()


@pytest.fixture
def digits():
    panel = settled(GuidanceExplorer(preset="digits", settings="fast", label=3, images=4))
    yield panel
    panel.close()


def test_it_opens_on_one_of_each_in_colour_at_a_large_guidance(opened):
    picture = opened.read().picture
    assert picture.models == ("shapes-power_spherical", "shapes-gaussian")
    assert picture.labels == tuple(range(10))
    assert picture.settings.guidance_scale == 12.0
    assert (opened.others.layout.display, opened.more.value) == ("none", False)
    offered = [name for _, name in opened.family.options]  # every family that ships in colour
    assert {f"shapes-{f}" for f in ("fixed_variance", "normalized_gaussian")} | set(picture.models) <= set(offered)
    assert "on the sphere" in opened.model_columns[0].title.value
    assert "free" in opened.model_columns[1].title.value


@torch.no_grad()
def by_another_path(name, settings):
    """What the sentence says, from one batch: share recognised, and lengths of the last quarter over those of real."""
    pipeline, labels = cached_pipeline(name), torch.arange(10)
    decoded = trace(pipeline.steps(labels, settings, 0))
    images = as_saved(pipeline.images(decoded.tokens))
    judge = load_classifier("shapes")
    right = int((judge(images).argmax(1) == labels).sum())
    real, _ = load_data("shapes:test", 32).batch(torch.arange(100))
    usual = pipeline.vae.encode(real, torch.Generator().manual_seed(7)).sample.norm(dim=-1)[:, 48:].mean(0)
    lengths = [float((tokens.norm(dim=-1)[:, 48:] / usual).mean()) - 1 for tokens in (decoded.raw, decoded.tokens)]
    return right, lengths, float(images.std(dim=(1, 2, 3)).mean() / real.std(dim=(1, 2, 3)).mean()) - 1


def test_the_sentence_says_what_is_seen(opened):
    said = re.sub(r"<.*?>", "", opened.sentence.value)
    assert said.startswith("At guidance 12, ")
    for part, name in zip(said.split(";"), opened.read().picture.models, strict=True):
        right, (raw, handed_on), colour = by_another_path(name, opened.read().picture.settings)
        assert f"{right} of 10 images recognised" in part
        contrast = int(re.search(r"contrast (\d+)% too", part)[1])
        assert contrast == pytest.approx(abs(100 * colour), abs=1)
        if name.endswith("spherical"):
            assert "late tokens of the right length" in part
            assert int(re.search(r"(\d+)% too long before the projection", part)[1]) == pytest.approx(100 * raw, abs=2)
        else:
            assert int(re.search(r"late tokens (\d+)% too long", part)[1]) == pytest.approx(100 * handed_on, abs=3)
            assert handed_on > 0.1


def test_below_the_images_stands_what_they_were_asked_to_be(opened):
    picture = opened.read().picture
    classes = load_data("shapes", 32).classes
    said = re.sub(r"<.*?>", "", opened.caption.value)
    rows = re.fullmatch(r"Row by row: (.*)\. Recognised: by a classifier that learnt real images\.", said)[1].split(
        "; "
    )
    assert [row.split(", ") for row in rows] == [list(classes[:5]), list(classes[5:])]
    assert picture.columns == 5
    opened.browser.narrow = True
    settled(opened)
    assert opened.caption.value.count(";") == 4
    opened.browser.narrow = False
    settled(opened)
    assert words.caption(["a<b"] * 3, 2, judged=False) == "<small>All images: a&lt;b.</small>"


def test_both_plots_of_lengths_have_one_axis_and_the_band_of_real_tokens(opened):
    spherical, gaussian = (column.trace for column in opened.model_columns)
    assert spherical.layout.yaxis.range == gaussian.layout.yaxis.range
    np.testing.assert_allclose(spherical.data[5].y, 2.0, rtol=1e-5)  # real tokens of the sphere have one length
    np.testing.assert_allclose(spherical.data[6].y, 2.0, rtol=1e-5)
    assert (np.array(gaussian.data[6].y) - np.array(gaussian.data[5].y)).min() > 0.5
    assert gaussian.layout.yaxis.range[1] > max(gaussian.data[6].y)


def test_a_strip_of_scales_holds_the_pictures_of_each(digits):
    assert digits.strip.value == b""
    digits.strip_button.click()
    settled(digits)
    with Image.open(io.BytesIO(digits.strip.value)) as image:
        strip = np.asarray(image.convert("RGB"))
    picture = digits.read().picture
    for row, name in enumerate(picture.models):
        for place, scale in enumerate(STRIP):
            settings = replace(picture.settings, guidance_scale=scale)
            images = as_the_panel_runs(name).sample([3] * 4, settings, seeds=0)
            expected = sheet(images, 3, picture.zoom)
            height, width, _ = expected.shape
            top, left = FONT + GAP + row * (height + GAP), place * (width + GAP)
            np.testing.assert_array_equal(strip[top : top + height, left : left + width], expected)
    assert "Guidance 1, 4.5, 12, 20 from left to right" in digits.browser.texts["strip"]
    digits.scale.value = 5.0
    settled(digits)
    assert digits.strip.value != b""  # the same images at other scales
    digits.seed.value = 9
    settled(digits)
    assert digits.strip.value == b""


def test_a_strip_is_stopped_and_says_how_far_it_came(digits):
    digits.steps.value = 60
    settled(digits)
    shown = digits.model_columns[0].pixels
    digits.strip_button.click()
    digits.strip.observe(lambda _: digits.stop(), "value")
    settled(digits)
    assert re.search(r"stopped after \d of 4 scales", digits.strip_text.value)
    np.testing.assert_array_equal(digits.model_columns[0].pixels, shown)


def test_code_is_copied_and_it_is_said_whether_the_browser_allowed_it(digits, monkeypatch):
    sent = []
    monkeypatch.setattr(digits.browser, "send", lambda content, buffers=None: sent.append(content))
    for number, (allowed, said) in enumerate([(True, "in your clipboard"), (False, "select all, and copy")]):
        digits.copy_code.click()
        assert sent[-1] == {"copy": digits.code.value, "number": number}
        digits.browser._handle_custom_msg({"number": number, "copied": allowed}, [])
        assert said in digits.note.value


def test_pictures_are_downloads_unless_a_folder_is_given(digits, monkeypatch, tmp_path):
    sent = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits.browser, "send", lambda content, buffers=None: sent.append((content, buffers)))
    digits.file.value = "mine"
    digits.save_png.click()
    ((content, (png,)),) = sent
    assert content == {"save": "mine.png"}
    assert png.startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == []


def test_pictures_have_a_description(opened):
    texts = opened.browser.texts
    assert texts["grid-0"].startswith("Images of each class, drawn by S Power Spherical at guidance 12: ")
    assert "G Gaussian" in texts["grid-1"]
    assert not any("<" in text for text in texts.values())
    assert "Lengths of tokens" in texts["trace-1"]


def test_a_narrow_page_has_the_same_images_in_fewer_columns(opened):
    started = opened.runner.started
    before = opened.model_columns[1].pixels
    opened.browser.narrow = True
    settled(opened)
    narrow, picture = opened.model_columns[1].pixels, opened.read().picture
    _, canvases = opened._last
    np.testing.assert_array_equal(narrow, sheet(canvases[1].images(), 2, picture.zoom))
    assert picture.columns == 5  # as it is saved
    opened.browser.narrow = False
    settled(opened)
    np.testing.assert_array_equal(opened.model_columns[1].pixels, before)
    assert opened.runner.started - started == 2
    assert "picture 1" in opened.status.value  # nothing was drawn again


def test_shipped_families_stand_beside_what_suits_them(tiny_vae, tiny_ar):
    assert fitting_preset("gaussian") == "shapes"
    assert fitting_preset("vq") == "digits"
    assert fitting_preset("digits-gaussian") == "digits"
    assert fitting_preset(cached_pipeline("shapes-gaussian")) == "shapes"
    assert fitting_preset(Pipeline(tiny_vae, tiny_ar)) == "digits"  # 16 tokens, ten classes


def test_classes_have_the_names_of_their_data_set():
    panel = settled(GuidanceExplorer(label="one ring", images=1, settings="fast", compare=None))
    assert panel.read().picture.labels == (4,)
    assert "class one ring" in panel.browser.texts["grid-0"]
    panel.close()


def test_a_model_of_unknown_data_is_described_without_a_judge(tiny_vae, tiny_ar):
    panel = settled(GuidanceExplorer(Pipeline(tiny_vae, tiny_ar), images=1, settings="fast"))
    assert "late tokens" in panel.sentence.value
    assert "recognised" not in panel.sentence.value
    assert "contrast" not in panel.sentence.value
    panel.close()
