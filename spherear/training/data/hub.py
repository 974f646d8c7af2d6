"""Data sets of the Hugging Face hub, or local folders in its formats. Needs the extra `train`.

`hub:owner/name@revision#split` names one; `?stream` reads it without downloading it first. The classes of a WebDataset
(columns `jpg` and `cls`) have numbers for names; `?stream=1000` says how many there are.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from spherear.console import require_installed
from spherear.models.config import require
from spherear.training.data.dataset import hashed
from spherear.training.data.images import Photographs

STREAM = "?stream"
WINDOW = 1024  # rows of a stream that are shuffled among each other
WEBDATASET = ("jpg", "cls")  # columns of a WebDataset on the hub: a picture, and the number of its class


def load_hub(rest: str, spec: str, image_size: int) -> Photographs:
    """`owner/name[@revision][#split][?stream[=CLASSES]]` -> its images. The default split is `train`.

    No code from the repository is run. Without the library `datasets`: ModuleNotFoundError.
    """
    require_installed("datasets", "train", "hub data need it")
    import datasets

    rest, number = _classes_in(rest)
    name, revision, split, stream = parse_hub(rest, spec)
    source = datasets.load_dataset(name, split=split or "train", revision=revision or None, streaming=stream)
    image, label = _columns(source.features, spec)
    source = source.cast_column(image, datasets.Image(decode=False))
    classes = getattr(source.features[label], "names", None)
    require(classes is None or not number, f"{spec} names its {len(classes or ())} classes; expected ?stream alone")
    if stream:
        require(bool(classes or number), f"{spec} has no names of classes; expected ?stream=N, their number")
        classes = classes or [str(label) for label in range(number)]
        count = source.info.splits[split or "train"].num_examples if source.info.splits else 0
        stream_data = Stream(source, count, image, label, classes, spec, image_size)
        stream_data.roots, stream_data.revision = _roots(name, source), _revision(name, revision, "")
        return stream_data
    labels = torch.tensor(source.with_format(None).select_columns([label])[label], dtype=torch.int64)
    require(bool((labels >= 0).all()), f"{spec} has rows without a label (-1); expected a class for each")
    classes = classes or [str(label) for label in range(int(labels.max()) + 1)]
    data = Hub(source, image, labels, classes, spec, image_size)
    data.roots, data.revision = _roots(name, source), _revision(name, revision, str(source.cache_files))
    return data


def parse_hub(rest: str, spec: str) -> tuple[str, str, str, bool]:
    """`name[@revision][#split][?stream]` -> its parts. What exists as a folder is a name, whatever is in it."""
    name, revision, split = rest.removesuffix(STREAM), "", ""
    if "#" in name and not Path(name).exists():
        name, _, split = name.rpartition("#")
    if "@" in name and not Path(name).exists():
        name, _, revision = name.rpartition("@")
    if not Path(name).exists():
        end = next((part.partition("?")[2] for part in (split, revision, name) if "?" in part), None)
        require(end is None, f"data is {spec!r}; expected ?stream or nothing after the split, not {end!r}")
    return name, revision, split, rest.endswith(STREAM)


def _classes_in(rest: str) -> tuple[str, int]:
    """`...?stream=1000` -> `...?stream`, 1000; without a number, 0."""
    found = re.fullmatch(rf"(.*{re.escape(STREAM)})=([1-9]\d{{0,6}})", rest)
    return (found[1], int(found[2])) if found else (rest, 0)


def _columns(features: Any, spec: str) -> tuple[str, str]:
    """Names of the first image column and the first class-label column, or those of a WebDataset."""
    types = {name: type(feature).__name__ for name, feature in (features or {}).items()}
    image, label = WEBDATASET
    if types.get(image) == "Image" and str(getattr(features.get(label), "dtype", "")).startswith(("int", "uint")):
        return WEBDATASET
    images = [name for name, type_name in types.items() if type_name == "Image"]
    labels = [name for name, type_name in types.items() if type_name == "ClassLabel"]
    require(
        bool(images and labels),
        f"{spec} has columns {types}; expected an Image and a ClassLabel, or jpg and cls as a WebDataset has",
    )
    return images[0], labels[0]


def _roots(name: str, source: Any) -> tuple[str, ...]:
    """The folders in which the files of a data set lie: its own, if it is a local one, and the caches of downloads.

    Rows of an image folder are files that the library found itself, wherever they are.
    """
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    if source.info.builder_name == "imagefolder":
        return (os.path.abspath(os.sep),)
    local = [name] if Path(name).exists() else []
    return tuple(os.path.abspath(path) for path in (*local, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE))


def _revision(name: str, requested: str, cache_files: str) -> str:
    """The commit that was read, from the names of the cached files or the hub; else what was requested."""
    found = re.search(r"[/\\]([0-9a-f]{40})[/\\]", cache_files)
    if found:
        return found[1]
    if Path(name).exists() or re.fullmatch("[0-9a-f]{40}", requested):
        return requested
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=requested or None).sha or requested
    except (OSError, ValueError):  # offline, or no repository
        return requested


class _Rows(Photographs):
    """Rows of a data set. roots: folders in which the rows' files may lie.  revision: the commit, "" if unknown."""

    roots: tuple[str, ...] = ()
    revision = ""

    def name_of(self, index: int) -> str:
        return f"row {index}"

    def facts(self) -> dict[str, Any]:
        """As for other data, and the revision."""
        return super().facts() | {"revision": self.revision}

    def stored(self, value: dict[str, Any]) -> bytes:
        """An image, given as bytes or as the path of a file. A path outside the data set's folders: ValueError."""
        if value["bytes"] is not None:
            return value["bytes"]
        path = os.path.abspath(value["path"])
        inside = any(Path(path).is_relative_to(root) for root in self.roots)
        require(inside, f"it is the file {value['path']}; expected one in the folders of the data set")
        return Path(path).read_bytes()


