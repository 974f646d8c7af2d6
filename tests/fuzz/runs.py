"""Doors of what commands leave behind and go on with: runs, sets of samples, records of studies, sites."""

import json
import os
import random
import shutil
import warnings
from pathlib import Path

from spherear import VAE, Pipeline
from spherear.evaluation.samples import draw_samples, finish_samples, read_samples
from spherear.study.records import Record, read_records
from spherear.train import train_vae
from tests.conftest import TINY_VAE
from tests.fuzz.commands import run_command
from tests.fuzz.models import Case
from tests.fuzz.world import FAST, World, damage, damaged_json, garbage, refused, words


def door_runs(rng: random.Random, world: World, folder: Path) -> Case:
    """A run's folder with one file damaged or missing: it goes on to its end, or is refused."""
    run = shutil.copytree(world.run, folder / "run")
    path = rng.choice(sorted(path for path in run.iterdir() if path.is_file()))
    if path.name == "run.json":
        path.write_text(damaged_json(rng, json.loads(path.read_text())), encoding="utf-8")
    elif rng.random() < 0.2:
        path.unlink()
    else:
        path.write_bytes(damage(rng, path.read_bytes() or b"{}", 400))

    def resume() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # going on from an older checkpoint says so
            steps = [state.step for state in train_vae(TINY_VAE, world.digits, world.recipe, run)]
        assert steps[-1:] in ([2], [])
        VAE.from_pretrained(run)

    return resume


def door_samples(rng: random.Random, world: World, folder: Path) -> Case:
    """A set of samples in the making with its description or its array damaged: drawn whole, or refused."""
    pipeline, out = Pipeline(world.vae, world.ar), folder / "set"
    next(draw_samples(out, pipeline, 4, FAST, 0, 2))
    facts, array = out / "samples.json", out / "samples.npy"
    if rng.random() < 0.6:
        facts.write_text(damaged_json(rng, json.loads(facts.read_text())), encoding="utf-8")
        return lambda: refused(lambda: list(draw_samples(out, pipeline, 4, FAST, 0, 2)), named=f"{facts.read_text()}")
    if rng.random() < 0.3:
        array.unlink()
    else:
        array.write_bytes(damage(rng, array.read_bytes(), 120))

    def draw() -> None:
        list(draw_samples(out, pipeline, 4, FAST, 0, 2))
        assert read_samples(finish_samples(out)).shape == (4, 16, 16, 3)

    return draw


def door_records(rng: random.Random, world: World, folder: Path) -> Case:
    """A file of records with one line damaged, or of anything else: records, or the line that is none."""
    path = folder / "results.jsonl"
    lines = (world.root / "records.jsonl").read_text().splitlines()
    place, kind = rng.randrange(len(lines)), rng.randrange(3)
    if kind == 0:
        bad = [garbage(rng, 60) + b"\xff", b"{}", b"[]\n", b'{"values": 3}', b'{"values": {"a": "b"}}', b"3", b"null"]
        path.write_bytes(rng.choice(bad))
        return lambda: refused(read_records, path)
    lines[place] = damaged_json(rng, json.loads(lines[place])).replace("\n", " ")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def read() -> None:
        assert all(isinstance(record, Record) for record in read_records(path))

    return read


def door_sites(rng: random.Random, world: World, folder: Path) -> Case:
    """A place where no static page can be written: refused before it begins, and what lies there stays."""
    site, kind = folder / "site", rng.randrange(5)
    if kind == 0:
        site.write_bytes(garbage(rng))
    elif kind == 1:
        (site / "thesis").mkdir(parents=True)
    elif kind == 2:  # a manifest that is none
        site.mkdir()
        manifest = rng.choice([damage(rng, b'{"presets": {}}', 9), b"{}", b"[]", b"3", b'"presets"', b'["presets"]'])
        (site / "site.json").write_bytes(b" " + manifest.replace(b'"presets":', b'"preset":'))
    elif kind == 3:
        (folder / "file").touch()
        site = folder / "file" / words(rng)
    elif hasattr(os, "geteuid") and os.geteuid():  # root may write anywhere
        folder.chmod(0o500)
    else:
        site = folder / ("x" * 300)
    return lambda: run_command(["page", "--static", str(site)])
