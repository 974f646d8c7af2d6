"""`spherear lab`: copies that never overwrite, from a checkout and from an installed wheel."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from spherear import cli
from spherear.live import server as launch
from tests.browser.jupyter import free_port, running_lab, running_page
from tests.conftest import ended, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    names = ("01_first.ipynb", "02_second.ipynb", "solutions/01_first.ipynb", "figures/a.png", "glossary.md")
    for name in (*names, ".hidden/x.ipynb"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    (folder / "conftest.py").write_text("for tests alone")
    return folder


def names(paths):
    return sorted(path.as_posix() for path in paths)


def test_notebooks_and_figures_are_copied_and_nothing_else(source, tmp_path):
    copied = launch.copy_notebooks(tmp_path / "mine", source)
    expected = ["01_first.ipynb", "02_second.ipynb", "figures/a.png", "glossary.md", "solutions/01_first.ipynb"]
    assert names(copied.new) == expected
    assert names(p.relative_to(tmp_path / "mine") for p in (tmp_path / "mine").rglob("*") if p.is_file()) == expected
    assert copied.first == Path("01_first.ipynb")


def test_edits_are_never_overwritten(source, tmp_path):
    mine = tmp_path / "mine"
    launch.copy_notebooks(mine, source)
    (mine / "01_first.ipynb").write_text("my own work")
    (source / "02_second.ipynb").write_text("a newer edition")
    copied = launch.copy_notebooks(mine, source)
    assert (mine / "01_first.ipynb").read_text() == "my own work"
    assert (mine / "02_second.ipynb").read_text() == "content of 02_second.ipynb"
    assert names(copied.edited) == ["01_first.ipynb", "02_second.ipynb"]
    assert copied.new == []


def test_a_file_in_the_way_is_refused(source, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="expected a folder"):
        launch.copy_notebooks(tmp_path / "mine", source)


def test_a_package_without_notebooks_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "PACKAGE", tmp_path / "spherear")
    with pytest.raises(ValueError, match="install it again"):
        launch.shipped_notebooks()


def test_the_command_copies_and_opens_the_first_notebook(source, tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(launch, "shipped_notebooks", lambda: source)
    monkeypatch.setattr(launch, "run_lab", lambda command: started.append(command) or 0)
    assert cli.main(["lab", str(tmp_path / "mine"), "--port", "8899", "--no-browser"]) == 0
    (command,) = started
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert {"--ServerApp.port=8899", "--LabApp.default_url=/lab/tree/01_first.ipynb", "--no-browser"} <= set(command)
    assert "--ServerApp.ip=localhost" in command
    assert not any("token" in option for option in command)  # Jupyter's own, which is on
    assert "5 files copied" in capsys.readouterr().out


def test_the_page_is_served_to_this_machine_with_its_token(monkeypatch):
    started = []
    monkeypatch.setattr(launch, "run_lab", lambda command: started.append((command, read_cells(command[3]))) or 0)
    assert cli.main(["page", "--port", "8899", "--no-browser"]) == 0
    ((command, cells),) = started
    assert command[:3] == [sys.executable, "-m", "voila"]
    assert {"--Voila.ip=localhost", "--Voila.port=8899", "--Voila.auto_token=True", "--no-browser"} <= set(command)
    (cell,) = cells
    assert "GuidanceExplorer(folder=None)" in cell  # nothing is saved here
    assert not Path(command[3]).exists()


def test_a_page_for_nobody_is_refused_before_anything_begins(monkeypatch, capsys):
    monkeypatch.setattr(launch, "run_lab", lambda command: pytest.fail("it began"))
    assert cli.main(["page", "--visits", "0"]) == 2
    assert "visits is 0; expected at least 1" in capsys.readouterr().err
    assert cli.main(["page", "--idle", "0"]) == 2
    assert "idle is 0 minutes; expected at least 1" in capsys.readouterr().err


def test_the_help_says_how_many_visits_there_are_and_where_pictures_go(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["page", "--help"])
    said = " ".join(re.sub(r"[\W_]+", " ", capsys.readouterr().out).split())
    for part in ("of about 0 5 GB", "half a minute after the page was closed", "downloads of their browser", "visits"):
        assert part in said


@pytest.mark.parametrize("command", ["lab", "page"])
def test_a_home_that_cannot_be_written_names_what_cures_it(command, tmp_path, monkeypatch, capsys):
    """Jupyter would end in a traceback, the page only at the first visit. Each variable cures its own folder."""
    started = []
    monkeypatch.setattr(launch, "run_lab", lambda command: started.append(command) or 0)
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    variables = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", *variables):
        monkeypatch.delenv(variable, raising=False)
    for variable in variables:
        if variable == "JUPYTER_RUNTIME_DIR":  # below the data folder, unless it is named
            monkeypatch.setenv(variable, str(tmp_path / "home" / "run"))
        assert cli.main([command, *([str(tmp_path / "mine")] if command == "lab" else []), "--no-browser"]) == 2
        error = capsys.readouterr().err
        assert f"{variable} names another, HOME moves all" in error
        assert "cannot be written" in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "mine").exists()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    assert started == []
    assert cli.main([command, *([str(tmp_path / "mine")] if command == "lab" else []), "--no-browser"]) == 0
    assert len(started) == 1


def read_cells(path):
    return [cell["source"] for cell in json.loads(Path(path).read_text())["cells"]]


def test_a_page_without_voila_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["page"]) == 2
    assert 'voila is not installed; expected it: pip install "spherear[page]"' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["terminate", "kill"])
@pytest.mark.parametrize("word", ["lab", "page"])
def test_servers_and_kernels_end_with_the_command(tmp_path, word, kill):
    """`kill PID` and `kill -9 PID` of `spherear lab` and `spherear page`."""
    environment = {**os.environ, "JUPYTER_TOKEN": "secret", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    folder = [str(tmp_path / "mine")] if word == "lab" else []
    command = [sys.executable, "-m", "spherear.cli", word, *folder, "--no-browser", "--port", str(free_port())]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as parent:
        try:
            address = until(lambda: re.search(r"http://localhost:\d+/\S*(?=token=)", log.read_text()))[0]
            until(lambda: starts_kernel(f"{address}token=secret"))
            family = [psutil.Process(parent.pid), *psutil.Process(parent.pid).children(recursive=True)]
            assert any("ipykernel_launcher" in " ".join(process.cmdline()) for process in family)
            getattr(parent, kill)()
            until(lambda: all(map(ended, family)))
        finally:
            parent.kill()
    assert kill == "kill" or not list(tmp_path.rglob("guidance.ipynb"))


def starts_kernel(address):
    """By the page of Voila, or by the interface of JupyterLab; False while the server does not listen."""
    if "/lab/" in address:
        address = urllib.request.Request(f"{address.split('/lab/')[0]}/api/kernels?token=secret", b"{}")
    try:
        urllib.request.urlopen(address, timeout=120).close()
        return True
    except urllib.error.URLError:
        return False


@pytest.mark.slow
def test_visits_are_limited_and_end_with_their_pages(tmp_path):
    """A page that never connects, as a crawler's, keeps its place for half a minute."""
    with running_page(tmp_path, visits=2) as address:
        for _ in range(2):
            urllib.request.urlopen(address, timeout=120).close()
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            urllib.request.urlopen(address, timeout=120).close()
        assert "All 2 places of this page are taken" in refused.value.read().decode()
        until(lambda: is_open(address), seconds=300)  # the first pictures are drawn, then half a minute passes
        assert (tmp_path / "lab.log").read_text().count("its page is closed") >= 1