class Hub(_Rows):
    """A downloaded data set, read by index."""

    def __init__(
        self, source: Any, image: str, labels: torch.Tensor, classes: list[str], spec: str, image_size: int
    ) -> None:
        self.source, self.image = source, image
        present = set(labels.tolist())
        empty = [f"class {name!r}, without a row" for label, name in enumerate(classes) if label not in present]
        super().__init__(spec, classes, labels, image_size, empty)

    def content(self, index: int) -> bytes:
        return self.stored(self.source[index][self.image])


class Stream(_Rows):
    """A streamed data set, read forwards, through a buffer of the last rows.

    `window` rows are shuffled among each other (see `catalog.epoch_order`); the buffer holds up to two windows. Its
    state is the step of the run alone: a run that resumes skips to the first row of the window that is due, and reads
    that window again. An earlier row than those in the buffer restarts the stream. Every loader process reads the
    whole stream and keeps its own rows: one or two per process of a run are enough.
    A label is known once its row has been read.
    """

    window = WINDOW

    def __init__(
        self, source: Any, count: int, image: str, label: str, classes: list[str], spec: str, image_size: int
    ) -> None:
        require(count > 0, f"{spec} does not state its number of images; expected one that does, or no ?stream")
        self.source, self.image, self.label = source, image, label
        self._rows: Iterator[Any] = iter(())
        self._next = count  # index of the next row of `_rows`
        self._buffer: dict[int, dict[str, Any]] = {}
        super().__init__(spec, classes, torch.zeros(count, dtype=torch.int64), image_size)

    def fingerprint(self) -> str:
        """A hash of the name and of what the hub says about the data: reading them would read the whole stream."""
        return hashed([self.spec, str(self.source.info.splits), str(self.source.info.version)])

    def content(self, index: int) -> bytes:
        if index not in self._buffer:
            self._read_to(index)
        row = self._buffer[index]
        self.labels[index] = row[self.label]
        return self.stored(row[self.image])

    def _read_to(self, index: int) -> None:
        """Read rows up to `index` into the buffer, without those that are a whole window behind."""
        start = max(0, index - self.window + 1)  # of the earliest window that the row can lie in
        if not self._next <= index < self._next + 2 * self.window:
            self._rows, self._next = iter(self.source.skip(start)), start
            self._buffer.clear()
        for row in self._rows:
            self._buffer[self._next] = row
            self._next += 1
            if self._next > index:
                break
        require(index in self._buffer, f"the stream ended before row {index}; expected {len(self)} rows")
        for old in [place for place in self._buffer if place < start]:
            del self._buffer[old]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_rows": None, "_next": len(self), "_buffer": {}}
