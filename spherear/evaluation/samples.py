"""N images of a pipeline in one array on disk: the same bytes from any number of processes, resumable.

A folder holds `samples.json` (what is drawn), `samples.npy` during drawing (n, height, width, 3, bytes,
memory-mapped), a marker in `done/` for each finished shard, and in the end `samples.npz` with `arr_0`, the
format of the ADM evaluation suite, with the labels as `arr_1`. Memory does not grow with n.
"""

import math
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from spherear.models.config import require
from spherear.models.files import atomic_path, read_json, write_json
from spherear.models.pretrained import fingerprint
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.pixels import to_uint8
from spherear.sampling.settings import SamplingSettings

FACTS, RAW, DONE, RESULT = "samples.json", "samples.npy", "done", "samples.npz"
POLL_SECONDS = 1.0  # between checks on the progress of other processes


def balanced_labels(count: int, classes: int) -> Int[Tensor, " n"]:
    """Labels: i modulo `classes` for image i."""
    return torch.arange(count) % classes


def sample_facts(pipeline: Pipeline, count: int, settings: SamplingSettings, seed: int, shard: int) -> dict[str, Any]:
    """Description of a set of images; equal descriptions give the same bytes, on the same type of device."""
    place = pipeline.placement
    return {
        "images": count, "seed": seed, "shard": shard, "settings": settings.to_dict(),
        "labels": f"i modulo {pipeline.ar.config.num_classes}",
        "vae": fingerprint(pipeline.vae), "ar": fingerprint(pipeline.ar), "engine": place.engine, "dtype": place.dtype,
        "device": place.device.partition(":")[0],
    }  # fmt: skip


def draw_samples(
    folder: Path,
    pipeline: Pipeline,
    count: int,
    settings: SamplingSettings,
    seed: int = 0,
    shard: int = 64,
    rank: int = 0,
    size: int = 1,
) -> Iterator[int]:
    """Draw this process's shards of `count` class-balanced images, image i with seed `seed + i`; yields shard sizes.

    shard: images drawn together.  rank, size: this process, of how many. Finished shards are not drawn again.
    A folder that holds another set, numbers below 1, or a rank out of range: ValueError.
    """
    require(min(count, shard, size) >= 1, f"count, shard, size are {count}, {shard}, {size}; expected at least 1")
    require(0 <= rank < size, f"rank is {rank}; expected 0 to {size - 1}")
    require(0 <= seed <= 2**64 - count, f"seed is {seed}; expected 0 to 2^64 - {count}, the number of images")
    facts = sample_facts(pipeline, count, settings, seed, shard)
    if (folder / FACTS).exists():
        require(read_json(folder / FACTS) == facts, f"{folder} holds other images; expected the same set, or none")
    return _draw_samples(folder, pipeline, facts, settings, rank, size)


def _draw_samples(
    folder: Path, pipeline: Pipeline, facts: dict[str, Any], settings: SamplingSettings, rank: int, size: int
) -> Iterator[int]:
    count, shard, seed = facts["images"], facts["shard"], facts["seed"]
    if (folder / RESULT).exists():
        return
    _create_array(folder, facts, pipeline, rank)
    labels = balanced_labels(count, pipeline.ar.config.num_classes)
    starts = range(0, count, shard)
    for number in range(rank, len(starts), size):
        rows = range(starts[number], min(count, starts[number] + shard))
        marker = folder / DONE / str(number)
        if not marker.exists():
            drawn = pipeline.sample(labels[rows.start : rows.stop], settings, [seed + i for i in rows])
            _write_rows(folder / RAW, rows.start, to_uint8(drawn).cpu().numpy())
            marker.touch()
        yield len(rows)


def images_drawn(folder: Path) -> int:
    """Images of a set that all processes together have drawn; 0 if there is none."""
    if not (folder / FACTS).exists():
        return 0
    facts = read_json(folder / FACTS)
    count, shard = facts["images"], facts["shard"]
    if (folder / RESULT).exists():
        return count
    return sum(min(shard, count - shard * int(path.name)) for path in (folder / DONE).glob("*"))


