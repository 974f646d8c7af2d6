"""The static page's files: whole or not at all, of known hashes, and small."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from spherear import cli
from spherear.live.site import build, weights
from spherear.live.site.parts import Decoder, TracedCache, model_parts, parts_of
from spherear.models.vae import VAE
from spherear.sampling.pipeline import cached_pipeline
from spherear.sphere.families import FAMILIES
from tests.node import CONFIG, find_tool

PAGE, ROOT = build.PAGE, Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static") / "site"
    size = build.write_site(folder, lambda line: None)
    assert size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return folder


@pytest.mark.slow
def test_a_site_is_small_and_holds_what_it_names(site):
    manifest = json.loads((site / build.MANIFEST).read_text())
    assert sum(path.stat().st_size for path in site.rglob("*")) <= 30e6
    for preset, about in manifest["presets"].items():
        assert (site / about["judge"]).stat().st_size > 0
        assert {path.name for path in (site / about["graphs"]).iterdir()} == {
            f"{name}.onnx" for name in ("start", "step", "head", "decoder", "judge")
        }
        for family in about["families"]:
            stored = weights.model_weights(preset, family["family"])
            content = np.fromfile(site / family["weights"], dtype=np.float16)
            expected = sum(
                stored[place.name].numel() for place in weights.Layout.load(weights.GRAPHS / preset).places["model"]
            )
            assert len(content) == expected
            assert len(family["real"]) == about["tokens"]
            assert family["color"] == FAMILIES[family["family"]].color
    letters = [[family["letter"] for family in about["families"]] for about in manifest["presets"].values()]
    assert letters == [["S", "N", "G", "F"]] * 2
    for page in site.rglob("*.html"):
        for used in re.findall(r'(?:src|href)="([^"d][^"]*)"', page.read_text()):
            assert (site / used).is_file(), used


@pytest.mark.slow
def test_the_command_replaces_an_earlier_site_alone(site, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build, "write_preset", lambda folder, name, say: {})
    target = tmp_path / "class"
    assert cli.main(["page", "--static", str(target)]) == 0
    assert "python -m http.server --directory" in capsys.readouterr().out
    (target / "old").touch()
    assert cli.main(["page", "--static", str(target)]) == 0
    assert not (target / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["class"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--static", "full"], "full holds other files; expected a new or empty folder"),
        (["--static", "file"], "file is a file; expected a folder"),
        (["--static", "new", "--port", "80"], "expected no other option beside it"),
        (["--static", "new", "--ar", "runs/mine"], "expected no other option beside it"),
    ],
)
def test_what_cannot_be_written_is_refused_before_it_begins(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "write_preset", lambda *arguments: pytest.fail("it began"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").touch()
    assert cli.main(["page", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("no such weights")

    monkeypatch.setattr(build, "write_preset", fail)
    with pytest.raises(ValueError, match="no such weights"):
        build.write_site(tmp_path / "site", lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_the_runtime_is_the_one_that_was_fetched(tmp_path):
    build.check_vendor()
    assert sum(path.stat().st_size for path in build.VENDOR.iterdir()) < 12e6
    shutil.copytree(build.VENDOR, tmp_path / "vendor")
    (tmp_path / "vendor" / "ort.js").write_text("other")
    with pytest.raises(ValueError, match="ort.js of onnxruntime-web has the hash .*; expected"):
        build.check_vendor(tmp_path / "vendor")


@pytest.mark.parametrize("preset", weights.PRESETS)
@torch.no_grad()
def test_the_parts_compute_what_the_model_does(preset):
    """One cache that is handed through against the one that is written in place."""
    pipeline = cached_pipeline(f"{preset}-power_spherical")
    ar, parts = pipeline.ar, model_parts(pipeline)
    labels, cache = torch.tensor([0, 4, ar.null_label]), ar.kv_cache(3)
    condition, past = parts["start"].module(labels)
    torch.testing.assert_close(condition, ar.head.embed_condition(ar.start(labels, cache)))
    for index in range(3):
        token = torch.linspace(-1, 1, 3 * ar.config.latent_dim).view(3, -1) * (index + 1)
        condition, new = parts["step"].module(token, past)
        past = torch.cat((past, new))
        inner = ar.step(token, cache)
        torch.testing.assert_close(condition, ar.head.embed_condition(inner), atol=1e-5, rtol=1e-5)
        velocity = parts["head"].module(token, torch.tensor([0.3]), condition)
        torch.testing.assert_close(velocity, ar.head(token, torch.full((3,), 0.3), inner), atol=1e-5, rtol=1e-5)
    tokens = torch.randn(2, ar.config.tokens, ar.config.latent_dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(parts["decoder"].module(tokens), pipeline.vae.decode(tokens))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["head", "judge"])
def test_an_export_computes_what_its_part_does(name):
    """By the reference evaluator of ONNX, on other numbers of rows than the traced one."""
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    from spherear.live.site.graphs import check_unchanged, exported

    part = parts_of("digits", "power_spherical")[name]
    model = exported(part)
    inputs = [value[:2] if axes else value for value, axes in zip(part.example, part.dynamic, strict=True)]
    values = {key: value.numpy() for key, value in zip(part.inputs, inputs, strict=True)}
    (found,) = reference.ReferenceEvaluator(model).run(None, values)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), part.module(*inputs), atol=1e-4, rtol=1e-4)
    stored = weights.stored_weights("digits", "power_spherical")[part.file]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name in stored)
    check_unchanged(tensor.name, tensor, stored[tensor.name])
    with pytest.raises(ValueError, match=f"{tensor.name} is another tensor in the graph"):
        check_unchanged(tensor.name, tensor, stored[tensor.name] + 1)


def test_a_cache_of_no_past_is_causal():
    bias = TracedCache(1).bias(torch.arange(3), 3)
    assert (bias == 0).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_weights_of_another_shape_or_dtype_are_refused():
    layout = weights.Layout.load(weights.GRAPHS / "digits")
    stored = weights.model_weights("digits", "gaussian")
    first = layout.places["model"][0]
    assert layout.pack("model", stored)[: first.nbytes] == stored[first.name].numpy().tobytes()
    for other in (stored[first.name].float(), stored[first.name][1:]):
        with pytest.raises(ValueError, match=f"{first.name} is .*; expected .*float16.*: export the graphs again"):
            layout.pack("model", stored | {first.name: other})
    with pytest.raises(ValueError, match=f"{first.name} is None"):
        layout.pack("model", {})


def test_a_bottleneck_that_changes_latents_cannot_be_exported():
    from dataclasses import replace

    config = cached_pipeline("digits-gaussian").vae.config
    with pytest.raises(ValueError, match="'decoder_normalized'; expected one that hands latents on"):
        Decoder(VAE(replace(config, bottleneck="decoder_normalized")))


def test_every_language_says_everything():
    words = build.texts()
    assert len(words) >= 3
    assert len({json.dumps(shape_of(value)) for value in words.values()}) == 1
    assert len(words["en"]["tour"]) == 6
    for value in words.values():
        assert [answer["right"] for answer in value["question"]["answers"]] == [False, True, False]
        assert set(value["families"]) == {name for name in FAMILIES if name in value["families"]}
    used = set(re.findall(r'data-(?:text|title)="(\w+)"', (PAGE / "index.html").read_text()))
    used |= set(re.findall(r"\bui\.(\w+)", "".join(path.read_text() for path in (PAGE / "js").iterdir())))
    assert used == set(words["en"]["ui"])


def shape_of(value):
    """The keys and lengths of nested words."""
    if isinstance(value, dict):
        return {key: shape_of(value[key]) for key in sorted(value)}
    return [shape_of(each) for each in value] if isinstance(value, list) else ""


def test_the_page_is_short_and_asks_nobody():
    lines = 0
    for path in (*PAGE.rglob("*.js"), *PAGE.rglob("*.html"), *PAGE.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        assert not re.findall(r"https?://(?!www\.w3\.org/)", text), path
    assert lines < 1200


@pytest.mark.slow
def test_the_page_is_typed():
    done = subprocess.run([find_tool("tsc"), "--project", str(PAGE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def lint(folder, *options):
    command = [find_tool("eslint"), "--config", str(CONFIG), "--max-warnings", "0", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_browsers_code_is_linted(tmp_path):
    """That of panels, too."""
    done = lint(ROOT, "spherear", "tests/node/eslint.config.mjs")
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "page.js").write_text("export const twice = (/** @type {number} */ x) => 2 * y;\n")
    done = lint(tmp_path, "page.js")
    assert done.returncode == 1
    assert "'y' is not defined" in done.stdout
