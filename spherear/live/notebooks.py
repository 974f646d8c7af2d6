"""Notebook files: run in a pinned environment and written reproducibly, so that a diff shows only changed results.

spherear notebooks              list problems of their form
spherear notebooks --refresh    run them all and rewrite their outputs
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from spherear.figures.display import PLOTLY, PNG
from spherear.models.files import write_text

PINNED = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "PLOTLY_RENDERER": "plotly_mimetype",
}
"""One thread, one instruction set, no GPU, no network: the same numbers on most machines."""

CELL_TIMEOUT = 300  # seconds
MAX_BYTES = 2_000_000  # per notebook: room for a sheet of colour pictures
MODULE = "%%writefile "  # a cell that is a module of its own
DEFINES = r"^\s*class |^from __future__"
MAX_WORDS = 120  # of text without a picture or a code cell in between
FOLDED = {"jupyter": {"source_hidden": True}}
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
RAW = re.compile(r"<[\w.]+(?: object)? at 0x[0-9a-f]+>|<IPython\.core\.|^tensor\(|^VBox\(|^Figure\(", re.MULTILINE)


@contextmanager
def pinned() -> Iterator[None]:
    """Context that sets the variables of `PINNED` for child processes, and restores the old values afterwards."""
    previous = {name: os.environ.get(name) for name in PINNED}
    os.environ.update(PINNED)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def find_notebooks(folder: Path) -> list[Path]:
    """All notebooks below `folder`, sorted. No notebooks: FileNotFoundError."""
    paths = sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no notebooks; expected some, as in the repository's notebooks/")
    return paths


def refresh(path: Path) -> None:
    """Run a notebook in its own folder and rewrite the file with the outputs.

    A cell that raises or times out: ValueError that names the notebook, and the file is unchanged.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],
    )
    with pinned():
        try:
            client.execute()
        except (CellExecutionError, TimeoutError) as error:
            raise ValueError(f"{path} was left as it was: {error}") from error
    write(path, notebook)


def write(path: Path, notebook: Any) -> None:
    """Clean a notebook (see `clean`) and write it atomically."""
    write_text(path, nbformat.writes(clean(notebook)) + "\n")


def clean(notebook: Any) -> Any:
    """Remove times, versions, widget state and object addresses, and join stream outputs. Modifies the notebook.

    Of the metadata of cells, tags stay, and whether the code is folded.
    """
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    count = 0
    for cell in notebook.cells:
        tags = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        cell.metadata = nbformat.from_dict((FOLDED if is_folded(cell) else {}) | tags)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = [_cleaned(output, count) for output in _joined(cell.outputs) if not _is_widget(output)]
    return notebook


def is_folded(cell: Any) -> bool:
    """Whether JupyterLab hides the code of a cell until it is unfolded."""
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def _is_widget(output: Any) -> bool:
    """Whether an output is a live widget; a file would only store its identifier."""
    return WIDGET in output.get("data", {})


def _joined(outputs: Sequence[Any]) -> list[Any]:
    """Join consecutive outputs of one stream; how they are split is random."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _cleaned(output: Any, count: int) -> Any:
    if "execution_count" in output:
        output.execution_count = count
    data = output.get("data", {})
    if PNG in data and RAW.search(str(data.get("text/plain", ""))):
        data["text/plain"] = output.metadata.get(PNG, {}).get("alt", "a picture")
    return output


def problems(path: Path) -> list[str]:
    """Problems of the form of a notebook, one line each; empty if it can be shipped and tested."""
    notebook = nbformat.read(path, as_version=4)
    size = path.stat().st_size
    lines = [f"is {size} bytes; expected at most {MAX_BYTES}"] if size > MAX_BYTES else []
    if "widgets" in notebook.metadata:
        lines.append("stores the state of widgets; expected none")
    if notebook.metadata.get("kernelspec", {}).get("name") != KERNEL["name"]:
        lines.append("names no kernel, or another than python3")
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        lines.append(f"has execution counts {counts}; expected 1, 2, 3, ... : run it whole, by --refresh")
    if not any(cell.get("outputs") for cell in notebook.cells):
        lines.append("shows nothing; expected what its cells print and draw: run it, by --refresh")
    lines += [f"cell {number} {problem}" for number, problem in _cell_problems(notebook.cells)]
    return lines + [f"has {words} words on end: {start!r}" for words, start in _long_texts(notebook.cells)]


def _cell_problems(cells: Sequence[Any]) -> Iterator[tuple[int, str]]:
    """(cell number, problem) for code cells and their outputs; code cells are numbered from 0, as in nbval."""
    for number, cell in enumerate(cell for cell in cells if cell.cell_type == "code"):
        if not cell.source.startswith(MODULE) and re.search(DEFINES, cell.source, re.MULTILINE):
            yield number, "defines a class; expected that in the library"
        pictures = 0
        for output in cell.outputs:
            data = output.get("data", {})
            pictures += PNG in data
            if output.output_type == "error":
                yield number, f"ends in {output.ename}"
            if output.get("name") == "stderr":
                yield number, f"writes to stderr: {output.text[:60]!r}"
            if _is_widget(output):
                yield number, "stores a widget"
            if PLOTLY in data and not pictures:
                yield number, "shows a plotly figure without a PNG above it"
            if PLOTLY in data and PNG in data:
                yield number, "hides a PNG behind a plotly figure; expected it in an output of its own"
            if RAW.search(str(output.get("text", data.get("text/plain", "")))):
                yield number, "shows a raw object"
            if PNG in data and not output.metadata.get(PNG, {}).get("alt"):
                yield number, "shows a picture without a description"


def _long_texts(cells: Sequence[Any]) -> Iterator[tuple[int, str]]:
    """(number of words, first words) of texts longer than `MAX_WORDS` between code cells."""
    text = ""
    for cell in [*cells, None]:
        if cell is not None and cell.cell_type == "markdown":
            text += cell.source + "\n"
            continue
        words = re.findall(r"\w\S*", re.sub(r"```.*?```|^\s*\|.*?$", " ", text, flags=re.DOTALL | re.MULTILINE))
        if len(words) > MAX_WORDS:
            yield len(words), " ".join(words[:8])
        text = ""
