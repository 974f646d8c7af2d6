"""The API reference: every public name is said in words, with its shapes, and the pages build without a warning."""

import ast
import inspect
import warnings
from pathlib import Path

import pytest

from spherear import SphereAR, cli
from tests.test_house import MODULES, PACKAGE


def public_names():
    """(file, name, docstring) of every public class, function, method and property of the package."""
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
                continue
            yield path, node.name, ast.get_docstring(node)


def test_every_public_name_is_said_in_words():
    names = list(public_names())
    assert len(names) >= 300
    missing = [f"{path.relative_to(PACKAGE)}: {name}" for path, name, text in names if not text]
    assert missing == []


def test_signatures_show_shapes():
    assert "batch tokens dim" in str(inspect.signature(SphereAR.forward))


@pytest.mark.slow
def test_the_reference_builds_without_a_warning(tmp_path, capsys):
    pytest.importorskip("pdoc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main(["docs", "--out", str(tmp_path / "docs")]) == 0
    page = (tmp_path / "docs" / "spherear" / "models" / "ar.html").read_text(encoding="utf-8")
    assert "SphereAR" in page
    assert "batch tokens dim" in page
    assert "ValueError" in page
    assert Path(capsys.readouterr().out.strip()).is_file()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    assert cli.main(["docs", "--out", str(other)]) == 2
    assert "holds other files" in capsys.readouterr().err
