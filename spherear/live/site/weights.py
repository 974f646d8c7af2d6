"""Files of weights for the static page's graphs: the tensors of a shipped model, one after another, in a fixed order.

The order is the layout that `graphs` wrote beside the graphs of a data set. Every family of the same sizes has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from spherear.models.config import require
from spherear.models.files import read_json, write_json
from spherear.models.pretrained import CONFIG_FILE, SHIPPED, WEIGHTS_FILE, find_folder, shipped_families
from spherear.models.tensor_files import read_tensors
from spherear.sphere.families import FAMILIES

GRAPHS = Path(__file__).parent / "graphs"
LAYOUT_FILE = "layout.json"
PRESETS = {"shapes": "power_spherical", "digits": "power_spherical"}
"""The data sets of the page, and the family whose graphs are exported for all."""
BYTES = {"float16": 2, "float32": 4}
SIZES = {
    "ar": ("latent_dim", "tokens", "num_classes", "class_tokens", "width", "layers", "heads", "head_width",
           "head_depth", "head_groups"),
    "vae": ("latent_dim", "image_size", "widths", "decoder_layers", "head_width", "registers", "channels"),
}  # fmt: skip
"""What of the configs the graphs depend on."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is in a file of weights. offset: of its first byte."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return BYTES[self.dtype] * prod(self.shape)

    @property
    def end(self) -> int:
        """The offset of the next tensor."""
        return self.offset + self.nbytes


@dataclass(frozen=True)
class Layout:
    """The order of the tensors in a data set's files of weights (`model` and `judge`). sizes: of models that fit."""

    sizes: dict[str, Any]
    places: dict[str, list[Place]]

    @classmethod
    def of(cls, preset: str, family: str, places: dict[str, list[Place]]) -> "Layout":
        """The layout of a shipped model's graphs."""
        return cls(sizes_of(preset, family), places)

    def save(self, folder: Path) -> None:
        """Write the layout beside its graphs."""
        rows = {file: [[p.name, list(p.shape), p.dtype] for p in places] for file, places in self.places.items()}
        write_json(folder / LAYOUT_FILE, {"sizes": self.sizes, "tensors": rows})

    @classmethod
    def load(cls, folder: Path) -> "Layout":
        """Read what `save` wrote. FileNotFoundError if there is none."""
        values = read_json(folder / LAYOUT_FILE)
        return cls(values["sizes"], {file: _placed(rows) for file, rows in values["tensors"].items()})

    def nbytes(self, file: str) -> int:
        """The size of a file of weights."""
        return self.places[file][-1].end

    def pack(self, file: str, tensors: Mapping[str, Tensor]) -> bytes:
        """The file of these tensors. ValueError for a missing tensor, or one of another shape or dtype."""
        return b"".join(_bytes_of(place, tensors.get(place.name)) for place in self.places[file])


def _placed(rows: list[list[Any]]) -> list[Place]:
    places: list[Place] = []
    for name, shape, dtype in rows:
        places.append(Place(name, tuple(shape), dtype, places[-1].end if places else 0))
    return places


def _bytes_of(place: Place, tensor: Tensor | None) -> bytes:
    found = None if tensor is None else (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
    expected = place.shape, place.dtype
    require(found == expected, f"{place.name} is {found}; expected {expected}: export the graphs again")
    assert tensor is not None
    return tensor.contiguous().numpy().tobytes()


def sizes_of(preset: str, family: str) -> dict[str, Any]:
    """The sizes of a shipped model, as far as its graphs depend on them."""
    folder = find_folder(f"{preset}-{family}")
    configs = {part: read_json(folder / part / CONFIG_FILE) for part in SIZES}
    return {part: {name: configs[part].get(name) for name in names} for part, names in SIZES.items()}


def page_families(preset: str) -> list[str]:
    """The shipped families that a data set's graphs can run: of the same sizes, with continuous tokens."""
    sizes = Layout.load(GRAPHS / preset).sizes
    continuous = [name for name in shipped_families(preset) if not FAMILIES[name].discrete]
    return [name for name in continuous if sizes_of(preset, name) == sizes]


def stored_weights(preset: str, family: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of a shipped model and of its data set's judge, in the dtype in which they ship, by file."""
    judge = Path(str(files("spherear.evaluation") / f"{preset}_classifier.safetensors"))
    return {"model": model_weights(preset, family), "judge": _prefixed("judge", judge)}


def model_weights(preset: str, family: str) -> dict[str, Tensor]:
    """The tensors of a shipped model, by the names that they have in the graphs."""
    folder = SHIPPED / f"{preset}-{family}"
    return _prefixed("ar", folder / "ar" / WEIGHTS_FILE) | _prefixed("vae", folder / "vae" / WEIGHTS_FILE)


def _prefixed(part: str, path: Path) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for name, tensor in read_tensors(path)[0].items()}
