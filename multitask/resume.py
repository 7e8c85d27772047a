"""Going on from a checkpoint as if the run had never stopped."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from .checkpoint import (
    checkpoints_in,
    delete_checkpoint,
    find_checkpoint,
    load_optimizer,
    load_trained_weights,
    read_state,
)
from .config import Config
from .errors import UserError
from .manifest import verify
from .run_folder import changed_setting


def find_resumable(
    folder: Path,
    choice: str,
    config: Config,
    num_rows: Mapping[str, Mapping[str, int]],
    tell: Callable[[str], None],
) -> Path | None:
    """The checkpoint to continue from, whole and of this configuration; None to begin anew.

    Args:
        folder: of the run.
        choice: `auto` for the newest in the run's folder, `never`, or the folder of a checkpoint.
        config: of the run; what changes its result must be as it was.
        num_rows: of each task and split; they must be as they were.
        tell: is told what is taken and what is not.

    Raises:
        UserError: if the chosen one is damaged, or made with settings that change the result, naming the first.
    """
    for rest in (path for end in ("partial", "deleted") for path in (folder / "checkpoints").glob(f"step-*.{end}")):
        shutil.rmtree(rest)  # of a run that was killed
    if choice == "never":
        for old in checkpoints_in(folder):
            tell(f"{old} is removed, as this run begins anew")
            delete_checkpoint(old)
        return None
    for found in checkpoints_in(folder) if choice == "auto" else [find_checkpoint(choice)]:
        try:
            verify(found)
        except ValueError as damage:
            if choice != "auto":
                raise UserError(f"training.resume_from_checkpoint: {found} is damaged: {damage}") from damage
            aside = found.with_name(f"{found.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            found.rename(aside)
            tell(f"{found} is damaged and set aside as {aside.name}: {damage}")
            continue
        _check_settings(found, config, num_rows)
        tell(f"going on from {found}")
        return found
    return None


def surplus(checkpoints: Sequence[Path], limit: int | None) -> list[Path]:
    """Which checkpoints to delete: all but the newest `limit` and the one with the best average.

    Args:
        checkpoints: the newest first.
        limit: None keeps all.
    """
    if limit is None:
        return []
    averages = {path: read_state(path)["average"] for path in checkpoints}
    evaluated = [path for path, average in averages.items() if average is not None and average == average]
    best = max(evaluated, key=lambda path: averages[path], default=None)
    return [path for path in checkpoints[limit:] if path != best]


def _check_settings(folder: Path, config: Config, num_rows: Mapping[str, Mapping[str, int]]) -> None:
    changed = changed_setting(yaml.safe_load((folder / "config.yaml").read_text()), config)
    for task, then in read_state(folder)["rows"].items() if changed is None else ():
        for split, number in then.items():
            if num_rows[task][split] != number:
                changed = changed or f"the {split} rows of task {task} were {number:,}, are {num_rows[task][split]:,}"
    if changed:
        raise UserError(
            f"training.resume_from_checkpoint: {folder} was made with other settings ({changed}); make them as they "
            f"were, or begin anew with another training.output_dir or with --training.resume_from_checkpoint never"
        )


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts a checkpoint's weights and the optimizer's memory in place.

    Returns:
        What else is known of the run; `step` is the number of steps done.
    """
    load_trained_weights(model, load_file(folder / "model.safetensors"))
    load_optimizer(optimizer, model, folder / "optimizer.safetensors")
    return read_state(folder)
