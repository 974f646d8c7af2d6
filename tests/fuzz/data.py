"""Doors of data: names of data sets, pictures, folders, tars, cached posteriors, references of scores, arrays."""

import io
import json
import os
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import torch

from spherear.evaluation.adm import ADMReference
from spherear.evaluation.samples import read_samples
from spherear.study.reference import checked_reference
from spherear.training.data import load_data
from spherear.training.data.cached import encode_all
from spherear.training.data.dataset import ImageData
from spherear.training.data.tar import SUFFIX
from tests.fuzz.models import Case
from tests.fuzz.world import World, damage, damaged_json, garbage, refused, words

NAMES = [
    "digits:", "mnist:", "shapes:", "folder:", "tar:", "folder:~", "tar:/", "folder:\0", "", ":", "DIGITS", "hub:/",
]  # fmt: skip


def door_names(rng: random.Random, world: World, folder: Path) -> Case:
    """The name of no data set, or a size that no image has."""
    if rng.random() < 0.2:
        name, size = rng.choice(["digits", "shapes", "mnist"]), rng.choice([0, -1, -(10**6)])
        return lambda: refused(load_data, name, size)
    spec = rng.choice(NAMES) + words(rng)
    return lambda: refused(load_data, spec, rng.choice([16, 32]))


def _sound(data: ImageData) -> None:
    """All images can be read: finite, in range, of a class that has a name; and what was replaced is named."""
    images, labels = data.batch(torch.arange(len(data)))
    assert torch.isfinite(images).all()
    assert images.abs().max() <= 1
    assert len(images) == len(labels) == len(data) > 0
    assert set(labels.tolist()) <= set(range(len(data.classes)))
    assert len(set(data.classes)) == len(data.classes)
    assert all(data.broken.values())


def door_photographs(rng: random.Random, world: World, folder: Path) -> Case:
    """Photographs with one damaged: named as broken, refused if it was all of its class, or read as finite pixels."""
    source = rng.choice(world.pictures)
    if rng.random() < 0.7:
        shutil.copytree(world.images, folder / "images")
        shutil.copy(source, folder / "images" / source.parent.name / f"again{source.suffix}")
    place = folder / "images" / source.parent.name / source.name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(damage(rng, source.read_bytes(), rng.choice([40, 10_000])))
    return lambda: _sound(load_data(f"folder:{folder / 'images'}", 16))


def _name(rng: random.Random) -> str:
    """A name of a file or a folder, of any letters."""
    letters = "ab 01.é漢\\'\"%{}\n\t*?"
    stem = "".join(rng.choice(letters) for _ in range(rng.randrange(1, 6)))
    return (stem.strip(". ") or "x") + rng.choice(["", ".png", ".PNG", ".jpg", ".txt", ".cls", ".tar", ".webp"])


def door_folders(rng: random.Random, world: World, folder: Path) -> Case:
    """A folder of anything: any names, folders named like pictures, links in circles and to nowhere, empty classes."""
    root = folder / "data"
    root.mkdir()
    places = [root]
    for _ in range(rng.randrange(1, 12)):
        path, kind = rng.choice(places) / _name(rng), rng.randrange(6)
        if path.exists() or path.is_symlink():
            continue
        if kind < 2:
            path.mkdir()
            places.append(path)
        elif kind == 2:
            os.symlink(rng.choice([root, path.parent, folder / "nowhere", world.images, path]), path)
        elif kind == 3:
            path.write_bytes(garbage(rng))
        else:
            path.write_bytes(rng.choice(world.pictures).read_bytes())
    return lambda: _sound(load_data(f"folder:{root}", 16))


def door_tars(rng: random.Random, world: World, folder: Path) -> Case:
    """A tar that is damaged, compressed, of any members, or with a damaged index beside it."""
    path, kind = folder / "x.tar", rng.randrange(4)
    whole = (world.root / "images.tar").read_bytes()
    if kind == 0:
        path.write_bytes(damage(rng, whole, 512))
    elif kind == 1:
        path.write_bytes(_any_tar(rng, world))
    elif kind == 2:
        with tarfile.open(path, rng.choice(["w:gz", "w:bz2", "w:xz"])) as tar:
            tar.add(world.images, arcname="images")
        return lambda: refused(load_data, f"tar:{path}", 16)
    else:
        path.write_bytes(whole)
        index = path.with_name(path.name + SUFFIX)
        load_data(f"tar:{path}", 16)
        index.write_bytes(damage(rng, index.read_bytes(), rng.choice([8, 2000])))
    return lambda: _sound(load_data(f"tar:{path}", 16))


