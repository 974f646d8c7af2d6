"""Doors of models and settings: configs, model folders, published files, the settings inside a panel's PNG."""

import io
import json
import math
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from spherear import ARConfig, Pipeline, SamplingSettings, VAEConfig, load_published
from spherear.live.picture import Picture, png_bytes, read_picture
from spherear.study.design import GRIDS, Grid
from spherear.study.runner import open_study
from spherear.training.recipes import ARRecipe, VAERecipe, recipes
from tests.conftest import TINY_AR, TINY_VAE
from tests.fuzz.commands import run_command
from tests.fuzz.world import FAST, World, bad_json, damage, damaged_json, garbage, refused, words

Case = Callable[[], object]
"""Must refuse, or come to a sound end."""

CONFIGS: list[tuple[type[Any], dict[str, Any]]] = [
    (VAEConfig, TINY_VAE.to_dict()),
    (ARConfig, TINY_AR.to_dict()),
    (SamplingSettings, SamplingSettings().to_dict()),
    (VAERecipe, recipes("digits").vae.to_dict()),
    (ARRecipe, recipes("shapes").ar.to_dict()),
]
BAD: list[tuple[type, list[Any]]] = [
    (bool, [None, 1, 0.0, "yes", [], {}]),
    (int, [None, True, 1.5, math.nan, "3", [3], {}, -2, -(10**9), 10**30]),
    (float, [None, True, "0.5", [0.5], {}, math.nan, math.inf, -math.inf, -2.0]),
    (str, [None, True, 3, 0.5, [], {}, "zz", ""]),
    (tuple, [None, 3, "xy", {}, ["a"], [None], [-8], [16, 0], [16.5], [17], [True]]),
    (list, [None, 3, "xy", {}, ["a"], [None], [-8], [16, 0], [16.5], [17], [True]]),
]
"""Of a field's type: values that no field of it takes."""


def door_configs(rng: random.Random, world: World, folder: Path) -> Case:
    """A config with one field of another type, out of its range, or unknown."""
    kind, good = rng.choice(CONFIGS)
    field = rng.choice(fields(kind))
    bad = next(values for of_type, values in BAD if isinstance(good[field.name], of_type))
    value = rng.choice([x for x in bad if not (x == 10**30 and field.name == "seed" and kind is SamplingSettings)])
    change = {field.name: value} if rng.random() < 0.9 else {words(rng): bad_json(rng)}
    make: Callable[[dict[str, Any]], object] = kind.from_dict
    if kind is SamplingSettings and rng.random() < 0.3:
        make = lambda values: SamplingSettings.from_json(json.dumps(values))  # noqa: E731
    return lambda: refused(lambda: make({**good, **change}), named=f"{kind.__name__} with {change}")


def door_settings(rng: random.Random, world: World, folder: Path) -> Case:
    """A file of settings that is damaged; what can still be read has finite numbers and draws."""
    path = folder / "settings.json"
    path.write_text(damaged_json(rng, SamplingSettings().to_dict()), encoding="utf-8")

    def load() -> None:
        settings = SamplingSettings.load(path)
        assert all(math.isfinite(settings.scale_at(index, 16)) for index in range(16))
        assert settings.times()[0] == 0

    return load


def door_checkpoints(rng: random.Random, world: World, folder: Path) -> Case:
    """A model's folder with one file damaged, missing, or of another model; loaded, or drawn from by a command."""
    part, models = rng.choice(["vae", "ar"]), folder / "models"
    shutil.copytree(world.models, models)
    weights, config = (models / part / name for name in ("model.safetensors", "config.json"))
    kind = rng.randrange(6)
    if kind == 0:
        content = weights.read_bytes()
        weights.write_bytes(damage(rng, content, 8) if rng.random() < 0.5 else content[: -rng.randrange(1, 99)])
    elif kind == 1:
        rng.choice([weights, config]).unlink()
    elif kind == 2:
        config.write_text(damaged_json(rng, json.loads(config.read_text())), encoding="utf-8")
        return lambda: _sound_pipeline(models)
    elif kind == 5:
        name = rng.choice(
            ["nowhere", words(rng), "./" + words(rng), "no/such", str(weights), "~zz", "~zz/" + words(rng)]
        )
        return lambda: refused(Pipeline.from_pretrained, name)
    else:
        save_file(_changed(rng, load_file(weights), kind == 3), weights)
    if rng.random() < 0.2:
        out = folder / "x.png"
        return lambda: run_command(["sample", "--run", str(models), "--steps", "1", "--out", str(out)])
    return lambda: refused(Pipeline.from_pretrained, models)


