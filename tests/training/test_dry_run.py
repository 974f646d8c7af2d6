"""What a dry run says, against what a run takes."""

import re
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from spherear import VAE, SphereAR, train
from spherear.models.layers import seeded
from spherear.models.presets import preset
from spherear.train import train_ar, train_vae
from spherear.training.data.catalog import load_data
from spherear.training.dry_run import Estimate, _smaller, peak_bytes
from spherear.training.jobs.arguments import parse_job
from spherear.training.recipes import recipes


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry") / "vae"
    seeded(0, VAE, preset("digits").vae).save_pretrained(folder)
    return folder


def estimated(monkeypatch, args):
    """The estimate behind a dry run's lines."""
    kept = []
    real = train.estimate
    monkeypatch.setattr(train, "estimate", lambda *a: kept.append(real(*a)) or kept[-1])
    text = train.dry_run(parse_job(args))
    return kept[0], text


def test_a_peak_is_what_was_held_at_once(device):
    def work():
        torch.ones(2**23, device=device).sum()  # 32 MiB, freed at the end of the line
        torch.ones(2**22, device=device).sum()

    assert peak_bytes(work, device) == pytest.approx(2**25, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vae", "ar"])
def test_memory_is_within_15_percent_of_the_peak_of_a_run(kind, vae, monkeypatch, tmp_path, device):
    """Measured by what the allocator hands out from before the run begins to after its third step."""
    args = [kind, "--preset", "digits", "--device", device, "--run", str(tmp_path)]
    found, _ = estimated(monkeypatch, args if kind == "vae" else [*args, "--vae", str(vae)])
    data, sizes, plan = load_data("digits", 16), preset("digits"), recipes("digits")
    coder = VAE.from_pretrained(vae, device=device)

    def run():
        if kind == "vae":
            states = train_vae(sizes.vae, data, plan.vae, device=device)
        else:
            states = train_ar(sizes.ar, coder, data, plan.ar, device=device)
        for _ in range(3):
            next(states)

    measured = peak_bytes(run, device)
    print(f"{kind}: said {found.memory / 2**20:.1f} MiB, measured {measured / 2**20:.1f} MiB")
    assert abs(found.memory / measured - 1) < 0.15


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_of_b_is_within_15_percent(tmp_path, monkeypatch):
    sizes, plan = preset("imagenet256-B"), recipes("imagenet256-B")
    coder = seeded(0, VAE, sizes.vae)
    coder.save_pretrained(tmp_path / "vae")
    recipe = replace(plan.ar, batch_size=32, micro_batches=1, steps=3)
    data = load_data("shapes", 256)
    args = ["ar", "--preset", "imagenet256-B", "--vae", str(tmp_path / "vae"), "--batch-size", "32",
            "--micro-batches", "1", "--device", "cuda", "--data", "shapes"]  # fmt: skip
    monkeypatch.setattr(type(data), "classes", tuple(map(str, range(1000))))
    found, _ = estimated(monkeypatch, args)
    coder = coder.to("cuda")
    measured = peak_bytes(lambda: list(train_ar(sizes.ar, coder, data, recipe, device="cuda")), "cuda")
    assert abs(found.memory / measured - 1) < 0.15


def test_flops_and_parameters_are_counted(vae, monkeypatch, tmp_path):
    """Against the formula: 6 operations a weight and position, 4 where inputs want no gradient, and attention's."""
    args = ["ar", "--preset", "digits", "--vae", str(vae), "--run", str(tmp_path / "ar"), "--teraflops", "2"]
    found, text = estimated(monkeypatch, args)
    c, plan = preset("digits").ar, recipes("digits").ar
    model = SphereAR(c)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    linears = [m for m in model.layers.modules() if isinstance(m, torch.nn.Linear)]
    length = c.class_tokens + c.tokens - 1
    body = 6 * length * sum(m.weight.numel() for m in linears)
    rows = plan.repeats * c.tokens
    blocks = [m for m in model.head.modules() if isinstance(m, torch.nn.Linear)]
    first = model.head.time_embed.mlp[0], model.head.input_proj  # whose inputs want no gradient
    head = rows * (6 * sum(m.weight.numel() for m in blocks) - 2 * sum(m.weight.numel() for m in first))
    expected = plan.batch_size * (body + head)
    assert expected < found.flops < 1.15 * expected  # attention and the input projection beside
    assert "32 images: 22.2 epochs of 1,442" in text
    assert "seconds at 2 TFLOP/s" in text
    assert not (tmp_path / "ar").exists()


def test_time_is_arithmetic_over_rate():
    assert_close(Estimate(1, int(3e12), 0, 0).seconds(10, teraflops=5.0, devices=2), 3.0)


def test_a_dry_run_finds_what_does_not_fit(vae, tmp_path, capsys):
    assert train.main(["vae", "--dry-run", "--batch-size", "2000"]) == 2
    assert "expected at least one batch, 2000" in capsys.readouterr().err
    assert train.main(["ar", "--dry-run", "--vae", str(tmp_path)]) == 2
    (tmp_path / "run.json").write_text("{}")
    assert train.main(["ar", "--dry-run", "--vae", str(tmp_path)]) == 2
    assert "is not trained to its end; expected a finished run" in capsys.readouterr().err
    assert train.main(["vae", "--dry-run", "--data", f"folder:{tmp_path}"]) == 2
    assert "has no folders" in capsys.readouterr().err


def test_a_dry_run_refuses_what_does_not_fit_and_says_what_would(vae, tmp_path, capsys):
    """The proposals are measured anew, each by the dry run of its own options."""
    args = ["ar", "--vae", str(vae), "--dry-run", "--devices", "4", "--batch-size", "256", "--micro-batches", "4"]
    assert train.main([*args, "--device-memory", "80"]) == 0
    need = float(re.search(r"memory +([\d.]+) GiB on each of 4 devices", capsys.readouterr().out)[1])
    limit = ["--device-memory", f"{0.8 * need:.4f}"]
    assert train.main([*args, *limit]) == 2
    refusal = capsys.readouterr().err
    assert f"a step takes {need:.3g} GiB on each of 4 devices; expected at most {0.95 * 0.8 * need:.3g}" in refusal
    proposed = re.findall(r"(--[a-z-]+(?: \d+)?) \(([\d.]+) GiB\)", refusal)
    assert {name for name, _ in proposed} >= {"--micro-batches 8"}
    for name, size in proposed:
        assert train.main([*args, *limit, *name.split()]) == 0
        taken = float(re.search(r"memory +([\d.]+) GiB", capsys.readouterr().out)[1])
        assert taken == pytest.approx(float(size), rel=0.02)
    assert train.main([*args, "--device-memory", "0.001"]) == 2
    assert "none of --checkpointing, --micro-batches fits" in capsys.readouterr().err
    assert train.main([*args, "--device-memory", "-1"]) == 2
    assert "device_memory is -1.0; expected GiB" in capsys.readouterr().err
    assert not (tmp_path / "ar").exists()


def test_doubled_micro_batches_are_proposed_and_stay_equal():
    found = Estimate(0, 0, fixed=10, activations=64, per_image=1)
    recipe = replace(recipes("imagenet256-B").ar, batch_size=96, micro_batches=2)
    assert _smaller(found, recipe, 2) == {
        "--micro-batches 4": 50, "--micro-batches 8": 38, "--micro-batches 16": 32, "--micro-batches 32": 29,
    }  # fmt: skip
