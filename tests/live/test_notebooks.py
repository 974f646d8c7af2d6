"""The notebooks as files, and the ways in which a notebook test can pass without testing anything.

What they say is tested by themselves: `notebooks/conftest.py` runs every cell.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

from spherear.cli import main
from spherear.figures.display import PLOTLY, PNG
from spherear.live.notebooks import (
    FOLDED,
    MAX_BYTES,
    MAX_WORDS,
    PINNED,
    WIDGET,
    clean,
    find_notebooks,
    is_folded,
    pinned,
    problems,
    refresh,
    write,
)

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = find_notebooks(FOLDER)
LESSONS = ("01_the_sphere", "02_latents", "03_next_token", "04_collapse", "05_live_guidance", "06_scaling_up",
           "07_your_own")  # fmt: skip
LONG = 12  # lines
SANITIZE = FOLDER / "sanitize.cfg"


def notebook(*cells):
    """A notebook of cells: text, or (code, outputs...)."""
    made = []
    for cell in cells:
        if isinstance(cell, str):
            made.append(nbformat.v4.new_markdown_cell(cell))
        else:
            made.append(nbformat.v4.new_code_cell(cell[0], outputs=list(cell[1:]), execution_count=7))
    return nbformat.v4.new_notebook(cells=made)


def shown(**data):
    metadata = {PNG: {"alt": "described"}} if PNG in data else {}
    return nbformat.v4.new_output("display_data", data, metadata=metadata)


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", text=text, name=name)


def saved(path, *cells):
    write(path, notebook(*cells))
    return path


def test_seven_notebooks_each_with_solutions():
    expected = [FOLDER / f"{name}.ipynb" for name in LESSONS] + [FOLDER / "solutions" / f"{n}.ipynb" for n in LESSONS]
    assert expected == NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_form(path):
    assert problems(path) == []


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_says_what_it_is_for_and_ends_in_exercises(name):
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    assert re.search(r"[Aa]t the end (of this notebook )?you can say", cells[0].source)
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for kind in ("Predict", "Change", "Explain"):
        assert f"**{kind}.**" in text
    assert f"](solutions/{name}.ipynb)" in text
    assert re.search(r"Time: about \d+ minutes", cells[0].source)
    assert "](glossary.md)" in cells[0].source
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert sum("assert" in source for source in code) >= len(code) / 3


@pytest.mark.parametrize("name", LESSONS[:-1])  # the code of the last one is what it teaches
def test_long_checks_are_folded(name):
    cells = [c for c in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells if c.cell_type == "code"]
    for cell in cells:
        checks = len(re.findall(r"^ *assert", cell.source, re.MULTILINE))
        if checks >= 2 and len(cell.source.splitlines()) > LONG:
            assert is_folded(cell), cell.source
        assert checks or not is_folded(cell), cell.source
    assert any(map(is_folded, cells))


def test_links_lead_to_files():
    for path in (*NOTEBOOKS, FOLDER / "glossary.md"):
        text = path.read_text()
        for target in re.findall(r"\]\(((?!http|#|data:)[\w./-]+)\)", text):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_lax_notebooks_have_cells_that_are_checked(path):
    notebook = nbformat.read(path, as_version=4)
    checked = [c for c in notebook.cells if "nbval-check-output" in c.metadata.get("tags", [])]
    if path.parent == FOLDER and path.name.startswith(("02", "03", "05")):
        assert len(checked) >= 3
    assert all(cell.outputs for cell in checked)


def test_nothing_is_wrong_with_a_clean_notebook(tmp_path):
    text = "word " * MAX_WORDS
    module = ("%%writefile a.py\nclass A: pass", stream("Writing a.py\n"))
    path = saved(
        tmp_path / "a.ipynb", text, module, text, ("1 + 1", shown(**{PNG: "", "text/plain": "described"})), text
    )
    assert problems(path) == []


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ([("x", stream("a")), "word " * (MAX_WORDS + 1)], "has 121 words on end: 'word word"),
        ([("x", stream("a")), "word " * 70, "word " * 70], "has 140 words on end"),
        ([("x", stream("oh", "stderr"))], "cell 0 writes to stderr: 'oh'"),
        ([("x", nbformat.v4.new_output("error", ename="KeyError", evalue="", traceback=[]))], "ends in KeyError"),
        ([("x", shown(**{PLOTLY: {}}))], "shows a plotly figure without a PNG"),
        ([("x", shown(**{PLOTLY: {}, PNG: ""}))], "cell 0 hides a PNG behind a plotly figure"),
        ([("x", shown(**{"text/plain": "<a.B object at 0x7f00aa>"}))], "cell 0 shows a raw object"),
        ([("x", shown(**{"text/plain": "tensor([1.])"}))], "shows a raw object"),
        ([("x", nbformat.v4.new_output("display_data", {PNG: ""}))], "shows a picture without a description"),
        ([("class A: pass", stream("a"))], "defines a class"),
        (["words", ("x",)], "shows nothing"),
        ([("x", stream("a" * MAX_BYTES))], "bytes; expected at most 2000000"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, cells, problem):
    (found,) = problems(saved(tmp_path / "a.ipynb", *cells))
    assert problem in found


def test_stored_widgets_and_missing_counts_are_seen(tmp_path):
    made = notebook(("x", shown(**{WIDGET: {}})), ("y",))
    made.metadata = nbformat.from_dict({"kernelspec": {"name": "other"}, "widgets": {}})
    made.cells[1].execution_count = None
    nbformat.write(made, tmp_path / "a.ipynb")
    found = "\n".join(problems(tmp_path / "a.ipynb"))
    for expected in ("state of widgets", "another than python3", "execution counts [7, None]", "stores a widget"):
        assert expected in found


def test_cleaning_leaves_what_stays_the_same():
    raw = shown(**{PNG: "AA==", "text/plain": "<IPython.core.display.Image object>"})
    made = notebook(("x", stream("a"), stream("b"), shown(**{WIDGET: {}, "text/plain": "VBox()"}), raw), ("y",))
    made.cells[0].metadata = nbformat.from_dict(
        {"execution": {"iopub.execute_input": "now"}, "tags": ["keep"], "jupyter": {**FOLDED["jupyter"], "x": 1}}
    )
    made.metadata["language_info"] = {"version": "3.99"}
    result = clean(made)
    assert [output.get("text", output.get("data")) for output in result.cells[0].outputs] == [
        "ab",
        {PNG: "AA==", "text/plain": "described"},
    ]
    assert [cell.execution_count for cell in result.cells] == [1, 2]
    assert result.cells[0].metadata == {"tags": ["keep"], **FOLDED}
    assert result.cells[1].metadata == {}
    assert result.metadata["language_info"] == {"name": "python"}


def test_pinned_comes_and_goes():
    name = "ATEN_CPU_CAPABILITY"
    before = os.environ.get(name)
    with pinned():
        assert os.environ[name] == PINNED[name] == "avx2"
    assert os.environ.get(name) == before


@pytest.mark.slow
def test_refresh_runs_pinned_and_gives_the_same_file_twice(tmp_path):
    code = "import os\nprint(os.environ['ATEN_CPU_CAPABILITY'], os.environ['OMP_NUM_THREADS'])"
    path = saved(tmp_path / "a.ipynb", "text", (code,))
    assert main(["notebooks", "--folder", str(tmp_path), "--refresh"]) == 0
    first = path.read_bytes()
    assert b"avx2 1" in first
    refresh(path)
    assert path.read_bytes() == first


@pytest.mark.slow
def test_a_notebook_that_fails_is_left_as_it_was(tmp_path):
    path = saved(tmp_path / "a.ipynb", ("assert 1 + 1 == 3",))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.ipynb was left as it was"):
        refresh(path)
    assert path.read_bytes() == before


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    saved(tmp_path / "a.ipynb", "fine", ("x", stream("x")))
    saved(tmp_path / "b.ipynb", "word " * 130, ("x", stream("x")))
    assert main(["notebooks", "--folder", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "a.ipynb has no problems" in out
    assert "b.ipynb has 130 words on end" in out
    assert main(["notebooks", "--folder", str(tmp_path), "--only", "nothing"]) == 2
    assert main(["notebooks", "--folder", str(tmp_path / "empty")]) == 2
    assert "holds no notebooks" in capsys.readouterr().err


def test_sanitisers_are_all_read_and_do_what_they_say():
    """nbval drops a pair silently if `replace:` has no blank behind it, or if the two lines do not touch."""
    text = SANITIZE.read_text()
    pairs = get_sanitize_patterns(text)
    assert len(pairs) == text.count("regex:") == text.count("replace:") == 3
    assert all(replacement for _, replacement in pairs)

    def sanitised(line):
        for pattern, replacement in pairs:
            line = re.sub(pattern, replacement, line)
        return line

    assert sanitised("<a at 0x7f12ab34cd56>") == "<a at ADDRESS>"
    assert sanitised("wrote /tmp/tmpab12/vae/model") == "wrote FOLDER"
    assert sanitised("took 1.25 s, 30 images/s") == "took MEASURED, MEASURED"
    assert sanitised("KL 7.14, 16 tokens, 0.05 of R") == "KL 7.14, 16 tokens, 0.05 of R"


def test_the_trap_with_sanitisers_is_still_there():
    assert get_sanitize_patterns("regex: a\nreplace:\n") == []
    assert get_sanitize_patterns("regex: a\nreplace: \n") == [("a", "")]


def run_pytest(folder, library=FOLDER.parent, *options):
    """The one command, on a folder of notebooks with the conftest of ours; `library` holds the package."""
    for name in ("conftest.py", "sanitize.cfg"):
        shutil.copy(FOLDER / name, folder / name)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-q", "--color=no", str(folder)]
    ini = folder / "pytest.ini"
    ini.write_text("[pytest]\nmarkers =\n    slow: slow\nfilterwarnings = error\n")
    environment = {**os.environ, "PYTHONPATH": str(library)}
    return subprocess.run(
        [*command, "-c", str(ini), *options], cwd=folder, capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.mark.slow
def test_a_false_sentence_fails(tmp_path):
    """Strict by number: another output is caught; lax: only where the cell is tagged; an assert always."""
    saved(tmp_path / "01_strict.ipynb", ("print('now')", stream("then\n")), ("print('same')", stream("same\n")))
    made = notebook(("print('now')", stream("then\n")), ("print('now')", stream("then\n")), ("assert 1 + 1 == 3",))
    made.cells[1].metadata["tags"] = ["nbval-check-output"]
    write(tmp_path / "02_lax.ipynb", made)
    saved(tmp_path / "04_pinned.ipynb", ("import os\nprint(os.environ['MKL_CBWR'])", stream("AVX2\n")))
    done = run_pytest(tmp_path)
    failed = sorted(re.findall(r"^FAILED (\S+::Cell \d)", done.stdout, re.MULTILINE))
    assert failed == ["01_strict.ipynb::Cell 0", "02_lax.ipynb::Cell 1", "02_lax.ipynb::Cell 2"], done.stdout
    assert "3 failed, 3 passed" in done.stdout
    assert "MKL_CBWR" not in os.environ
