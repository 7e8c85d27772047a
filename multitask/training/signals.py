"""Ending at a signal: the step is finished and saved first."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# A launcher passes on what the terminal has already sent to everyone; that is no second wish to end.
SAME_SIGNAL_SECONDS = 2.0


class Stopped(Exception):
    """Raised inside of what may be given up half-way, such as an evaluation."""


@contextmanager
def caught_signals() -> Iterator[Callable[[], int]]:
    """Within, SIGTERM and SIGINT are noted: the function tells the number of the first one, 0 if there was none.

    A second signal ends the process at once, with 128 + its number as shells have it.
    """
    first: list[tuple[int, float]] = []

    def note(number: int, frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0][1] > SAME_SIGNAL_SECONDS:
            os._exit(128 + number)  # not even for what is being written
        if not first:
            first.append((number, time.monotonic()))

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: first[0][0] if first else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
