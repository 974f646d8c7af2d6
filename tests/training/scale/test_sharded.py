"""Sharded runs (FSDP2) on two processes: they compute what replicated ones do, and no step waits for the device."""

import json
import os
import subprocess
import sys

import pytest

WORK = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
from torch.distributed.tensor import DTensor
from spherear import VAE
from spherear.models.heads.velocity import VelocityHead
from spherear.models.layers import Block, seeded
from spherear.train import train_ar
from spherear.training.data.catalog import load_data
from spherear.training.jobs import Execution
from spherear.training.run import Run
from spherear.world import whole
from tests.conftest import TINY_AR, TINY_VAE
from tests.training.test_train import AR_RECIPE

out, digits, found = Path(sys.argv[1]), load_data("digits", 16), {{}}
seen = set()
real_forward, real_step, real_draws = Block.forward, Run._step_optimizers, VelocityHead.draws

def forward(self, x, *args, **options):
    if self.training:  # the model, not the VAE that encodes for it
        seen.add((str(self.attention.wqkv.weight.dtype), str(self.attention_norm.weight.dtype)))
    return real_forward(self, x, *args, **options)

def waits(self):
    raise AssertionError("the step waits for the device")

def step(self, finite):
    kept = torch.Tensor.__bool__
    torch.Tensor.__bool__ = waits
    try:
        real_step(self, finite)
    finally:
        torch.Tensor.__bool__ = kept

Run._step_optimizers = step

def losses(precision, sharded, bad=None):
    recipe = replace(AR_RECIPE, steps=8, micro_batches=2, precision=precision, log_every=100)
    states = train_ar(TINY_AR, seeded(0, VAE, TINY_VAE), digits, recipe, execution=Execution(sharded=sharded))
    values, weights = [], []
    for state in states:
        values.append(state.metrics()["loss"])
        weights.append(float(sum(whole(p.detach()).double().abs().sum() for p in state.model.parameters())))
        hit.clear()
        if state.step == bad:
            hit.append(True)
    return values, weights

hit = []
def draws(self, *inputs):
    drawn = real_draws(self, *inputs)
    return drawn | {{"times": drawn["times"] * float("nan")}} if hit else drawn

VelocityHead.draws = draws
for precision in ("float32", "bfloat16"):
    found[precision] = [losses(precision, flag)[0] for flag in (False, True)]
found["skipped"] = [losses("float32", flag, bad=3) for flag in (False, True)]
Block.forward = forward
losses("bfloat16", True)
found["dtypes"] = sorted(seen)
if os.environ["RANK"] == "0":
    (out / "found.json").write_text(json.dumps(found))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_sharded_run_is_the_replicated_one_and_waits_for_nothing(tmp_path, request):
    """In both precisions, with a step that is not finite and is skipped; blocks in bfloat16, their norms in float32."""
    root = str(request.config.rootpath)
    (tmp_path / "work.py").write_text(WORK.format(root=root))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": root}
    done = subprocess.run(
        [*command, str(tmp_path / "work.py"), str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for precision, limit in (("float32", 1e-5), ("bfloat16", 1e-3)):
        replicated, sharded = found[precision]
        assert sharded == pytest.approx(replicated, abs=limit)
    (losses, weights), (sharded_losses, sharded_weights) = found["skipped"]
    assert losses[3] != losses[3]  # the fourth loss is not a number
    assert sharded_losses[3] != sharded_losses[3]
    assert sharded_losses[4:] == pytest.approx(losses[4:], abs=1e-5)
    assert all(weight == weight for weight in (*weights, *sharded_weights))
    assert sharded_weights == pytest.approx(weights, rel=1e-6)
    assert found["dtypes"] == [["torch.bfloat16", "torch.float32"]]
