"""What a researcher brings: folders of pictures, and a module with parts of their own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bars", "dots", "rings")

PARTS = '''
import os
import torch
import torch.nn.functional as F
from spherear.evaluation.judge_inputs import JUDGES
from spherear.models.heads.velocity import VelocityHead
from spherear.models.sizes import HEADS
from spherear.sampling.settings import SCHEDULES
from spherear.sampling.solvers import SOLVERS, SPACINGS
from spherear.sphere.bottlenecks import Bottleneck, Latent
from spherear.sphere.families import FAMILIES
from spherear.study.design import GRIDS, Grid
from spherear.training.data.catalog import LOADERS
from spherear.training.data.dataset import ImageData


@FAMILIES.register
class Cube(Bottleneck):
    """Tokens in a cube: tanh of the features, and noise."""

    name = "cube"

    def __init__(self, dim):
        super().__init__(dim, channels=dim)

    def constrain(self, features, generator):
        if os.environ.get("CUBE_BREAKS"):
            raise ValueError("the cube is broken; expected a whole one")
        mode = torch.tanh(features)
        noise = torch.randn(mode.shape, generator=generator, device=mode.device, dtype=mode.dtype)
        return Latent(mode + 0.1 * noise, mode, mode.square().sum(-1), torch.full_like(mode, 0.1))


@HEADS.register(name="doubled")
class Doubled(VelocityHead):
    """Twice the velocity."""

    def modulated_velocity(self, x, modulation):
        return 2 * super().modulated_velocity(x, modulation)


@SCHEDULES.register
def rising(scale, index, tokens):
    return 1 + (scale - 1) * (index / tokens) ** 2


@SOLVERS.register
def leap(velocity, noise, times):
    return noise[0] + velocity(noise[0], times[0])


@SPACINGS.register
def cubed(u):
    return u ** 3


@LOADERS.register(splits=("train", "test"))
class stripes(ImageData):
    """Two classes, drawn: dark and bright stripes."""

    classes = ("dark", "bright")

    def __init__(self, split, image_size):
        self.spec = "stripes" if split == "train" else f"stripes:{split}"
        self.image_size, self.first = image_size, 0 if split == "train" else 1000

    def __len__(self):
        return 64

    def _read(self, indices, augmentation):
        labels = indices % 2
        generator = torch.Generator().manual_seed(self.first)
        phases = torch.rand(64, generator=generator)[indices]
        x = torch.linspace(0, 1, self.image_size)
        rows = 0.4 * torch.sin(12 * (x + phases[:, None])) + 0.5 * (2 * labels[:, None] - 1)
        return rows[:, None, None, :].expand(-1, 3, self.image_size, -1).contiguous(), labels


@JUDGES.register
def brightness(classes, image_size):
    class Judge(torch.nn.Module):
        def features(self, images):
            return F.adaptive_avg_pool2d(images.mean(1, keepdim=True), 3).flatten(1)

        def classify(self, features):
            mean = features.mean(1, keepdim=True)
            return torch.cat((-mean, mean), 1)

    return Judge()


GRIDS.register(
    Grid("tiny", "proposed", ("S-02", "C-02"), seeds=(0,), vae_steps=2, ar_steps=2, images=20, solver_steps=2,
         solver="euler", scales=(1.0, 3.0), data="stripes", judge="brightness")
)
'''


def write_pictures(folder: Path, size: int, grey: bool, each: int) -> Path:
    """A folder of made-up pictures in three classes, `each` of a class."""
    draws = np.random.default_rng(size)
    y, x = np.mgrid[0:size, 0:size] / size
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            centre = draws.uniform(0.3, 0.7, 2)
            radius = np.hypot(x - centre[0], y - centre[1])
            inside = (np.sin(20 * (x - centre[0])) > 0, radius < 0.2, (radius > 0.2) & (radius < 0.33))[label]
            level = (200 * inside + 20).astype(np.uint8)
            channels = (level, (level * draws.uniform(0.2, 1)).astype(np.uint8), 255 - level)
            picture = Image.fromarray(level if grey else np.stack(channels, -1))
            picture.save(folder / name / f"{number:03}.png")
    return folder


def write_module(folder: Path, name: str = "my_parts") -> Path:
    """A module outside the package that registers one part of every kind."""
    path = folder / f"{name}.py"
    path.write_text(PARTS, encoding="utf-8")
    return path


def command(*args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A `spherear` command in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "spherear.cli", *args], cwd=cwd, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done
