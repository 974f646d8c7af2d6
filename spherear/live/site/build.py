"""Write the static page: its own files, the runtime, the graphs, and the weights of the shipped models.

Knows: what is in a site and where. Does not know: what the page does with it (`page/js`), or how graphs come about
(`graphs`). Nothing is fetched: all of it ships with the library.
"""

import gzip
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spherear import __version__
from spherear.analysis.canvas import expected_length
from spherear.analysis.diagnostics import norm_profile
from spherear.live.site.weights import GRAPHS, PRESETS, Layout, model_weights, page_families, stored_weights
from spherear.models.config import require
from spherear.models.files import read_json, write_json
from spherear.sampling.pipeline import Pipeline, cached_pipeline
from spherear.sphere.families import FAMILIES
from spherear.training.data.catalog import load_data

PAGE, VENDOR = Path(__file__).parent / "page", Path(__file__).parent / "vendor"
MANIFEST, LOCK = "site.json", "vendor.json"
REAL = 256
"""Pictures of the data set whose tokens the page compares lengths with."""
MOST_BYTES = 30_000_000


def write_site(folder: Path, say: Callable[[str], None] = print) -> int:
    """Write the site to `folder`, whole or not at all -> its size in bytes.

    An earlier site there is replaced. ValueError for a folder with anything else in it, and for files of the runtime
    that are not the ones whose hashes are known.
    """
    folder = folder.resolve()
    check_folder(folder)
    check_vendor()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        site = Path(place) / "site"
        shutil.copytree(PAGE, site, ignore=shutil.ignore_patterns("tsconfig.json", "types"))
        shutil.copytree(VENDOR, site / "vendor")
        manifest = {"version": __version__, "presets": {name: write_preset(site, name, say) for name in PRESETS}}
        write_json(site / MANIFEST, manifest)
        size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
        require(size <= MOST_BYTES, f"the site has {size} bytes; expected at most {MOST_BYTES}")
        if folder.exists():
            shutil.rmtree(folder)
        site.rename(folder)
    return size


def check_folder(folder: Path) -> None:
    """ValueError unless a site can be written there: a new folder, an empty one, or an earlier site."""
    require(not folder.is_file(), f"{folder} is a file; expected a folder, or a name for a new one")
    if folder.is_dir() and any(folder.iterdir()):
        earlier = (folder / MANIFEST).is_file() and "presets" in read_json(folder / MANIFEST)
        require(earlier, f"{folder} holds other files; expected a new or empty folder, or an earlier site")


def check_vendor(folder: Path = VENDOR) -> None:
    """ValueError for a file of the runtime whose hash is not the one in its lock file."""
    lock = read_json(folder / LOCK)
    for name, expected in lock["sha256"].items():
        found = content_hash(folder / name)
        require(found == expected, f"{name} of {lock['package']} has the hash {found}; expected {expected}")


def content_hash(path: Path) -> str:
    """SHA-256 of a file's content, unpacked if its name ends in .gz."""
    content = path.read_bytes()
    return hashlib.sha256(gzip.decompress(content) if path.suffix == ".gz" else content).hexdigest()


def write_preset(site: Path, preset: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Write a data set's graphs and weights -> what the page needs to know about them."""
    layout = Layout.load(GRAPHS / preset)
    ar, vae = layout.sizes["ar"], layout.sizes["vae"]
    graphs, judge, grid = f"graphs/{preset}", f"models/{preset}-judge.bin", round(ar["tokens"] ** 0.5)
    shutil.copytree(GRAPHS / preset, site / graphs, ignore=shutil.ignore_patterns("*.json"))
    (site / "models").mkdir(exist_ok=True)
    families = []
    for family in page_families(preset):
        weights = f"models/{preset}-{family}.bin"
        (site / weights).write_bytes(layout.pack("model", model_weights(preset, family)))
        families.append({"family": family, "weights": weights, **about(preset, family)})
        say(f"{weights}: {(site / weights).stat().st_size / 1e6:.2f} MB")
    (site / judge).write_bytes(layout.pack("judge", stored_weights(preset, PRESETS[preset])["judge"]))
    return {
        "size": vae["image_size"], "grid": grid, "dim": ar["latent_dim"], "tokens": ar["tokens"],
        "classTokens": ar["class_tokens"], "nullLabel": ar["num_classes"],
        "cache": [ar["layers"], ar["heads"], ar["width"] // ar["heads"]],
        "classes": list(load_data(preset, vae["image_size"]).classes),
        "graphs": graphs, "judge": judge, "families": families,
    }  # fmt: skip


def about(preset: str, family: str) -> dict[str, Any]:
    """What the page says about a model, and what it computes outside the graphs. real: mean length of the tokens of
    real pictures, by position."""
    row, pipeline = FAMILIES[family], cached_pipeline(f"{preset}-{family}")
    return {
        "letter": row.letter, "title": row.title, "color": row.color,
        "radius": pipeline.vae.bottleneck.radius, "latentScale": pipeline.vae.config.latent_scale,
        "expected": expected_length(pipeline), "real": real_lengths(pipeline, preset),
    }  # fmt: skip


@torch.no_grad()
def real_lengths(pipeline: Pipeline, preset: str) -> list[float]:
    """The mean length of the tokens of REAL held-out pictures, by position."""
    data = load_data(f"{preset}:test", pipeline.vae.config.image_size)
    images, _ = data.batch(torch.arange(REAL))
    tokens = pipeline.vae.encode(images, torch.Generator().manual_seed(0)).sample
    return [round(value, 4) for value in norm_profile(tokens).mean.tolist()]


def texts() -> dict[str, Any]:
    """The words of the page, by language."""
    found: dict[str, Any] = json.loads((PAGE / "texts.json").read_text(encoding="utf-8"))
    return found