def _changed(rng: random.Random, tensors: dict[str, torch.Tensor], shape: bool) -> dict[str, torch.Tensor]:
    """One tensor of another shape, or missing, perhaps with another in its place."""
    name = rng.choice(sorted(tensors))
    if shape:
        change = rng.choice([lambda t: t[None], lambda t: t.flatten()[:1], lambda t: torch.zeros(3, 3, 3, 3, 3)])
        return {**tensors, name: change(tensors[name]).contiguous()}
    tensors.pop(name)
    return {**tensors, **({words(rng): torch.zeros(1)} if rng.random() < 0.5 else {})}


def _sound_pipeline(folder: Path) -> None:
    """A changed config can still be one; then the pipeline must draw."""
    images = Pipeline.from_pretrained(folder).sample([0], FAST, 0)
    assert images.shape[:2] == (1, 3)


def door_published(rng: random.Random, world: World, folder: Path) -> Case:
    """A file in the published format: cut, replaced, of other content, or with a tensor missing or of another shape."""
    path, content = folder / "x.pt", (world.root / "published.pt").read_bytes()
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == 1:
        path.write_bytes(rng.choice([garbage(rng), garbage(rng, 64) + content, pickle.dumps({"a": Path("x")})]))
    elif kind == 2:
        bad = [[], 3, None, "x", {"a": 1}, {"model": [1]}, {"model": {"a": "b"}}, {1: torch.zeros(1)}, {"ema": {}}]
        torch.save(rng.choice(bad), path)
    else:
        weights = torch.load(world.root / "published.pt", weights_only=True)["model"]
        name = rng.choice(sorted(weights))
        value = rng.choice([torch.zeros(2), torch.zeros(0), torch.zeros(()), torch.zeros(1, 2, 3), None])
        weights = {k: v for k, v in weights.items() if k != name} | ({} if value is None else {name: value})
        torch.save({"model": weights}, path)
        if rng.random() < 0.2:
            return lambda: refused(load_published, weights)
    return lambda: refused(load_published, path)


def door_pictures(rng: random.Random, world: World, folder: Path) -> Case:
    """A panel's PNG with damaged bytes, or with settings inside that are damaged."""
    if rng.random() < 0.4:
        content = damage(rng, world.panel, rng.choice([40, 300]))
        return lambda: _sound_picture(content)
    values = damaged_json(rng, world.settings["settings"])
    inside = {**world.settings, "settings": json.loads(_object(values))}
    text = json.dumps(inside) if rng.random() < 0.5 else damaged_json(rng, world.settings)
    metadata, file = PngImagePlugin.PngInfo(), io.BytesIO()
    metadata.add_text("spherear", text)
    Image.new("RGB", (8, 8)).save(file, format="PNG", pnginfo=metadata)
    return lambda: _sound_picture(file.getvalue())


def _sound_picture(content: bytes) -> None:
    """What can still be read is a picture that can be saved and read again."""
    picture = read_picture(content)
    assert isinstance(picture, Picture)
    assert read_picture(png_bytes(np.zeros((4, 4, 3), np.uint8), picture)) == picture


def door_grids(rng: random.Random, world: World, folder: Path) -> Case:
    """A study's folder whose grid is damaged, or of another study."""
    grid = GRIDS["quick"].to_dict()
    text = damaged_json(rng, {"command": "x", "grid": grid})
    if rng.random() < 0.6:
        text = json.dumps({"command": "x", "grid": json.loads(_object(damaged_json(rng, grid)))})
    (folder / "grid.json").write_text(text, encoding="utf-8")
    if rng.random() < 0.5:
        return lambda: refused(open_study, GRIDS["full"], folder, "x")

    def open_again() -> None:
        found = open_study(GRIDS["quick"], folder, "x")
        assert isinstance(found, Grid)
        assert len(found.cells) > 0

    return open_again


def _object(text: str) -> str:
    """The text if it is JSON, otherwise an empty object."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return "{}"
    return text
