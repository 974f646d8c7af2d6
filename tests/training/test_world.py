"""Several processes against one: two of them with gloo on the CPU, begun by torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from spherear import VAE, SphereAR
from spherear.models.files import read_json
from spherear.models.pretrained import fingerprint
from spherear.training.checkpoint import read_state
from spherear.training.data.catalog import load_data
from spherear.training.data.feed import Feed
from spherear.training.world import World, launched_world
from tests.training.test_train import AR_RECIPE

WORK = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from spherear import VAE
from spherear.models.layers import seeded
from spherear.train import train_ar, train_vae
from spherear.training.data.catalog import load_data
from spherear.training.jobs import Execution
from spherear.training.recipes import ARRecipe, VAERecipe
sys.path.insert(0, {root!r})
from tests.conftest import TINY_AR, TINY_VAE

out = Path(sys.argv[1])
base = dict(batch_size=4, learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=2, save_every=1000)
base["micro_batches"] = 2
digits = load_data("digits", 16)

def record(name, kind, steps, stop=None, **execution):
    execution = Execution(**execution)
    if kind == "ar":
        vae = seeded(0, VAE, TINY_VAE)
        recipe = ARRecipe(steps=steps, ema_decay=0.9, **base)
        states = train_ar(TINY_AR, vae, digits, recipe, out / name, execution=execution)
    else:
        recipe = VAERecipe(steps=steps, ema_decay=0.0, **base)
        states = train_vae(TINY_VAE, digits, recipe, out / name, execution=execution)
    losses = []
    for state in states:
        losses.append(state.metrics()["loss"])
        if state.step == stop:
            break
    states.close()
    if os.environ.get("RANK", "0") == "0":
        with (out / f"{{name}}.jsonl").open("a") as file:
            file.write(json.dumps(losses) + "\\n")

for call in json.loads(sys.argv[2]):
    record(**call)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def work(root, out, calls, processes):
    script = out / "work.py"
    script.write_text(WORK.format(root=str(root)))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script), str(out), json.dumps(calls)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """Every run of the tests below: two processes in one launch, then one process."""
    out, root = tmp_path_factory.mktemp("world"), request.config.rootpath
    two = [
        {"name": "ddp-vae", "kind": "vae", "steps": 50},
        {"name": "ddp-ar", "kind": "ar", "steps": 50},
        {"name": "split-ar", "kind": "ar", "steps": 50, "sharded": True},
        {"name": "split-vae", "kind": "vae", "steps": 50, "sharded": True},
        {"name": "left-ddp", "kind": "ar", "steps": 10, "stop": 6},
        {"name": "left-split", "kind": "ar", "steps": 10, "stop": 6, "sharded": True},
        {"name": "split-again", "kind": "ar", "steps": 10, "stop": 6, "sharded": True},
        {"name": "split-again", "kind": "ar", "steps": 10, "sharded": True},
    ]
    one = [
        {"name": "one-vae", "kind": "vae", "steps": 50},
        {"name": "one-ar", "kind": "ar", "steps": 50},
        {"name": "one-short", "kind": "ar", "steps": 10},
        {"name": "left-ddp", "kind": "ar", "steps": 10},
        {"name": "left-split", "kind": "ar", "steps": 10},
    ]
    work(root, out, two, 2)
    work(root, out, one, 1)
    return out


def losses(runs, name):
    lines = (runs / f"{name}.jsonl").read_text().splitlines()
    return torch.tensor([loss for line in lines for loss in json.loads(line)], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("several", "one"), [("ddp-vae", "one-vae"), ("ddp-ar", "one-ar"), ("split-ar", "ddp-ar"), ("split-vae", "ddp-vae")]
)
def test_several_processes_are_one(runs, several, one):
    ours, theirs = losses(runs, several), losses(runs, one)
    assert len(ours) == len(theirs) == 50
    assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert ours[-1] < ours[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["left-ddp", "left-split", "split-again"])
def test_a_run_saved_on_two_processes_resumes_on_one(runs, name):
    ours = losses(runs, name)
    assert len(ours) == 10
    assert_close(ours, losses(runs, "one-short"), atol=1e-5, rtol=0)
    model, expected = (SphereAR.from_pretrained(runs / folder) for folder in (name, "one-short"))
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_split_checkpoints_are_a_file_a_process(runs):
    whole = (runs / "one-ar" / "checkpoints" / "0000050" / "state.safetensors").stat().st_size
    for name in ("split-ar", "ddp-ar"):  # replicated weights are shared out too
        folder = runs / name / "checkpoints" / "0000050"
        facts = [read_json(path) for path in sorted(folder.glob("*.json"))]
        assert [(f["step"], f["processes"]) for f in facts] == [(50, 2)] * 2
        sizes = [path.stat().st_size for path in sorted(folder.glob("*.safetensors"))]
        assert len(sizes) == 2
        assert max(sizes) < 0.65 * whole
    assert isinstance(VAE.from_pretrained(runs / "split-vae"), VAE)
    assert fingerprint(SphereAR.from_pretrained(runs / "split-ar"))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_signal_to_the_launcher_stops_all_after_one_step(tmp_path, request):
    """The command line under torchrun: both processes stop together, with a checkpoint between the regular ones."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    options = [
        "--steps",
        "5000",
        "--batch-size",
        "4",
        "--micro-batches",
        "2",
        "--log-every",
        "1",
        "--save-every",
        "100000",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(request.config.rootpath),
    }
    command = [*launcher, "spherear.train", "vae", "--out", str(tmp_path / "run"), *options]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        metrics, waited = tmp_path / "run" / "metrics.jsonl", time.monotonic()
        while not metrics.exists() or '"step": 15' not in metrics.read_text():
            assert run.poll() is None, run.stderr.read()
            assert time.monotonic() - waited < 240
            time.sleep(0.2)
        run.send_signal(signal.SIGTERM)
        out, _ = run.communicate()
    assert out.count("the same command goes on") == 1
    state = read_state(tmp_path / "run")
    assert state.step >= 15
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert state.step == lines[-1]["step"]  # no step is lost


def test_a_batch_that_processes_cannot_share_equally_is_refused():
    class Three(World):
        size = 3

    with pytest.raises(ValueError, match="batch_size is 4; expected a multiple of the 3 processes"):
        Feed(load_data("digits", 16), replace(AR_RECIPE, micro_batches=2), range(2), Three(), "cpu")
    with pytest.raises(ValueError, match="micro_batches is 3; expected a divisor of the batch size, 4"):
        replace(AR_RECIPE, micro_batches=3)
    with pytest.raises(ValueError, match="sharded is True for a single process"):
        launched_world("cpu", sharded=True)
