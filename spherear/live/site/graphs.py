"""The graphs of the static page: `python -m spherear.live.site.graphs` writes them, and only that needs `onnx`.

A graph is what a model computes, without its weights: it names their places in a file of weights, which `weights` packs
from a shipped model. So the graphs of a data set serve every family, are small, and ship with the library; whoever
writes a site needs neither `onnx` nor an export. Weights are stored in the dtype in which they ship (float16 for the
models) and cast to float32 in the graph, once, when a session is created.
"""

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from spherear.console import import_library
from spherear.live.site.parts import Part, parts_of
from spherear.live.site.weights import GRAPHS, PRESETS, Layout, Place, stored_weights
from spherear.models.config import require
from spherear.models.files import atomic_path

OPSET = 23  # the first with RMSNormalization and Attention
NEED = "the graphs are exported with it"
DTYPES = {"float16": 10, "float32": 1}  # of ONNX


def write_graphs(preset: str, family: str, folder: Path) -> Layout:
    """Write a data set's graphs and the layout of its files of weights below `folder` -> the layout."""
    stored = stored_weights(preset, family)
    places: dict[str, list[Place]] = {file: [] for file in stored}
    for name, part in parts_of(preset, family).items():
        model = exported(part)
        tensors = [tensor for tensor in model.graph.initializer if tensor.name in stored[part.file]]
        for tensor in tensors:
            weight = stored[part.file][tensor.name]
            check_unchanged(f"{name}: {tensor.name}", tensor, weight)
            place = place_of(places[part.file], tensor.name, weight)
            refer(model, tensor, place, part.file)
        with atomic_path(folder / f"{name}.onnx") as target:
            target.write_bytes(model.SerializeToString())
    layout = Layout.of(preset, family, places)
    layout.save(folder)
    return layout


def check_unchanged(name: str, tensor: Any, stored: torch.Tensor) -> None:
    """ValueError for a weight that the export changed, as where a normalisation is merged into a convolution.

    Then the graph would be right for the weights of this one model alone.
    """
    helper = import_library("onnx.numpy_helper", "onnx", NEED)
    same = bool((torch.from_numpy(helper.to_array(tensor).copy()) == stored.float()).all())
    require(same, f"{name} is another tensor in the graph than in the file of weights; expected the same")


def place_of(places: list[Place], name: str, tensor: torch.Tensor) -> Place:
    """The place of a tensor in a file of weights; the next free one, if it has none yet."""
    found = next((place for place in places if place.name == name), None)
    if found is None:
        dtype = str(tensor.dtype).removeprefix("torch.")
        found = Place(name, tuple(tensor.shape), dtype, places[-1].end if places else 0)
        places.append(found)
    return found


def exported(part: Part) -> Any:
    """A part as an ONNX model: constants folded, except transposes of weights; without traces of the source."""
    import_library("onnx", "onnx", NEED)
    optimizer = import_library("onnxscript.optimizer", "onnx", NEED)
    axes = {name: torch.export.Dim(name, min=1, max=4096) for each in part.dynamic for name in each.values()}
    axes["past"] = torch.export.Dim("past", min=1, max=part_length(part))
    shapes = tuple({axis: axes[name] for axis, name in each.items()} for each in part.dynamic)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(part.module.eval(), part.example, dynamic_shapes=shapes, strict=False)
        onnx = torch.onnx.export(
            program, dynamo=True, input_names=part.inputs, output_names=part.outputs,
            optimize=False, opset_version=OPSET, verbose=False,
        )  # fmt: skip
    assert onnx is not None
    for _ in range(2):  # no other passes: they merge and share weights
        optimizer.fold_constants(
            onnx.model, onnx_shape_inference=True, input_size_limit=256, output_size_limit=256,
            should_fold=lambda node: False if node.op_type == "Transpose" else None,
        )  # fmt: skip
        optimizer.remove_unused_nodes(onnx.model)
    model = onnx.model_proto
    strip(model)
    return model


def part_length(part: Part) -> int:
    """The most positions that a cache holds before its last step; 4096 for a part without one."""
    ar = getattr(part.module, "ar", None)
    return 4096 if ar is None else ar.config.class_tokens + ar.config.tokens - 2


def strip(model: Any) -> None:
    """Remove names of source lines and inferred shapes, which no runtime needs."""
    del model.graph.value_info[:], model.metadata_props[:], model.graph.metadata_props[:]
    values: Iterable[Any] = (*model.graph.input, *model.graph.output, *model.graph.node, *model.graph.initializer)
    for value in values:
        value.doc_string = ""
        del value.metadata_props[:]


def refer(model: Any, tensor: Any, place: Place, file: str) -> None:
    """Replace a weight in a graph by its place in a file, cast to float32 where it is stored in another dtype."""
    for field in ("raw_data", "float_data"):
        tensor.ClearField(field)
    tensor.data_type, tensor.data_location = DTYPES[place.dtype], 1  # external
    for key, value in (("location", file), ("offset", place.offset), ("length", place.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    if place.dtype != "float32":
        node = type(model.graph.node[0])(op_type="Cast", name=f"cast {tensor.name}")
        node.input.append(f"{tensor.name}.stored")
        node.output.append(tensor.name)
        node.attribute.add(name="to", i=DTYPES["float32"], type=2)
        tensor.name = f"{tensor.name}.stored"
        model.graph.node.insert(0, node)


def main(folder: Path = GRAPHS) -> None:
    """Export the graphs of every data set of the page.

    Args:
        folder: Output folder; by default the one that the library reads.
    """
    for preset, family in PRESETS.items():
        layout = write_graphs(preset, family, folder / preset)
        size = sum(path.stat().st_size for path in (folder / preset).iterdir())
        print(f"{folder / preset}: {size / 1e3:.0f} kB, for weights of {layout.nbytes('model') / 1e6:.2f} MB")


if __name__ == "__main__":
    import tyro

    sys.exit(tyro.cli(main))
