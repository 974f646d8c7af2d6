"""Helpers of every command: exit statuses, one-line error messages, missing libraries, Markdown tables."""

import errno
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

INTERRUPTED = 130  # exit status after Ctrl-C
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT}
HOME_FOLDERS = {
    "huggingface": "HF_HOME", "torch": "TORCH_HOME", "matplotlib": "MPLCONFIGDIR", "jupyter": "JUPYTER_DATA_DIR",
    ".jupyter": "JUPYTER_CONFIG_DIR", ".ipython": "IPYTHONDIR", "spherear": "XDG_CACHE_HOME",
}  # fmt: skip
"""Folders below the home folder, and the variable that moves each."""


def print_rank_zero(text: str) -> None:
    """Print `text`, from the first process (rank 0) only."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def say(text: str) -> None:
    """Print a line about what follows on stderr, so that stdout holds results alone; from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


def exit_status(work: Callable[[], int]) -> int:
    """Run a command and return its exit status; a user's error gives one line on stderr and status 2, no traceback."""
    try:
        return work()
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        print(f"error: {error}{home_hint(error)}", file=sys.stderr)
        return 2
    except TypeError as error:
        if "; expected " not in str(error):  # a value of the wrong type says what was expected; a mistake here does not
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def home_hint(error: Exception) -> str:
    """For a file below the home folder that cannot be written: the variable that moves it. Otherwise empty."""
    name = getattr(error, "filename", None)
    if not isinstance(error, OSError) or error.errno not in UNWRITABLE or not isinstance(name, str):
        return ""
    home = os.path.expanduser("~")
    if not name.startswith(os.path.join(home, "")):
        return ""
    parts = os.path.relpath(name, home).split(os.sep)
    variable = next((HOME_FOLDERS[part] for part in parts if part in HOME_FOLDERS), "HOME")
    return f"; set {variable} to a folder that can be written"


def command_line() -> str:
    """The running `spherear` command, as it can be typed again."""
    return shlex.join(["spherear", *sys.argv[1:]])


def require_installed(library: str, extra: str = "lab", need: str = "expected it") -> None:
    """ModuleNotFoundError that says what to install, if `library` is missing. need: why it is needed."""
    if importlib.util.find_spec(library) is None:
        raise ModuleNotFoundError(f'{library} is not installed; {need}: pip install "spherear[{extra}]"')


def import_library(library: str, extra: str, need: str) -> Any:
    """A library of an extra. Missing: ModuleNotFoundError; one that does not fit its surroundings: ImportError."""
    require_installed(library, extra, need)
    try:
        return importlib.import_module(library)
    except Exception as error:  # a build for another torch raises whatever its first missing symbol raises
        reason = str(error).strip().partition("\n")[0]
        raise ImportError(
            f"{library} is installed and cannot be loaded beside torch {version('torch')} ({reason}); {need}, "
            f'in versions that fit each other: pip install -U torch "spherear[{extra}]"'
        ) from error


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], padded: bool = False) -> str:
    """A Markdown table. padded: with columns of equal width, to be read in a terminal."""
    lines = [columns, ["---"] * len(columns), *rows]
    widths = [max(map(len, cells)) if padded else 0 for cells in zip(*lines, strict=True)]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
