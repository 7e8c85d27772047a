"""User errors, reported in one line that names what is wrong and what would be right."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches


class UserError(Exception):
    """An error in the configuration or the data; `run_multitask.py` prints it in one line and exits with status 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


@contextmanager
def mistakes_in_one_line(is_debugged: bool = False) -> Iterator[None]:
    """Prints a `UserError` to stderr and exits with status 2; with `is_debugged`, re-raises it."""
    try:
        yield
    except UserError as error:
        if is_debugged:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        else:  # every rank fails, and the launcher kills all when the first exits: let rank 0 print
            time.sleep(5)
        sys.exit(2)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has what it wanted
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to fail at the exit
        sys.exit(141)  # 128 + SIGPIPE


def note(text: str) -> None:
    """Prints a note to stderr, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)


def hint(name: object, valid: Iterable[object], what: str = "valid") -> str:
    """The end of an error message about an unknown name.

    Args:
        name: what the user wrote.
        valid: all valid names.
        what: label of the list of names.

    Returns:
        `; did you mean 'X'?` (if a valid name is similar) and the sorted list of names.
    """
    names = sorted(str(option) for option in valid)
    near = get_close_matches(str(name), names, n=1)
    suggestion = f"; did you mean '{near[0]}'?" if near else ""
    return f"{suggestion} ({what}: {', '.join(names) or 'none'})"


def first_line(error: BaseException) -> str:
    """The first non-empty line of a library's error, for use in our own messages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
