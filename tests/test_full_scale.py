"""The README's path from nothing to a score, run at the size of digits by two processes, and the script for Slurm."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spherear import Pipeline, SphereAR, cli
from spherear.evaluation.samples import read_samples
from spherear.training.data.catalog import load_data
from spherear.training.jobs.arguments import parse_job
from tests.conftest import until
from tests.test_house import README, ROOT, torchrun_parser

SLURM = ROOT / "spherear" / "training" / "launch" / "slurm.sh"
BLOCK = re.search(r"From nothing to a score:\n\n```sh\n(.*?)```", README, re.DOTALL)
SIZES = {"imagenet256-B": "digits", "imagenet256": "digits", "folder:imagenet/val": "folder:val"}
SMALL = ["--batch-size", "8", "--micro-batches", "2", "--save-every", "5", "--log-every", "5", "--device", "cpu"]
CHANGED = {
    "vae": ["--steps", "20", *SMALL],
    "ar": ["--steps", "20", *SMALL, "--warmup-steps", "2"],
    "evaluate": ["--count", "20", "--steps", "2", "--shard", "5", "--device", "cpu", "--out", "score"],
}


def commands() -> list[list[str]]:
    """The README's commands as lists of words."""
    assert BLOCK is not None
    return [shlex.split(line) for line in BLOCK[1].replace("\\\n", " ").strip().splitlines()]


def at_digits_size(words: list[str]) -> list[str]:
    """The same command for digits on two processes: other names, fewer steps, options as they are."""
    kind = next(word for word in words if word in ("vae", "ar", "evaluate", "export"))
    changed = [SIZES.get(word, word) for word in words]
    changed = [re.sub(r"imagenet256(-B)?\b(?!\.npz)", "digits", word) for word in changed]
    numbers = {"--nproc-per-node": "2", "--workers": "1", "--validate-every": "10", "--keep-every": "5"}
    for place, word in enumerate(changed[:-1]):
        if word in numbers:
            changed[place + 1] = numbers[word]
        if (kind, word) == ("export", "--step"):
            changed[place + 1] = "10"
    if changed[0] == "torchrun":
        changed = [sys.executable, "-m", "torch.distributed.run", "--standalone", *changed[1:], *CHANGED[kind]]
    else:
        changed = [sys.executable, "-m", "spherear.cli", *changed[1:]]
    if "--reference" in changed:  # digits have a judge of their own; Inception needs a download
        place = changed.index("--reference")
        changed[place : place + 2] = ["--data", "digits", "--held-out", "folder:val"]
    return changed


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()