def finish_samples(folder: Path, progress: Callable[[], object] = lambda: None) -> Path:
    """Wait until all processes have drawn their shards, then write `samples.npz`; returns its path.

    progress: called while waiting.
    """
    facts, result = read_json(folder / FACTS), folder / RESULT
    while images_drawn(folder) < facts["images"]:
        progress()
        time.sleep(POLL_SECONDS)
    progress()
    if not result.exists():
        labels = balanced_labels(facts["images"], int(facts["labels"].split()[-1])).numpy()
        with atomic_path(result) as part, part.open("wb") as file:
            np.savez(file, arr_0=np.load(folder / RAW, mmap_mode="r"), arr_1=labels)
    shutil.rmtree(folder / DONE, ignore_errors=True)
    (folder / RAW).unlink(missing_ok=True)
    return result


def read_samples(path: Path) -> np.ndarray:
    """The bytes (n, height, width, 3) of a set: memory-mapped, or read if they are compressed. No pickle is read.

    A file that is not complete, or with any other array: ValueError.
    """
    require(path.is_file(), f"{path} is not a file; expected an .npz of images")
    with unreadable_as_value_error(path, "a complete .npz with images (arr_0)"), zipfile.ZipFile(path) as archive:
        entry_info = archive.getinfo("arr_0.npy")
        with archive.open(entry_info) as entry:
            shape, fortran, dtype = _header(entry)
            size = entry_info.file_size - entry.tell()
            start = _content_start(path, entry_info) + entry.tell()
    require(
        dtype == np.uint8 and len(shape) == 4 and shape[-1] == 3 and not fortran,
        f"arr_0 of {path} is {dtype} {shape}{', columns first' if fortran else ''}; "
        "expected bytes (n, height, width, 3)",
    )
    require(size == math.prod(shape), f"{path} holds {size} bytes; expected {math.prod(shape)}")
    with unreadable_as_value_error(path, "a complete .npz with images (arr_0)"):
        if entry_info.compress_type == zipfile.ZIP_STORED:
            return np.memmap(path, np.uint8, "r", start, shape)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return np.asarray(file["arr_0"])


@contextmanager
def unreadable_as_value_error(path: Path, expected: str) -> Iterator[None]:
    """Whatever reading a damaged file of arrays raises, as a ValueError that names the file and what was expected."""
    try:
        yield
    except Exception as error:  # zipfile and numpy fail in any way on damaged bytes
        raise ValueError(f"{path} cannot be read ({error}); expected {expected}") from error


def _content_start(path: Path, entry_info: zipfile.ZipInfo) -> int:
    """Where the content of an entry begins in the file: after its local header, its name and what is added there."""
    with path.open("rb") as file:
        file.seek(entry_info.header_offset + 26)
        lengths = struct.unpack("<HH", file.read(4))
    return entry_info.header_offset + 30 + sum(lengths)


def _header(entry: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of an array in numpy's format."""
    version = np.lib.format.read_magic(entry)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return reader(entry)


def _write_rows(path: Path, start: int, rows: np.ndarray) -> None:
    """Write rows of the array; it is closed afterwards, because Windows removes no file that is open."""
    with unreadable_as_value_error(path, "the array of this set of images, as it was begun"):
        array = np.lib.format.open_memmap(path, "r+")
    array[start : start + len(rows)] = rows
    array.flush()


def _create_array(folder: Path, facts: dict[str, Any], pipeline: Pipeline, rank: int) -> None:
    """The array on disk, created by the first process while the others wait."""
    pixels = pipeline.vae.config.image_size
    if rank == 0 and not (folder / FACTS).exists():
        (folder / DONE).mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / RAW) as part:
            shape = (facts["images"], pixels, pixels, 3)
            np.lib.format.open_memmap(part, "w+", np.uint8, shape).flush()
        write_json(folder / FACTS, facts)
    while not (folder / FACTS).exists():
        time.sleep(POLL_SECONDS)
    stored = read_json(folder / FACTS)
    require(stored == facts, f"{folder} holds other images; expected the same set, or none")
