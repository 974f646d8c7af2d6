"""Helpers of every command: exit statuses, one-line error messages, missing libraries, Markdown tables."""

import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

INTERRUPTED = 130  # exit status after Ctrl-C


def print_rank_zero(text: str) -> None:
    """Print `text`, from the first process (rank 0) only."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def exit_status(work: Callable[[], int]) -> int:
    """Run a command and return its exit status; a user's error gives one line on stderr and status 2, no traceback."""
    try:
        return work()
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


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
