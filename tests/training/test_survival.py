"""Runs that survive: kills, signals, bad files, steps that are not finite, other processes' shares."""

import json
import math
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from spherear.models.files import read_json
from spherear.train import train_vae
from spherear.training.checkpoint import Checkpoints, read_state, steps_of
from spherear.training.data.catalog import load_data
from spherear.training.data.dataset import ImageData
from spherear.training.jobs import Execution
from spherear.training.objectives import vae_losses
from spherear.training.run import Run
from spherear.world import World
from tests.conftest import TINY_VAE
from tests.training.test_train import AR_RECIPE, VAE_RECIPE, loop, same_weights, vae  # noqa: F401


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", 16)


KILLS = """
import os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from spherear.models.presets import preset
from spherear.models.vae import VAE
from spherear.models.layers import seeded
from spherear.train import train_ar
from spherear.training.checkpoint import read_state
from spherear.training.data.catalog import load_data
from spherear.training.recipes import recipes
from spherear.training.run import fingerprint

folder, log = Path(sys.argv[1]), sys.argv[2]
sizes, data = preset("digits"), load_data("digits", 16)
vae = seeded(0, VAE, sizes.vae)
recipe = replace(recipes("digits").ar, steps=STEPS, batch_size=2, save_every=2, log_every=1, warmup_steps=3)

def child(folder, log):
    pid = os.fork()
    if pid:
        return pid
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for state in train_ar(sizes.ar, vae, data, recipe, folder):
        os.write(handle, f"{state.step} {state.metrics()['loss'].hex()}\\n".encode())
    os._exit(0)

def weights(folder):
    from spherear.models.ar import SphereAR
    return fingerprint(SphereAR.from_pretrained(folder))

def losses(log):
    met = {}
    for line in Path(log).read_text().splitlines():
        step, loss = line.split()
        assert met.setdefault(step, loss) == loss, line  # a step met again is the step met before
    return met

def until(condition, pid):
    end = time.monotonic() + 120
    while not condition() and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        assert time.monotonic() < end, "nothing happened"

began = time.monotonic()
os.waitpid(child(folder / "whole", log + ".whole"), 0)
took = (time.monotonic() - began) / STEPS
chance, killed, writing, last, unwritten = random.Random(7), 0, 0, -1, set()
while killed < 20:
    size = Path(log).stat().st_size if Path(log).exists() else 0
    pid = child(folder / "killed", log)
    until(lambda: Path(log).exists() and Path(log).stat().st_size > size, pid)  # its first step
    if killed % 2:
        time.sleep(chance.random() * 4 * took)
    else:  # as soon as a checkpoint is being written
        until(lambda: list((folder / "killed").glob("checkpoints/*/state.safetensors.*.tmp")), pid)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status), "finished before it was killed"
    killed += 1
    writing += bool(list((folder / "killed").rglob("state*.tmp")))
    state = read_state(folder / "killed") if (folder / "killed").exists() else None
    step = -1 if state is None else state.step
    assert step >= last, "a checkpoint went back"
    if state is not None and str(step) not in losses(log):
        unwritten.add(str(step))  # killed after its checkpoint was whole and before its line was written
    last = step
assert os.waitpid(child(folder / "killed", log), 0)[1] == 0
met, whole = losses(log), losses(log + ".whole")
assert len(whole) == STEPS and met.items() <= whole.items(), "a step has another loss"
assert whole.keys() - met.keys() == unwritten, "another step has no line"
assert weights(folder / "killed") == weights(folder / "whole")
assert not list((folder / "killed").rglob("*.tmp"))
assert writing > 0 and last > 0
print(killed, "kills,", writing, "of them while a checkpoint was written, the last from step", last)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_twenty_kills_change_nothing(tmp_path):
    script = KILLS.replace("STEPS", "100")
    command = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert done.stdout.startswith("20 kills, ")


def test_the_checkpoint_before_the_last_is_kept_and_gone_back_to(digits, tmp_path):
    whole = [state.metrics() for state in loop("vae", None, digits)]
    with closing(loop("vae", None, digits, tmp_path, save_every=2)) as states:
        for _ in range(5):
            next(states)
    newest = tmp_path / "checkpoints" / "0000005" / "state.safetensors"
    assert read_state(tmp_path).step == 5
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(
        UserWarning, match=r"state.safetensors is not a complete.*going on from .*0000004/state.safetensors"
    ):
        rest = [state.metrics() for state in loop("vae", None, digits, tmp_path, save_every=2)]
    assert rest == whole[4:]


def test_a_full_disk_leaves_both_checkpoints(digits, tmp_path, monkeypatch):
    states = loop("vae", None, digits, tmp_path, save_every=2)
    for _ in range(4):
        next(states)
    before = {path: path.read_bytes() for path in tmp_path.rglob("state.*")}
    assert len(before) == 4  # two checkpoints, each with its checksums

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spherear.models.tensor_files.save_file", full)
    with pytest.raises(OSError, match=r"could not write .*state.safetensors.*what it held before is unchanged"):
        list(states)
    assert {path: path.read_bytes() for path in tmp_path.rglob("state.*")} == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_half_written_files_are_swept(digits, tmp_path):
    with closing(loop("vae", None, digits, tmp_path)) as states:
        next(states)
    (tmp_path / "run.json.123.tmp").write_bytes(b"half")
    for folder in ("0000001", "0000009"):  # a step that is complete, and one that is not
        (tmp_path / "checkpoints" / folder).mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / folder / "state.safetensors.123.tmp").write_bytes(b"half")
    with closing(loop("vae", None, digits, tmp_path)) as states:
        assert next(states).step == 2
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "checkpoints" / "0000009").exists()


def test_a_step_that_is_not_finite_is_skipped_and_counted(digits, tmp_path, monkeypatch, device):
    """The step after it starts from the weights before it; k in a row stop the run."""
    calls, bad = iter(range(1000)), {3, 4}

    def sometimes(*args):
        losses = vae_losses(*args)
        return losses | {"loss": losses["loss"] * (math.nan if next(calls) in bad else 1.0)}

    monkeypatch.setattr("spherear.train.vae_losses", sometimes)
    weights = []
    for state in loop("vae", None, digits, tmp_path, device, skip_limit=3, log_every=1):
        weights.append([p.detach().clone() for p in state.model.parameters()])
        assert math.isfinite(state.metrics()["loss"]) == (state.step - 1 not in bad)
    for a, b, same in [(2, 3, True), (3, 4, True), (4, 5, False)]:
        assert all(torch.equal(x, y) for x, y in zip(weights[a], weights[b], strict=True)) == same
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in lines] == [i in bad for i in range(8)]
    assert [line.get("skipped_steps", 0) for line in lines] == [0, 0, 0, 1, 2, 2, 2, 2]
    bad.update(range(8, 1000))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 3.*3 steps in a row"):
        list(loop("vae", None, digits, tmp_path / "b", device, skip_limit=3, log_every=1))


def test_an_infinite_gradient_is_skipped_too():
    model = torch.nn.Linear(2, 1, bias=False)
    run = Run(model, replace(AR_RECIPE, ema_decay=0.0), {})
    before = model.weight.detach().clone()
    run.accumulate({"loss": (model(torch.zeros(1, 2)) ** 2).sum().sqrt()})  # 0, with slope 0 / 0
    run.update()
    assert torch.equal(model.weight, before)
    assert run.skipped.tolist() == [1, 1]


def test_another_recipe_goes_on_only_when_told(digits, tmp_path):
    with closing(loop("vae", None, digits, tmp_path)) as states:
        next(states)
    with pytest.raises(ValueError, match="recipe.learning_rate: expected 0.001, got 0.01"):
        next(loop("vae", None, digits, tmp_path, learning_rate=0.01))
    from spherear.train import train_ar
    from tests.conftest import TINY_AR

    told, recipe = Execution(override=True), replace(VAE_RECIPE, learning_rate=0.01)
    with closing(train_vae(TINY_VAE, digits, recipe, tmp_path, execution=told)) as states:
        assert next(states).step == 2
    assert read_json(tmp_path / "run.json")["recipe"]["learning_rate"] == 0.01
    with pytest.raises(ValueError, match=r"model.latent_dim: expected 4, got 6"):
        next(train_vae(replace(TINY_VAE, latent_dim=6), digits, recipe, tmp_path, execution=told))
    from spherear import VAE

    with pytest.raises(ValueError, match=r"kind: expected 'vae', got 'ar'"):
        next(train_ar(TINY_AR, VAE(TINY_VAE), digits, AR_RECIPE, tmp_path, execution=told))


def test_a_run_from_before_a_field_existed_goes_on(digits, tmp_path):
    with closing(loop("vae", None, digits, tmp_path)) as states:
        next(states)
    facts = read_json(tmp_path / "run.json")
    del facts["recipe"]["skip_limit"]
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with closing(loop("vae", None, digits, tmp_path)) as states:
        assert next(states).step == 2


SIGNALLED = """
import os, signal, sys
from spherear import cli, train
real = train.train_vae
def loop(*args, **kwargs):
    for state in real(*args, **kwargs):
        if state.step == 3:
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        yield state
train.train_vae = loop
sys.exit(cli.main(["train", "vae", "--run", sys.argv[2], "--batch-size", "4", "--steps", "9", "--save-every", "100"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_sigterm_leaves_a_checkpoint(tmp_path):
    command = [sys.executable, "-c", SIGNALLED, "SIGTERM", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "the same command goes on" in done.stdout
    assert read_state(tmp_path / "run").step == 3


@pytest.mark.parametrize("kind", ["vae", "ar"])
def test_parts_one_after_another_are_a_batch(kind, vae, digits):  # noqa: F811
    """Gradients of two halves, averaged, against the definition: one step of plain AdamW on the mean loss."""
    whole = list(loop(kind, vae, digits, micro_batches=1, steps=3))
    halves = list(loop(kind, vae, digits, micro_batches=2, steps=3))
    assert whole[0].metrics() != halves[0].metrics()  # other random numbers
    assert_close(halves[0].metrics()["loss"], whole[0].metrics()["loss"], rtol=0.1, atol=0)
    again = list(loop(kind, vae, digits, micro_batches=2, steps=3))
    for a, b in zip(halves, again, strict=True):
        assert a.metrics() == b.metrics()
    same_weights(halves[-1].model, again[-1].model)


def test_parts_add_up_to_the_mean_gradient():
    """d/dw mean (x w)^2 = 2/n x^T x w."""
    model = torch.nn.Linear(3, 1, bias=False)
    w = model.weight.detach().clone()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    run = Run(model, replace(AR_RECIPE, ema_decay=0.0, clip=1e9), {})
    for half in x.split(2):
        run.accumulate({"loss": model(half).square().mean()}, count=2)
    state = run.update()
    assert_close(model.weight.grad, (w @ x.T @ x) / 2)
    assert_close(state.losses["loss"], (x @ w.T).square().mean())


def left_at(step, data, folder, **changes):
    """A run that was left after `step`, with a checkpoint there."""
    with closing(loop("vae", None, data, folder, **changes)) as states:
        for _ in range(step):
            next(states)


def state_of(folder, step):
    return folder / "checkpoints" / f"{step:07}" / "state.safetensors"


def test_zeros_in_the_middle_of_a_checkpoint_are_noticed(digits, tmp_path):
    whole = [state.metrics() for state in loop("vae", None, digits)]
    left_at(5, digits, tmp_path, save_every=2)
    path, size = state_of(tmp_path, 5), state_of(tmp_path, 5).stat().st_size
    with path.open("rb+") as file:  # as a bad block would
        file.seek(size // 2)
        file.write(bytes(4096))
    with pytest.warns(UserWarning, match=r"0000005/state.safetensors is damaged: .* going on from .*0000004"):
        rest = [state.metrics() for state in loop("vae", None, digits, tmp_path, save_every=2)]
    assert rest == whole[4:]


def test_a_failed_write_after_falling_back_leaves_what_was_fallen_back_to(digits, tmp_path, monkeypatch):
    left_at(5, digits, tmp_path, save_every=2)
    state_of(tmp_path, 5).write_bytes(b"damaged")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spherear.models.tensor_files.save_file", full)
    with pytest.warns(UserWarning, match="going on from"), pytest.raises(OSError, match="No space left"):
        list(loop("vae", None, digits, tmp_path, save_every=2))
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="going on from"), closing(loop("vae", None, digits, tmp_path)) as states:
        assert next(states).step == 5
    with closing(loop("vae", None, digits, tmp_path)) as states:  # the damaged one was replaced
        assert next(states).step == 6


def test_the_newest_two_stay_and_those_that_are_to_be_kept(digits, tmp_path):
    recipe, execution = replace(VAE_RECIPE, steps=30, save_every=2), Execution(keep_every=8)
    with closing(train_vae(TINY_VAE, digits, recipe, tmp_path, execution=execution)) as states:
        for _ in range(21):
            next(states)
    assert steps_of(tmp_path) == [8, 16, 20, 21]
    assert read_state(tmp_path, step=8).step == 8
    assert read_state(tmp_path, step=9) is None


def test_a_checkpoint_written_in_the_background_is_a_copy(tmp_path):
    """What changes after `write` is not in it; an error is raised at the next call."""
    tensor = torch.arange(6.0)
    checkpoints = Checkpoints(tmp_path, World(), background=True)
    checkpoints.write(1, {"x": tensor}, {})
    tensor += 1
    checkpoints.wait()
    assert read_state(tmp_path)["x"].tolist() == list(range(6))
    (tmp_path / "checkpoints" / "0000002").write_text("a file in its way")
    checkpoints.write(2, {"x": tensor}, {})
    with pytest.raises(OSError):  # noqa: PT011 (the system's words)
        checkpoints.wait()
    assert read_state(tmp_path).step == 1


class Failing(ImageData):
    """Digits whose storage fails from some read on."""

    spec, classes, image_size = "digits", tuple("0123456789"), 16

    def __init__(self, data, after):
        self.data, self.left = data, after

    def __len__(self):
        return len(self.data)

    def _read(self, indices, augmentation):
        self.left -= 1
        if self.left < 0:
            raise OSError(5, "Input/output error")
        return self.data._read(indices, augmentation)


def test_data_that_cannot_be_read_end_a_run_between_two_steps(digits, tmp_path):
    whole = [state.metrics() for state in loop("vae", None, digits)]
    with pytest.raises(OSError, match="Input/output error") as caught:
        list(loop("vae", None, Failing(digits, 5), tmp_path, save_every=100))
    assert caught.value.__notes__ == [f"{tmp_path} holds step 5; once this is mended, the same command goes on"]
    assert [state.metrics() for state in loop("vae", None, digits, tmp_path, save_every=100)] == whole[5:]


def test_what_does_not_matter_may_change_and_is_recorded(digits, tmp_path):
    left_at(2, digits, tmp_path)
    changes = {"log_every": 1, "save_every": 7, "skip_limit": 3, "max_broken": 0.5, "micro_batches": 2}
    with closing(loop("vae", None, digits, tmp_path, **changes)) as states:
        assert next(states).step == 3
    recipe = read_json(tmp_path / "run.json")["recipe"]
    assert {name: recipe[name] for name in changes} == changes
