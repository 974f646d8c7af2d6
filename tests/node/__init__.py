"""Checkers of the browser's code, from npm: `npm install --no-package-lock --prefix tests/node` installs them there."""

import shutil
from pathlib import Path
from typing import Any

import pytest

CONFIG = Path(__file__).parent / "eslint.config.mjs"
PACKAGES = Path(__file__).parent / "node_modules"


def find_tool(name: str) -> str:
    """The path of an installed command; the test is skipped without it."""
    found = shutil.which(name, path=str(PACKAGES / ".bin"))
    if found is None or shutil.which("node") is None:
        pytest.skip(f"no {name}: npm install --no-package-lock --prefix tests/node")
    return found


def find_axe() -> Path:
    """The path of the script that finds faults of accessibility; the test is skipped without it."""
    path = PACKAGES / "axe-core" / "axe.min.js"
    if not path.is_file():
        pytest.skip("no axe-core: npm install --no-package-lock --prefix tests/node")
    return path


def accessibility_faults(page: Any) -> list[tuple[str, str]]:
    """What axe finds on a page of Playwright's that its script was added to: (rule, element)."""
    found = page.evaluate("async () => (await axe.run()).violations")
    return [(fault["id"], node["html"][:120]) for fault in found for node in fault["nodes"]]
