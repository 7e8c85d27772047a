"""What a user's mistake looks like: one line that names what is wrong and what would be right."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in the configuration or the data; `run_multitask.py` prints its one line and exits with status 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


@contextmanager
def mistakes_in_one_line(is_debugged: bool = False) -> Iterator[None]:
    """Ends the program with status 2 and a mistake's line on stderr; with `is_debugged`, as any other exception."""
    try:
        yield
    except UserError as error:
        if is_debugged:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        else:  # all processes find the same mistake, and the launcher ends all with the first: let rank 0 speak
            time.sleep(5)
        sys.exit(2)


def hint(name: object, valid: Iterable[object], what: str = "valid") -> str:
    """The end of an error about a name that is not known.

    Args:
        name: what the user wrote.
        valid: every name that would have been right.
        what: how the list of names is introduced.

    Returns:
        `; did you mean 'X'?` (if one is near) and the sorted list of names.
    """
    names = sorted(str(option) for option in valid)
    near = get_close_matches(str(name), names, n=1)
    suggestion = f"; did you mean '{near[0]}'?" if near else ""
    return f"{suggestion} ({what}: {', '.join(names) or 'none'})"


def first_line(error: BaseException) -> str:
    """The first non-empty line of a library's error, for use inside a message of ours."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