def write_digits(folder: Path) -> None:
    """Training digits as a tar with a folder per class, and held-out ones in folders."""
    for split, count in (("train", 200), ("test", 60)):
        data = load_data(f"digits:{split}", 16)
        images, labels = data.batch(torch.arange(count))
        files = {
            f"{label}/{i}.png": png(((image.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8))
            for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
        }
        if split == "test":
            for name, content in files.items():
                (folder / "val" / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "val" / name).write_bytes(content)
            continue
        with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def run(words: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_readmes_path_leads_from_nothing_to_a_score(tmp_path):
    """VAE, AR model, images with scores, and the model of an earlier step: each command as it is written there."""
    write_digits(tmp_path)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    kinds = [next(word for word in words if word in ("vae", "ar", "evaluate", "export")) for words in commands()]
    assert kinds == ["vae", "ar", "evaluate", "export"]
    done = {}
    for kind, words in zip(kinds, commands(), strict=True):
        done[kind] = run(at_digits_size(words), tmp_path, environment)
        assert done[kind].returncode == 0, done[kind].stderr[-4000:]
    runs = tmp_path / "runs" / "digits"
    held_out = {
        kind: [json.loads(line) for line in (runs / kind / "validation.jsonl").read_text().splitlines()]
        for kind in ("vae", "ar")
    }
    assert [line["step"] for line in held_out["vae"]] == [line["step"] for line in held_out["ar"]] == [10, 20]
    assert held_out["vae"][1]["psnr"] > held_out["vae"][0]["psnr"]
    assert held_out["ar"][1]["loss"] < held_out["ar"][0]["loss"]
    assert list((runs / "ar" / "tensorboard").iterdir())
    result = json.loads((tmp_path / "score" / "results.json").read_text())
    assert result["samples"]["settings"]["guidance_scale"] == 2.0  # the preset's
    scores = {"frechet", "precision", "recall", "held_out_loss", "held_out_psnr"}
    assert scores <= result["scores"].keys()
    assert all(np.isfinite(value) for value in result["scores"].values())
    assert result["scores"]["held_out_loss"] == pytest.approx(held_out["ar"][-1]["loss"], rel=1e-5)
    pipeline = Pipeline.from_pretrained(runs, vae=runs / "vae", device="cpu")
    assert read_samples(tmp_path / "score" / "samples.npz").shape == (20, 16, 16, 3)
    assert pipeline.ar.config.classes == tuple("0123456789")
    assert "step 10 of 20" in done["export"].stdout
    early = SphereAR.from_pretrained(tmp_path / "runs" / "early")
    assert any((a != b).any() for a, b in zip(early.parameters(), pipeline.ar.parameters(), strict=True))
    args = ["--vae", str(runs / "vae"), "--out", str(tmp_path / "x.png"), "--steps", "1", "--device", "cpu"]
    assert cli.main(["sample", "--run", str(tmp_path / "runs" / "early"), *args]) == 0


def test_the_readmes_commands_are_ones_that_bash_and_the_parsers_take(tmp_path):
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        assert subprocess.run(["bash", "-n"], input=block, text=True).returncode == 0
    for words in commands()[:2]:
        job = parse_job(torchrun_parser().parse_args(words[1:]).training_script_args)
        assert job.execution.held_out == "folder:imagenet/val"
    assert job.vae == Path("runs/imagenet256/vae")
    assert job.run == Path("runs/imagenet256-B/ar")


STUBS = {
    "torchrun": 'echo "$@" > "$HERE/torchrun"; echo $$ > "$HERE/pid"; trap "exit 1" TERM; '
    'while [ ! -e "$HERE/finish" ]; do sleep 0.05; done; exit "$(cat "$HERE/finish")"',
    "srun": 'exec "$@"',
    "scancel": 'echo "$@" > "$HERE/scancel"; kill -TERM "$(cat "$HERE/pid")"',
    "scontrol": 'if [ "$1" = show ]; then printf "node1\\nnode2\\n"; else echo "$@" > "$HERE/requeue"; fi',
}


@pytest.fixture
def cluster(tmp_path):
    """Slurm's commands and torchrun, which write down what they are asked; starts the script."""
    for name, body in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    environment = {
        **os.environ, "HERE": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
        "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_GPUS_ON_NODE": "8",
    }  # fmt: skip
    words = ["bash", str(SLURM), "ar", "--preset", "imagenet256-H", "--data", "tar:a b.tar", "--workers", "8"]
    with subprocess.Popen(words, env=environment) as script:
        until((tmp_path / "pid").exists)
        yield script
        script.kill()


@pytest.mark.skipif(os.name != "posix", reason="needs bash")
def test_the_slurm_script_requeues_a_run_that_usr1_ended(cluster, tmp_path):
    cluster.send_signal(signal.SIGUSR1)
    assert cluster.wait(60) == 1
    assert (tmp_path / "scancel").read_text() == "--signal=TERM 7\n"
    assert (tmp_path / "requeue").read_text() == "requeue 7\n"


@pytest.mark.skipif(os.name != "posix", reason="needs bash")
@pytest.mark.parametrize("status", [0, 3])
def test_the_slurm_script_ends_as_its_run_does(cluster, tmp_path, status):
    words = until(lambda: (tmp_path / "torchrun").read_text()).split()
    parsed = torchrun_parser().parse_args(words)
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_endpoint) == ("2", "8", "node1:29500")
    assert parsed.training_script == "spherear.train"
    assert parse_job(parsed.training_script_args[:3]).preset == "imagenet256-H"
    (tmp_path / "finish").write_text(str(status))
    assert cluster.wait(60) == status
    assert not (tmp_path / "requeue").exists()


def test_the_slurm_script_is_one_that_bash_takes():
    assert subprocess.run(["bash", "-n", str(SLURM)]).returncode == 0
    text = SLURM.read_text()
    assert "#SBATCH --signal=B:USR1@300\n" in text
    assert "#SBATCH --requeue\n" in text
