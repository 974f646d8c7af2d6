"""Checkers of the browser's code, from npm: `npm install --no-package-lock --prefix tests/node` installs them there."""

import shutil
from pathlib import Path

import pytest

CONFIG = Path(__file__).parent / "eslint.config.mjs"
PACKAGES = Path(__file__).parent / "node_modules"


def find_tool(name: str) -> str:
    """The path of an installed command; the test is skipped without it."""
    found = shutil.which(name, path=str(PACKAGES / ".bin"))
    if found is None or shutil.which("node") is None:
        pytest.skip(f"no {name}: npm install --no-package-lock --prefix tests/node")
    return found


def find_script(name: str) -> Path:
    """The path of an installed script; the test is skipped without it."""
    path = PACKAGES / name
    if not path.is_file():
        pytest.skip(f"no {name}: npm install --no-package-lock --prefix tests/node")
    return path
