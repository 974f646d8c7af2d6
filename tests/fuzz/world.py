"""Good files that cases damage copies of, and the ways in which they are damaged."""

import contextlib
import json
import math
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spherear import VAE, Pipeline, SamplingSettings, SphereAR
from spherear.live.picture import Picture, png_bytes
from spherear.models.published_weights import to_published
from spherear.study.records import shipped_records, write_records
from spherear.train import train_vae
from spherear.training.data import load_data
from spherear.training.data.cached import encode_all
from spherear.training.recipes import recipes
from tests.conftest import TINY_AR, TINY_VAE, randomise
from tests.evaluation import stand_ins

TINY_STEPS = {"steps": 2, "batch_size": 4, "warmup_steps": 0, "save_every": 1, "log_every": 1}
FAST = SamplingSettings(1.0, steps=1, solver="euler")


class Accepted(Exception):
    """A bad input was taken."""


@dataclass
class World:
    """Good files, made once in a temporary folder; torch-fidelity is a stand-in, as in the tests of scores."""

    root: Path

    def __post_init__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        stand_ins.install(self.patch)
        self.patch.setattr("spherear.live.server.run_lab", _no_server)
        self.patch.setattr("spherear.live.site.build.write_preset", _no_site)
        self.vae, self.ar = randomise(VAE(TINY_VAE)), randomise(SphereAR(TINY_AR), 1)
        self.models = self.root / "models"
        Pipeline(self.vae, self.ar).save_pretrained(self.models)
        published = {f"vae.{k}": v for k, v in to_published(VAE(replace(TINY_VAE, widths=(16, 16, 64)))).items()}
        torch.save({"model": published}, self.root / "published.pt")
        self.digits, self.recipe = load_data("digits", 16), replace(recipes("digits").vae, **TINY_STEPS)
        self.run = self.root / "run"
        with contextlib.closing(train_vae(TINY_VAE, self.digits, self.recipe, self.run)) as states:
            next(states)
        self._make_pictures()
        encode_all(self.vae, self.few(), folder=self.root / "cache")
        picture = Picture(("digits-vq",), (1, 2), 0, SamplingSettings(), columns=2)
        self.panel = png_bytes(np.zeros((8, 8, 3), np.uint8), picture)
        self.settings = picture.to_dict()
        images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
        width = stand_ins.WIDTH
        np.savez(self.root / "samples.npz", arr_0=images)
        np.savez(self.root / "adm.npz", arr_0=images, mu=np.zeros(width), sigma=np.eye(width))
        write_records(self.root / "records.jsonl", shipped_records()[:40])

    def _make_pictures(self) -> None:
        self.images = self.root / "images"
        for number, (name, mode) in enumerate((("a.png", "RGB"), ("b.jpg", "RGB"), ("c.bmp", "L"), ("d.webp", "RGB"))):
            path = self.images / f"class-{number}" / name
            path.parent.mkdir(parents=True)
            pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(path)
        self.pictures = sorted(path for path in self.images.rglob("*") if path.is_file())
        with tarfile.open(self.root / "images.tar", "w") as tar:
            tar.add(self.images, arcname="images")

    def few(self) -> Any:
        """A data set of four pictures."""
        return load_data(f"folder:{self.images}", 16)

    def close(self) -> None:
        """Take the stand-ins out again."""
        self.patch.undo()


def _no_server(command: list[str]) -> int:
    raise Accepted(f"a server was started: {command}")


def _no_site(site: Path, preset: str, say: object) -> None:
    raise Accepted(f"a site was begun: {site}")


def refused(function: Callable[..., object], *args: object, named: str = "") -> None:
    """Call it; Accepted unless it refuses."""
    function(*args)
    raise Accepted(named or f"{args!r}"[:300])


def words(rng: random.Random) -> str:
    """A word that is no name of anything here."""
    letters = "abcxyz0189 -_/.@#?:é漢\\'\"%{}"
    return "zz" + "".join(rng.choice(letters) for _ in range(rng.randrange(1, 9)))


def garbage(rng: random.Random, most: int = 400) -> bytes:
    """Random bytes."""
    return rng.randbytes(rng.randrange(most))


def damage(rng: random.Random, content: bytes, head: int) -> bytes:
    """Content that is cut short, replaced, or changed within its first `head` bytes."""
    kind = rng.randrange(4)
    if kind == 0:
        return content[: rng.randrange(len(content))]
    if kind == 1:
        return garbage(rng)
    if kind == 2:
        return garbage(rng, 64) + content
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 9)):
        changed[rng.randrange(min(head, len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def bad_json(rng: random.Random) -> Any:
    """A value of any JSON type, of another than is expected in most places."""
    values = [None, True, -1, 0, 1.5, -2.5, math.nan, 10**30, "", words(rng), [], [1], [[]], ["x"], {}, {"a": 1}]
    return rng.choice(values)


def damaged_json(rng: random.Random, values: dict[str, Any]) -> str:
    """A JSON object with a value changed, missing or added, or text that is none."""
    kind, name = rng.randrange(5), rng.choice(sorted(values))
    if kind == 0:
        return json.dumps(values)[: rng.randrange(len(json.dumps(values)))]
    if kind == 1:
        return rng.choice(["", "null", "[]", "3", '"x"', "{]", "\ufeff{}", "{'a': 1}", "[" * 99_000])
    if kind == 2:
        return json.dumps({**values, words(rng): bad_json(rng)})
    if kind == 3:
        return json.dumps({k: v for k, v in values.items() if k != name})
    return json.dumps({**values, name: bad_json(rng)})
