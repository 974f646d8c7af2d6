"""What Binder and Colab are told: links to files that are there, one address, and commands for a fresh environment."""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from tests.test_house import README, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"]["Repository"]
BINDER = ROOT / ".binder"
INSTALL = re.search(r"`%pip install (.*?)`", README)[1]
LEAVE = (".git", "*.egg-info", "build", "runs", ".venv", "node_modules")
IMPORTS = "".join(json.loads((ROOT / "notebooks" / "05_live_guidance.ipynb").read_text())["cells"][1]["source"])


def test_links_have_one_address_and_lead_to_files():
    links = re.findall(r"\((https://(?:mybinder\.org/v2/gh|colab\.research\.google\.com/github)/\S+)\)", README)
    assert len(links) == 2
    for link in links:
        assert ADDRESS.removeprefix("https://github.com/") + "/" in link
        assert (ROOT / re.search(r"notebooks/\S+\.ipynb", link)[0]).is_file()
    assert shlex.split(INSTALL) == [f"spherear[lab] @ git+{ADDRESS}"]
    others = re.findall(r"github\.com/([\w-]+/[\w.-]+)", README)
    assert {f"https://github.com/{name}" for name in others} == {ADDRESS}


def test_binders_python_is_supported():
    """The version that is named, and no version of a library."""
    major, minor = map(int, re.fullmatch(r"python-(\d+)\.(\d+)\n", (BINDER / "runtime.txt").read_text()).groups())
    lowest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert lowest <= (major, minor) <= (3, 14)
    assert f"-e .[{','.join(extras())}]" in (BINDER / "requirements.txt").read_text().splitlines()


def extras() -> list[str]:
    """Those that Binder installs."""
    found = re.search(r"^-e \.\[(.*)\]$", (BINDER / "requirements.txt").read_text(), re.MULTILINE)[1].split(",")
    assert set(found) <= PROJECT["optional-dependencies"].keys()
    return found


@pytest.fixture
def fresh(tmp_path):
    """A copy of the repository, and the Python of a new environment that finds this one's libraries, not spherear."""
    source = tmp_path / "source"
    source.mkdir()
    ignored = [f"--exclude={name}" for name in LEAVE]
    archive = subprocess.run(["tar", "-C", ROOT, *ignored, "-cf", "-", "."], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-C", source, "-xf", "-"], input=archive, check=True)
    python = tmp_path / "environment" / "bin" / "python"
    venv.create(tmp_path / "environment", with_pip=True, symlinks=True)
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "setuptools"], check=True)  # an old one, in 3.11
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return source, python


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the folders of an environment on POSIX")
@pytest.mark.parametrize("place", ["binder", "colab"])
def test_the_commands_run_in_a_fresh_environment(fresh, place, tmp_path):
    """As they are written, but for the network: every requirement is met by what is installed, or pip fails.

    Then the first cell of the notebook that the badges open runs, with the package that was installed.
    """
    source, python = fresh
    if place == "binder":
        requirements = source / ".binder" / "requirements.txt"
        requirements.write_text(re.sub(r"^--extra-index-url .*\n", "", requirements.read_text(), flags=re.MULTILINE))
        words = ["-r", ".binder/requirements.txt"]
    else:
        words = shlex.split(INSTALL.replace(f"git+{ADDRESS}", source.as_uri()))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = ["--no-index", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    subprocess.run([python, "-m", "pip", "install", *options, *words], cwd=source, env=environment, check=True)
    script = f"{IMPORTS}\nimport spherear; print(spherear.__file__)"
    done = subprocess.run([python, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(source if place == "binder" else tmp_path / "environment")
    assert sys.prefix not in done.stdout
