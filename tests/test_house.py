"""The house itself: which way imports run, what an import loads, lint, types, and that the documents hold."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser as torchrun_parser

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "spherear"
README = (ROOT / "README.md").read_text()

# Imports only run downwards; members of one floor do not know each other.
FLOORS = [["sphere"], ["models"], ["sampling"], ["training", "evaluation"], ["train"], ["bench"], ["lab"], ["cli"]]
FLOOR = {wing: height for height, wings in enumerate(FLOORS) for wing in wings}
# One sideways look: the command that trains the offline judge reads the digits.
SIDEWAYS = {("evaluation.classifier", "training")}


def wing(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path):
    """Every `spherear` module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "spherear":
            for name in node.names:
                yield f"{node.module}.{name.name}" if node.module == "spherear" else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "spherear")


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_downwards(path):
    own = name_of(path).split(".")[0]
    for module in imports(path):
        other = wing(module)
        if other in ("", own) or (name_of(path), other) in SIDEWAYS:
            continue
        assert FLOOR[other] < FLOOR[own], f"{name_of(path)} imports {module}"


def loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {module.split(".")[0] for module in done.stdout.split()}


@pytest.mark.parametrize(
    ("statement", "banned"),
    [
        ("import spherear", {"matplotlib", "plotly", "ipywidgets", "accelerate", "sklearn"}),
        (
            "import spherear.sphere, spherear.models, spherear.sampling, spherear.train",
            {"matplotlib", "plotly", "ipywidgets", "accelerate", "tyro", "beartype", "IPython", "torchvision"},
        ),
    ],
)
def test_an_import_loads_only_what_it_needs(statement, banned):
    assert not loaded_by(statement) & banned


def test_ruff():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, str(ROOT)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_mypy():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ci_runs_the_readmes_test_command():
    command = 'pip install -e ".[test]" && pytest'
    assert f"\n{command}\n" in README
    assert command in (ROOT / ".ci" / "run").read_text()


def test_the_readmes_tree_is_the_tree():
    """Every module has its line in the README, and every line its module."""
    block = re.search(r"```\n(spherear/.*?)```", README, re.DOTALL)[1]
    listed, folder = set(), PACKAGE
    for line in block.splitlines()[1:]:
        if not line.startswith("  "):
            break
        name = line.split()[0]
        if line.startswith("  ") and not line.startswith("    "):
            folder = PACKAGE / name if name.endswith("/") else PACKAGE
        listed.add(folder / name if line.startswith("    ") else PACKAGE / name)
    modules = {p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"}
    assert {p for p in listed if p.suffix == ".py"} == modules


def launches():
    """Every `torchrun` command of the README, the lessons and the docstrings."""
    lessons = (json.loads(path.read_text())["cells"] for path in sorted((ROOT / "notebooks").glob("*.ipynb")))
    words = ["".join(cell["source"]) for cells in lessons for cell in cells if cell["cell_type"] == "markdown"]
    texts = [README, *words, *(path.read_text() for path in MODULES)]
    return [
        " ".join(command.replace("\\\n", " ").split())
        for text in texts
        for command in re.findall(r"^\s*torchrun (?:[^\n]*\\\n)*[^\n]*", text, re.MULTILINE)
    ]


def test_torchrun_takes_no_option_for_its_own():
    """As it would `--run`, of which it knows several."""
    commands = launches()
    assert len(commands) >= 5
    for command in commands:
        parsed = torchrun_parser().parse_args(shlex.split(command)[1:])
        assert parsed.training_script == "spherear.train"
        assert parsed.training_script_args[0] in ("vae", "ar")


def test_the_readmes_python_runs(tmp_path):
    """The example as it is written."""
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(example.strip().splitlines()) <= 12


def test_versions_live_in_one_place():
    from spherear import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
    environment = (ROOT / "environment.yml").read_text()
    assert "-e .[lab,page,train,test]" in environment
    assert "torch" not in environment


def test_every_module_says_what_it_knows_and_does_not():
    for path in MODULES:
        text = path.read_text()
        if text.strip() and path.name != "__init__.py":
            docstring = ast.get_docstring(ast.parse(text)) or ""
            assert re.search(r"\bKnows\b", docstring), path
            assert re.search(r"Does not know", docstring), path
            assert "from __future__ import annotations" not in text


def test_shipped_weights_are_small_and_have_their_log():
    weights = list(PACKAGE.rglob("*.safetensors"))
    assert weights
    for path in weights:
        assert path.stat().st_size < 2e6
        assert path.with_suffix(".log").read_text().startswith("command: ")
    assert sum(path.stat().st_size for path in weights) < 16e6
