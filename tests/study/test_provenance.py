"""The commit that is filed with results is that of spherear's own code, as it was."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spherear import __version__

PACKAGE = Path(__file__).parents[2] / "spherear"
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git on the PATH")


def git(folder, *arguments):
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(("git", "-C", folder, *who, *arguments), capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository of someone with the package in it, not committed."""
    folder = tmp_path / "theirs"
    shutil.copytree(PACKAGE, folder / "spherear", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    git(tmp_path, "init", "-q", str(folder))
    (folder / ".gitignore").write_text("__pycache__\nruns\n")
    (folder / "notes.txt").write_text("notes")
    git(folder, "add", ".gitignore", "notes.txt")
    git(folder, "commit", "-qm", "theirs")
    return folder


def commit_filed(folder, **environment):
    script = "from spherear.study.records import provenance; print(provenance()['commit'])"
    variables = {**os.environ, "PYTHONPATH": str(folder), **environment}
    command = (sys.executable, "-c", script)
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=True).stdout.strip()


def commit(repository):
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "all")
    return git(repository, "rev-parse", "--short", "HEAD")


@pytest.mark.slow
def test_a_repository_that_does_not_track_the_package_is_not_named(repository):
    """As of an environment inside of a user's repository."""
    assert commit_filed(repository) == f"version {__version__}"
    (repository / ".gitignore").write_text("spherear\n")
    assert commit_filed(repository) == f"version {__version__}"


@pytest.mark.slow
def test_a_tree_with_changes_is_marked(repository):
    clean = commit(repository)
    git(repository, "tag", "v9")  # which `git describe` would name
    assert commit_filed(repository) == clean
    (repository / "runs").mkdir()
    (repository / "runs" / "log.txt").write_text("ignored")
    (repository / "elsewhere.txt").write_text("not of the package")
    assert commit_filed(repository) == clean
    (repository / "spherear" / "extra.py").write_text("")
    assert commit_filed(repository) == f"{clean}-dirty"
    (repository / "spherear" / "extra.py").unlink()
    with (repository / "spherear" / "lazy.py").open("a") as changed:
        changed.write("# changed\n")
    assert commit_filed(repository) == f"{clean}-dirty"
    git(repository, "add", "-A")
    assert commit_filed(repository) == f"{clean}-dirty"


@pytest.mark.slow
def test_variables_of_git_name_no_other_repository(repository, tmp_path):
    """As a hook of another repository has them."""
    clean, other = commit(repository), tmp_path / "other"
    git(tmp_path, "init", "-q", str(other))
    assert commit_filed(repository, GIT_DIR=str(other / ".git"), GIT_WORK_TREE=str(other)) == clean


@pytest.mark.slow
def test_without_git_the_version_is_filed(repository, tmp_path):
    commit(repository)
    assert commit_filed(repository, PATH=str(tmp_path)) == f"version {__version__}"


def test_the_repository_of_these_tests_is_named():
    from spherear.study.records import provenance

    head = git(PACKAGE, "rev-parse", "--short", "HEAD") if (PACKAGE.parent / ".git").exists() else "version"
    assert re.match(rf"{head}", provenance()["commit"])
