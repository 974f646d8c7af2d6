"""Shared by every test: no network, few threads, and the devices that are there."""

import json
import math
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker; pytest-xdist has as many workers as cores

import jaxtyping
import numpy as np
import psutil
import pytest
import torch

from spherear import VAE, ARConfig, Pipeline, SphereAR, VAEConfig

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Every device a test can run on here."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@cache
def as_the_panel_runs(name: str) -> Pipeline:
    """A shipped model with the engine of the guidance panel."""
    return Pipeline.from_pretrained(name, device="cpu", engine="numpy")


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What the condition gives once it is true; fails after a minute."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.005)
    pytest.fail("it did not happen")


def ended(process: psutil.Process) -> bool:
    """Gone, or a zombie: an orphan that no one has waited for."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def as_users_run(script: str, fails: bool = False, **environment: str) -> str:
    """What a script prints, in a process of its own: the tests' run-time checks and a compiler do not go together.

    It must end well, or badly if it `fails`.
    """
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def draw(name: str, *shape: int) -> torch.Tensor:
    """The golden numbers' frozen formula: a standard normal array that depends on its name alone."""
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(stream.standard_normal(math.prod(shape)).reshape(shape))


def golden_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """A state dict filled by the golden formula: keys and shapes in, float32 tensors out."""
    weights = {}
    for key, shape in shapes.items():
        noise = draw(key, *shape)
        if len(shape) == 1:
            value = 0.1 * noise + (1.0 if key.endswith("weight") else 0.0)
        elif any(part in key for part in ("embedding", "register_token", "pos_for_diff")):
            value = 0.5 * noise
        else:
            value = noise / math.sqrt(math.prod(shape[1:]))
        weights[key] = value.float()
    return weights


@pytest.fixture(scope="session")
def golden_json() -> dict:
    return json.loads((GOLDEN / "reference.json").read_text())


@pytest.fixture(scope="session")
def golden_arrays() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "reference.npz") as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


@pytest.fixture
def as_users_do():
    """Without the run-time shape and type checks that only the tests switch on: what a user would see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


TINY_VAE = VAEConfig(latent_dim=4, image_size=16, widths=(16, 16, 32), encoder_layers=1, decoder_layers=1,
                     head_width=16)  # fmt: skip
TINY_AR = ARConfig(latent_dim=4, tokens=16, num_classes=10, class_tokens=3, width=32, layers=2, heads=2,
                   head_width=32, head_depth=2, head_groups=1)  # fmt: skip


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fill every weight with moderate noise, so that no layer is silent as freshly initialised ones are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.1 * noise if weight.ndim == 1 else noise / math.sqrt(weight[0].numel()))
    return model.eval()


@pytest.fixture
def tiny_vae() -> VAE:
    return randomise(VAE(TINY_VAE))


@pytest.fixture
def tiny_ar() -> SphereAR:
    return randomise(SphereAR(TINY_AR), seed=1)
