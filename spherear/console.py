"""Helpers of every command: exit statuses, one-line error messages, and printing from the first process only."""

import os
import sys
from collections.abc import Callable

INTERRUPTED = 130  # exit status after Ctrl-C


def say(text: str) -> None:
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
