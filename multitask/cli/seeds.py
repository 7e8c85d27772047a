"""`--seeds 0,1,2`: the same run with several seeds, one after the other; mean and deviation of their results."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..tasks.metrics import Results, average
from ..utils import write_atomically
from .arguments import Command
from .console import format_table


def with_seed(command: Command, seed: int) -> Command:
    """The command of one seed: its run lies in `OUTPUT_DIR/seed-N`, its copies in `REMOTE/seed-N`."""
    config, name = command.config, f"seed-{seed}"
    folder = str(Path(config.training.output_dir) / name)
    training = dataclasses.replace(config.training, seed=seed, output_dir=folder)
    remote = config.checkpoints.remote
    checkpoints = dataclasses.replace(config.checkpoints, remote=remote and f"{remote.rstrip('/')}/{name}")
    config = dataclasses.replace(config, training=training, checkpoints=checkpoints)
    return dataclasses.replace(command, config=config, seeds=())


def summarise(folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Mean, deviation and number of the results of several seeds, by task and metric, and of their average.

    Args:
        folder: with the runs `seed-N`.
        seeds: the finished ones.
    """
    runs: list[Results] = [
        json.loads((folder / f"seed-{seed}" / "metrics.json").read_text(encoding="utf-8"))["tasks"] for seed in seeds
    ]
    tasks = {
        task: {metric: _statistics([run[task][metric] for run in runs]) for metric in metrics}
        for task, metrics in runs[0].items()
    }
    return {"seeds": list(seeds), "tasks": tasks, "average": _statistics([average(run) for run in runs])}


def _statistics(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Of the values that are defined; the deviation is that of a sample (n - 1)."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return {
        "mean": float(np.mean(known)) if known else None,
        "deviation": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "n": len(known),
    }


def seeds_table(summary: Mapping[str, Any]) -> str:
    """The summary as a table."""
    lines = [("task", "metric", "mean", "deviation", "n")]
    lines += [(task, name, *_cells(of)) for task, metrics in summary["tasks"].items() for name, of in metrics.items()]
    return format_table([*lines, ("average", "", *_cells(summary["average"]))])


def _cells(of: Mapping[str, Any]) -> tuple[str, str, str]:
    mean, deviation = ("–" if of[key] is None else f"{of[key]:.4f}" for key in ("mean", "deviation"))
    return mean, deviation, str(of["n"])


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes `seeds.json` into the folder and returns its path."""
    path = folder / "seeds.json"
    write_atomically(path, json.dumps(summary, indent=2) + "\n")
    return path