def _any_tar(rng: random.Random, world: World) -> bytes:
    """A tar with members of any kind and any name: links, devices, paths that lead outside, tars in tars, labels."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for _ in range(rng.randrange(8)):
            member = tarfile.TarInfo(rng.choice(["", "a/", "b/", "../", "/tmp/", "a/b/"]) + _name(rng))
            member.type = rng.choice([tarfile.REGTYPE] * 6 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
            member.linkname = rng.choice(["a", "/etc/passwd", member.name]) if member.type != tarfile.REGTYPE else ""
            content = rng.choice([b"", garbage(rng), b"3", rng.choice(world.pictures).read_bytes()])
            if member.name.endswith(".tar") and rng.random() < 0.5:
                content = (world.root / "images.tar").read_bytes()
            member.size = len(content) if member.type == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def door_caches(rng: random.Random, world: World, folder: Path) -> Case:
    """Cached posteriors with one file damaged or missing: refused, or made again where the description is missing."""
    cache = shutil.copytree(world.root / "cache", folder / "cache")
    facts, kind = cache / "posteriors.json", rng.randrange(3)
    if kind == 0:
        changed = damaged_json(rng, json.loads(facts.read_text()))
        facts.write_text(changed, encoding="utf-8")
    else:
        path = cache / rng.choice(["features.bin", "labels.bin"])
        content = path.read_bytes()
        if kind == 1:
            path.write_bytes(rng.choice([content[: rng.randrange(len(content))], content + b"x", b""]))
        else:
            path.unlink()
    return lambda: refused(
        lambda: encode_all(world.vae, world.few(), folder=cache), named=f"{kind} {facts.read_text()}"
    )


def door_references(rng: random.Random, world: World, folder: Path) -> Case:
    """A reference of scores: no file, a damaged one, arrays that do not fit, a folder with too little in it."""
    path, kind = folder / "x.npz", rng.randrange(5)
    if kind == 0:
        name = rng.choice([words(rng), "cifar1-train", str(path), str(folder), "~zz/x", "/zz/" + words(rng), "", "\0"])
        return lambda: refused(checked_reference, name, 16)
    if kind == 1:
        path.write_bytes(damage(rng, (world.root / rng.choice(["adm.npz", "samples.npz"])).read_bytes(), 300))
    elif kind == 2:
        np.savez(path, **_arrays(rng))
        return lambda: refused(checked_reference, str(path), 16)
    elif kind == 3:
        path.write_bytes(damage(rng, (world.root / "samples.npz").read_bytes(), 120))
        return lambda: _sound_arrays(read_samples(path))
    else:
        shutil.copytree(world.images, folder / "real")
        place = folder / "real" / rng.choice(["class-0", "class-9", "."]) / "zz.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(garbage(rng))
        return lambda: refused(checked_reference, str(folder / "real"), 16)

    def check() -> None:
        found, _ = checked_reference(str(path), 16)
        assert isinstance(found, ADMReference)
        if found.images is not None:
            _sound_arrays(found.images)

    return check


def _arrays(rng: random.Random) -> dict[str, np.ndarray]:
    """Arrays of a reference that do not fit."""
    bytes_, square = np.zeros((6, 8, 8, 3), np.uint8), np.eye(8)
    choices: list[dict[str, np.ndarray]] = [
        {"arr_0": bytes_[..., :2]}, {"arr_0": bytes_[0]}, {"arr_0": bytes_ / 1.0}, {"arr_0": bytes_[:3]},
        {"arr_0": bytes_.astype(np.int64)}, {"arr_0": np.array([{}], dtype=object)}, {"x": bytes_}, {},
        {"mu": np.zeros(8)}, {"sigma": square}, {"mu": np.zeros(7), "sigma": np.eye(7)},
        {"mu": np.zeros(8), "sigma": -square}, {"mu": np.zeros(8), "sigma": np.triu(np.ones((8, 8)))},
        {"mu": np.full(8, np.nan), "sigma": square}, {"mu": np.zeros(8), "sigma": np.full((8, 8), np.inf)},
        {"mu": np.array(["x"] * 8), "sigma": square}, {"mu": np.zeros((8, 1)), "sigma": square},
    ]  # fmt: skip
    return rng.choice(choices)


def _sound_arrays(images: np.ndarray) -> None:
    assert (images.dtype, images.ndim, images.shape[-1]) == (np.uint8, 4, 3)
    int(images.sum())
