"""Which checkpoints stay: the newest, and the best."""

import sys
from collections.abc import Set
from pathlib import Path

from .checkpoint import delete_checkpoint
from .history import History
from .manifest import checkpoints_in, step_of


def prune(folder: Path, limit: int | None, best: int | None, busy: Set[Path]) -> None:
    """Deletes a run's checkpoints but for the newest, the best, and those that are being copied.

    Args:
        folder: of the run.
        limit: how many of the newest stay; None keeps all.
        best: the step of the best one, if any has been evaluated.
        busy: those that are being copied.
    """
    for path in checkpoints_in(folder)[limit or sys.maxsize :]:
        if step_of(path) != best and path not in busy:
            delete_checkpoint(path)


def steps_to_keep(limit: int | None, history: History, steps: list[int]) -> set[int]:
    """Of all steps that have a copy, in order: the newest so many, or all; and the best."""
    return {*steps[-(limit or 0) :]} | ({history.best["step"]} & {*steps})  # -0 is the whole list
