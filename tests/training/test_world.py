"""Several processes against one: two of them with gloo on the CPU, begun by torchrun."""

import json
import os
import re
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
from spherear.models.layers import seeded
from spherear.models.pretrained import fingerprint
from spherear.training.checkpoint import read_state
from spherear.training.data.cached import encode_all
from spherear.training.data.catalog import batches, load_data
from spherear.training.data.feed import Feed
from spherear.training.recipes import recipes
from spherear.world import World, launched_world
from tests.conftest import TINY_VAE
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
    environment["ACCELERATE_MIXED_PRECISION"] = "bf16"  # of another tool: it changes nothing
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


AGREE = """
import json, os, shutil, sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
from spherear import VAE
from spherear.models.layers import seeded
from spherear.train import train_vae
from spherear.training import run_file
from spherear.training.data.cached import encode_all
from spherear.training.data.catalog import load_data
from spherear.training.data.dataset import ImageData
from spherear.world import launched_world
from tests.conftest import TINY_VAE
from tests.training.test_train import VAE_RECIPE

out, rank, found = Path(sys.argv[1]), int(os.environ["RANK"]), {{}}
run_file.VISIBLE = 1.0
digits, world = load_data("digits", 16), launched_world("cpu")
recipe = replace(VAE_RECIPE, save_every=1, micro_batches=2)

def error(data, folder, **changes):
    try:
        list(train_vae(TINY_VAE, data, replace(recipe, **changes), folder))
    except (ValueError, OSError) as raised:
        return f"{{type(raised).__name__}}: {{raised}}"
    return "none"

class Few(ImageData):  # 100 digits, of which some are broken
    spec, classes, image_size = "few", digits.classes, 16
    def __init__(self, bad):
        self.bad, self.broken = bad, {{}}
    def __len__(self):
        return 100
    def _read(self, indices, augmentation):
        for index in set(indices.tolist()) & self.bad:
            self.broken[str(index)] = "bad"
        return digits._read(indices, augmentation)

class Hiccup(Few):  # one process cannot read its fourth batch
    left = 3
    def _read(self, indices, augmentation):
        self.left -= 1
        if rank == 1 and self.left < 0:
            raise OSError("the disk of process 1 is gone")
        return super()._read(indices, augmentation)

own = out / f"own-{{rank}}"
with closing(train_vae(TINY_VAE, digits, recipe, out / "shared")) as states:
    for _ in range(4):
        next(states)
world.wait()  # the first process may still write a checkpoint, or remove an older one
shutil.copytree(out / "shared", own)
if rank == 1:
    shutil.rmtree(own / "checkpoints" / "0000004")
found["older"] = error(digits, own)
shutil.rmtree(own) if rank == 1 else None
world.wait()
found["missing"] = error(digits, own)
found["one in a hundred"] = error(Few({{7}}), None, steps=75, max_broken=0.01)
found["two in a hundred"] = error(Few({{7, 8}}), None, steps=75, max_broken=0.01)
found["hiccup"] = error(Hiccup(set()), out / "hiccup")
calls, real = [], VAE.features
VAE.features = lambda self, images: calls.append(len(images)) or real(self, images)
found["fingerprint"] = float(encode_all(seeded(0, VAE, TINY_VAE), digits, world=world).features.double().sum())
found["encoded"] = sum(calls)
encode_all(seeded(0, VAE, TINY_VAE), digits, folder=out / "cache", world=world)
found["stored"] = sum(calls) - found["encoded"]
(out / f"found-{{rank}}.json").write_text(json.dumps(found))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_agree_or_say_about_what_they_do_not(tmp_path, request):
    (tmp_path / "work.py").write_text(AGREE.format(root=str(request.config.rootpath)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run([*command, str(tmp_path / "work.py"), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    for one in found:
        assert re.search(r"ValueError: the processes disagree about .*own-\d \(step by process: 4, 3\)", one["older"])
        assert re.search(r"the processes disagree about .*own-\d \(step by process: 4, 0\)", one["missing"])
        assert one["one in a hundred"] == "none"  # found by one process, or in turn by both
        assert "ValueError: 2 of 100 images are broken, more than max_broken, 0.01" in one["two in a hundred"]
    assert second["hiccup"] == "OSError: the disk of process 1 is gone"
    assert "another process could not read its data" in first["hiccup"]
    assert read_state(tmp_path / "hiccup").step == 3  # between two steps, on both
    whole = encode_all(seeded(0, VAE, TINY_VAE), load_data("digits", 16))
    assert first["fingerprint"] == second["fingerprint"] == float(whole.features.double().sum())
    for name in ("encoded", "stored"):
        assert first[name] + second[name] == 1442
        assert min(first[name], second[name]) > 600
    stored = encode_all(seeded(0, VAE, TINY_VAE), load_data("digits", 16), folder=tmp_path / "cache")
    assert torch.equal(stored.features, whole.features)
    assert torch.equal(stored.labels, whole.labels)


def test_more_processes_than_micro_batches_share_the_same_batch():
    """16 processes and 8 micro-batches: one each, of half the size; 4 processes: two each; 3: refused."""
    recipe = recipes("imagenet256-B").ar
    assert [recipe.micro_batches_on(n) for n in (1, 2, 4, 8, 16, 32)] == [8, 8, 8, 8, 16, 32]

    class Sixteen(World):
        size = 16

    data, met = load_data("digits", 16), []
    for rank in range(16):
        world = Sixteen()
        world.rank = rank
        feed = Feed(data, replace(AR_RECIPE, batch_size=32, micro_batches=8), range(2), world, "cpu")
        met.append([[index for _, indices in parts for index in indices.tolist()] for _, parts in feed._keys()])
    order = list(batches(data, 32, AR_RECIPE.seed, range(2)))
    for step in (0, 1):
        assert [index for one in met for index in one[step]] == order[step].tolist()
    with pytest.raises(ValueError, match="batch_size is 512; expected a multiple of the 3 processes"):
        recipe.micro_batches_on(3)
