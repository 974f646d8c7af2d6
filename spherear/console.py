"""What every command shares: exit statuses, one line per error, and printing from one of several processes."""

import os
import sys
from collections.abc import Callable

INTERRUPTED = 130  # the exit status of a command that Ctrl-C ended


def say(text: str) -> None:
    """Print, from the first of several processes alone."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def exit_status(work: Callable[[], int]) -> int:
    """Run a command; an error a person can mend is one line on stderr and status 2, not a traceback."""
    try:
        return work()
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
