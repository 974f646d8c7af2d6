"""The structure: which way imports run, what an import loads, the size of wings, lint, types, and the documents."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser as torchrun_parser

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "spherear"
README = (ROOT / "README.md").read_text()

# Imports only run downwards; members of one floor do not know each other.
FLOORS = [
    ["lazy", "console", "processes", "signals", "registry"], ["sphere"], ["models"], ["sampling"], ["world"],
    ["training", "evaluation"], ["validation"],
    ["train"], ["export", "sheets"], ["train_all"],
    ["analysis", "bench"], ["study"], ["figures"], ["live"], ["demo"], ["commands"], ["cli"],
]  # fmt: skip
FLOOR = {wing: height for height, wings in enumerate(FLOORS) for wing in wings}
# One sideways look: the command that trains the offline judge reads the digits.
SIDEWAYS = {("evaluation.classifier", "training")}


NO_CODE = re.compile(r"#|//|import |from \S+ import ")


def wing(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path):
    """Every `spherear` module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "spherear":
            for name in node.names:
                whole = node.module == "spherear" and name.name != "__version__"
                yield f"{node.module}.{name.name}" if whole else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "spherear")


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def test_imports_run_downwards():
    for path in MODULES:
        own = name_of(path).split(".")[0]
        for module in imports(path):
            other = wing(module)
            if other not in ("", own) and (name_of(path), other) not in SIDEWAYS:
                assert FLOOR[other] < FLOOR[own], f"{name_of(path)} imports {module}"


def test_no_wing_is_a_labyrinth():
    """The largest wing holds at most a fifth of the package's lines; no folder more than 14 modules."""
    lines = Counter()
    for path in MODULES:
        lines[name_of(path).split(".")[0]] += len(path.read_text().splitlines())
    assert max(lines.values()) <= 0.2 * lines.total(), lines
    folders = Counter(path.parent for path in (*MODULES, *(ROOT / "tests").rglob("*.py")))
    assert max(folders.values()) <= 14, folders.most_common(3)


def repeats(root: Path, lines: int = 6) -> list[tuple[str, str]]:
    """Wings that share a run of equal lines of code, and its first line."""
    found: dict[tuple[str, ...], str] = {}
    shared = []
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".js")):
        own = path.relative_to(root).parts[0]
        code = [line for line in map(str.strip, path.read_text().splitlines()) if line and not NO_CODE.match(line)]
        for run in zip(*(code[start:] for start in range(lines)), strict=False):
            if found.setdefault(run, own) != own:
                shared.append((f"{found[run]} and {own}", run[0]))
    return shared


def test_no_code_stands_in_two_wings(tmp_path):
    assert repeats(PACKAGE) == []
    code = "import os\n\ndef f(x):\n" + "".join(f"    x += {n}\n" for n in range(5))
    for number, wing_name in enumerate(("one", "two")):
        (tmp_path / wing_name).mkdir()
        (tmp_path / wing_name / "part.py").write_text(code.replace("x += 2", f"# {number}\n\n    x += 2"))
    assert repeats(tmp_path) == [("one and two", "def f(x):")]


def loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    return {*modules, *(module.split(".")[0] for module in modules)}


@pytest.mark.parametrize(
    ("statement", "banned"),
    [
        ("import spherear", {"matplotlib", "plotly", "ipywidgets", "accelerate", "sklearn"}),
        (
            "import spherear.sphere.distributions, spherear.models.ar, spherear.sampling.pipeline, spherear.train",
            {"matplotlib", "plotly", "ipywidgets", "accelerate", "tyro", "beartype", "IPython", "torchvision"},
        ),
        (
            "from spherear.train import *; from spherear.training.data import load_data; load_data('digits', 16)",
            {"sklearn", "scipy", "torch.distributed.fsdp", "torch.distributed.tensor"},
        ),
        ("import spherear.cli, spherear.training.jobs.arguments", {"torch", "matplotlib", "ipywidgets", "sklearn"}),
        ("import spherear.live.server", {"torch", "plotly", "ipywidgets"}),
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
    command = 'pip install -e ".[test]" && pytest -n auto'
    assert f"\n{command}\n" in README
    assert command in (ROOT / ".ci" / "run").read_text()


def test_the_readme_is_short_and_names_every_wing():
    assert len(README.splitlines()) <= 170
    wings = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert wings | {"train.py", "demo.py", "cli.py"} <= set(re.findall(r"^  (\w[\w.]*)/? ", README, re.MULTILINE))


def test_what_is_imported_is_declared():
    """Every library that the package or a test imports stands in pyproject.toml, by its own name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    declared = {re.match(r"[\w.-]+", line)[0].lower().replace("-", "_") for line in listed}
    distributions = packages_distributions()
    known = {"spherear", "tests", "pandas", *sys.stdlib_module_names}  # pandas: plotly uses it where it is installed
    missing = set()
    for path in (*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "notebooks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {name.split(".")[0] for name in names} - known:
                owners = {owner.lower().replace("-", "_") for owner in distributions.get(name, [name])}
                if not owners & declared:
                    missing.add((name, str(path.relative_to(ROOT))))
    assert missing == set()


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
        script, first = parsed.training_script, parsed.training_script_args[0]
        assert (script, first) in {("spherear.train", "vae"), ("spherear.train", "ar"), ("spherear.cli", "evaluate")}


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


def test_every_module_has_a_docstring():
    for path in MODULES:
        text = path.read_text()
        assert not text.strip() or ast.get_docstring(ast.parse(text)), path
        assert "from __future__ import annotations" not in text


def is_text_file(call: ast.Call) -> bool:
    """Whether a call opens, reads or writes a file as text; as far as its name and its mode say."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    values = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    modes = [v.value for v in values if isinstance(v, ast.Constant) and re.fullmatch(r"[rwax][bt+]*", str(v.value))]
    if name == "open" and (modes or not values or isinstance(call.func, ast.Name)):
        return not any("b" in mode for mode in modes)
    return name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("open(path)", True), ("path.open()", True), ("self.path.open('a')", True), ("(a / b).open(mode='w')", True),
        ("path.read_text()", True), ("self.path.write_text(text)", True), ("write_text(path, text)", False),
        ("open(path, 'rb')", False), ("path.open('rb+')", False), ("Image.open(path)", False),
        ("archive.open('arr_0.npy')", False), ("tarfile.open(fileobj=file, mode='r:')", False),
    ],
)  # fmt: skip
def test_calls_that_open_text(code, text):
    assert is_text_file(ast.parse(code, mode="eval").body) == text


def test_text_files_have_an_encoding():
    """That of the system is another one on Windows."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and is_text_file(node):
                assert "encoding" in [word.arg for word in node.keywords], f"{path}:{node.lineno}"


def test_shipped_weights_are_small_and_have_their_log():
    weights = list(PACKAGE.rglob("*.safetensors"))
    assert weights
    for path in weights:
        assert path.stat().st_size < 2e6
        assert path.with_suffix(".log").read_text().startswith("command: ")
    assert sum(path.stat().st_size for path in weights) < 24e6
