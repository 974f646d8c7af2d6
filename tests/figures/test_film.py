"""The film of rising guidance: its frames show the pipeline's own images, and its loop begins with the strongest."""

import numpy as np
import pytest
import torch
from PIL import Image

from spherear import SamplingSettings, cli, tile
from spherear.figures.film import GAP, LINE, Side, draw_side, frame, model_of, save_film, words
from spherear.sampling.decode import trace

LABELS, SEED = [1, 4], 3
SMALL = ("film", "--scales", "1", "20", "--labels", "1", "4", "--seed", "3", "--zoom", "1", "--out")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


def test_a_frame_shows_what_the_pipelines_draw():
    zoom, settings = 2, SamplingSettings.named("balanced", guidance_scale=20.0)
    families = ("power_spherical", "gaussian")
    shown = pixels(frame([draw_side(family, LABELS, SEED, 20.0) for family in families], 20.0, 20.0, 2, zoom))
    for place, family in enumerate(families):
        expected = tile(model_of(family)[0].sample(LABELS, settings, SEED), 2).numpy()
        height, width = (zoom * side for side in expected.shape[:2])
        top, left = 2 * LINE * zoom, place * (width + GAP * zoom)
        found = shown[top : top + height, left : left + width]
        assert np.array_equal(found[::zoom, ::zoom], expected)
        assert np.array_equal(found[1::zoom, 1::zoom], expected)


def test_the_number_is_the_length_of_late_tokens():
    settings = SamplingSettings.named("balanced", guidance_scale=20.0)
    for family, sphere in (("power_spherical", True), ("gaussian", False)):
        pipeline, real = model_of(family)
        lengths = trace(pipeline.steps(LABELS, settings, SEED)).tokens[:, 48:].norm(dim=-1)
        side = draw_side(family, LABELS, SEED, 20.0)
        assert side.longer == pytest.approx(float((lengths / real.mean[48:]).mean()) - 1, abs=1e-5)
        assert (words(side) == "right length") == sphere
    assert words(Side("gaussian", torch.zeros(1, 3, 4, 4), -0.127)) == "13% too short"


def test_the_loop_begins_with_the_strongest_guidance(tmp_path, capsys):
    out = tmp_path / "film.gif"
    assert cli.main([*SMALL, str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: {out.stat().st_size / 1e6:.2f} MB, guidance 1 to 20\n"
    sides = {s: [draw_side(f, LABELS, SEED, s) for f in ("power_spherical", "gaussian")] for s in (1.0, 20.0)}
    with Image.open(out) as film:
        assert (film.n_frames, film.info["loop"], film.info["duration"]) == (2, 0, 1200)
        for index, scale in enumerate((20.0, 1.0)):
            film.seek(index)
            difference = np.abs(pixels(film) - pixels(frame(sides[scale], scale, 20.0, 2, 1)))
            assert difference.mean() < 3  # of 255: 256 colours


def test_frames_go_down_and_come_back(tmp_path):
    greys = [Image.new("RGB", (8, 8), (level,) * 3) for level in (10, 120, 250)]
    for ending in ("gif", "png"):
        save_film(tmp_path / f"film.{ending}", greys, pause=40)
        with Image.open(tmp_path / f"film.{ending}") as film:
            assert film.n_frames == 4
            found = []
            for index in range(4):
                film.seek(index)
                found.append((int(pixels(film)[0, 0, 0]), film.info["duration"]))
        assert found == [(250, 1200), (120, 40), (10, 1200), (120, 40)]
    with pytest.raises(ValueError, match="there are 1 frames; expected at least 2"):
        save_film(tmp_path / "one.gif", greys[:1])
    with pytest.raises(ValueError, match="pause is 0"):
        save_film(tmp_path / "one.gif", greys, 0)
    assert not (tmp_path / "one.gif").exists()


def test_an_earlier_film_stays(tmp_path, capsys):
    out = tmp_path / "film.gif"
    out.write_bytes(b"mine")
    assert cli.main([*SMALL, str(out)]) == 0
    assert (out.read_bytes(), (tmp_path / "film-2.gif").exists()) == (b"mine", True)
    assert cli.main([*SMALL, str(out), "--overwrite"]) == 0
    assert out.read_bytes() == (tmp_path / "film-2.gif").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "film.mp4"], "the ending of a film is '.mp4'; expected one of '.gif', '.png'"),
        (["--scales", "3"], "scales is (3.0,); expected at least two, rising"),
        (["--scales", "3", "1"], "scales is (3.0, 1.0); expected at least two, rising"),
        (["--scales", "1", "inf"], "guidance_scale is inf"),
        (["--families", "S", "Q"], "family is 'Q'; expected one of"),
        (["--families", "VQ"], "family is 'vq'; expected one with a shipped model of shapes"),
        (["--families"], "families is empty"),
        (["--labels", "99"], "99"),
        (["--zoom", "0"], "zoom is 0; expected at least 1"),
        (["--pause", "0"], "pause is 0; expected at least 20"),
        (["--seed", "-1"], "seed is -1; expected at least 0"),
    ],
)
def test_what_is_no_film_is_refused_first(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["film", *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
