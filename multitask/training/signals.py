"""Signals: the current step is finished and saved before the process ends."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

# A launcher passes on what the terminal has already sent to everyone; that is no second wish to end.
SAME_SIGNAL_SECONDS = 2.0


CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(Exception):
    """Raised to abandon work that can be repeated, such as an evaluation."""


def follow_launcher() -> None:
    """On Linux, asks the kernel for SIGTERM when Accelerate's launcher ends before this process.

    The launcher of a single process does not forward signals: when it is stopped, the training would be orphaned.
    """
    if sys.platform != "linux" or not is_launcher(psutil.Process().parent()):
        return
    pr_set_pdeathsig = 1  # of sys/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def is_launcher(process: psutil.Process | None) -> bool:
    """Whether a process is `accelerate launch`."""
    try:
        words = process.cmdline() if process else []
    except psutil.Error:
        return False
    program = any(Path(word).name == "accelerate" or word.startswith("accelerate.commands") for word in words[:3])
    return program and ("launch" in words[:4] or "accelerate.commands.launch" in words[:3])


@contextmanager
def caught_signals() -> Iterator[Callable[[], int]]:
    """Catches SIGTERM, SIGINT and SIGHUP; yields a function that returns the number of the first signal, or 0.

    A second signal ends the process at once with the status 128 + its number, as in a shell. Under `nohup`, SIGHUP is
    not caught.
    """
    follow_launcher()
    first: list[tuple[int, float]] = []

    def note(number: int, frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0][1] > SAME_SIGNAL_SECONDS:
            os._exit(128 + number)  # not even for what is being written
        if not first:
            first.append((number, time.monotonic()))
            if os.environ.get("RANK", "0") == "0":
                text = f"\n{signal.Signals(number).name}: this step is finished and saved; again ends at once\n"
                os.write(2, text.encode())  # not `print`, which the signal may have interrupted

    # `nohup` ignores SIGHUP, so that a run outlives its terminal. (SIGINT is ignored in the background of a script,
    # where one that is sent is meant all the same.)
    is_kept_alive = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    caught = [number for number in CAUGHT if number != signal.SIGHUP or not is_kept_alive]
    before = {number: signal.signal(number, note) for number in caught}
    try:
        yield lambda: first[0][0] if first else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