def is_open(address):
    try:
        urllib.request.urlopen(address, timeout=120).close()
        return True
    except urllib.error.HTTPError as refused:
        refused.close()
        time.sleep(1)
        return False


@pytest.mark.slow
def test_the_server_wants_its_token_and_has_our_settings(tmp_path):
    with running_lab(tmp_path) as lab:
        address = f"http://localhost:{lab.port}/lab/api/settings/@jupyterlab/notebook-extension:tracker"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address).close()
        with urllib.request.urlopen(f"{address}?token={lab.token}") as answer:
            settings = json.load(answer)
        assert settings["schema"]["properties"]["windowingMode"]["default"] == "defer"


def test_settings_of_the_user_come_first():
    environment = launch.lab_environment({"JUPYTER_CONFIG_PATH": "/theirs", "OMP_NUM_THREADS": "7"})
    assert environment["OMP_NUM_THREADS"] == "7"
    assert int(launch.lab_environment({})["OMP_NUM_THREADS"]) == max(1, os.cpu_count() // 2)
    assert environment["JUPYTER_CONFIG_PATH"].split(os.pathsep)[0] == str(launch.SETTINGS)
    assert "/theirs" in environment["JUPYTER_CONFIG_PATH"]
    assert launch.lab_environment({"JUPYTER_PATH": "/data"})["JUPYTER_PATH"].split(os.pathsep) == [
        str(launch.SETTINGS),
        "/data",
    ]


@pytest.mark.slow
def test_an_installed_wheel_brings_its_notebooks(tmp_path):
    """Built, installed without its dependencies, and asked from elsewhere."""
    wheels, target = tmp_path / "wheels", tmp_path / "site"
    copy = tmp_path / "source"
    ignored = ("--exclude=.git", "--exclude=*.egg-info", "--exclude=build", "--exclude=runs", "--exclude=.venv")
    copy.mkdir()
    archive = subprocess.run(["tar", "-C", ROOT, *ignored, "-cf", "-", "."], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-C", copy, "-xf", "-"], input=archive, check=True)
    (copy / "notebooks" / "00_test.ipynb").write_text("{}")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, copy], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    script = (
        "from pathlib import Path; import spherear; from spherear.live.server import copy_notebooks, SETTINGS\n"
        "print(spherear.__file__); print(copy_notebooks(Path('mine')).first)\n"
        "print((SETTINGS / 'labconfig' / 'default_setting_overrides.json').is_file())"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(target / "spherear" / "__init__.py"), "00_test.ipynb", "True"], done.stderr
    assert (tmp_path / "mine" / "figures" / "demo.png").is_file()
    assert (tmp_path / "mine" / "glossary.md").is_file()
