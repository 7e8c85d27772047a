"""The state of a run: `TrainState` during training, `SavedState` as stored in `state.json`.

Weights and the optimizer's moments are tensors and have files of their own (`checkpoints/format.py`); everything else
is here, and nothing else reads or writes `state.json`.
"""

import dataclasses
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from ..errors import UserError
from ..model.model_card import TrainedRun
from ..model.multitask import MultitaskModel
from ..tasks.metrics import Results, average
from .early_stopping import EarlyStopping
from .loss_weighting import LossWeighting

FORMAT_VERSION = 2  # 1 had no version, and another name for `padded_tokens` in its window
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft")


class Stateful(Protocol):
    """Something with a state, as `torch.distributed.checkpoint.stateful` defines it."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class SavedState:
    """The content of `state.json`.

    Args:
        step: steps done.
        run_id: the trackers' name of the run.
        command: the command line of the run.
        labels: names of each task's labels.
        rows: rows of the dataset by task and split, `{"rte": {"train": 2490, "validation": 277}}`.
        results: the evaluation after this step; None if there was none.
        average: the mean over its tasks.
        best: of `EarlyStopping`: the step of the best checkpoint and its score.
        waits: of `EarlyStopping`: each task's best score, and evaluations since.
        stopped: of `EarlyStopping`: after how many steps tasks were stopped.
        balancing: the state of the loss weighting.
        window: sums since the last logged step.
        scaler: the state of fp16's gradient scaler; None in other precisions.
        seconds: duration of the run so far, over all resumptions.
        max_steps: as planned; 0 if it is not known.
        versions: of the packages that matter.
        format_version: of this file.
    """

    step: int
    run_id: str = ""
    command: str = ""
    labels: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    results: Results | None = None
    average: float | None = None
    best: dict[str, Any] = field(default_factory=lambda: {"step": None})
    waits: dict[str, dict[str, float]] = field(default_factory=dict)
    stopped: dict[str, int] = field(default_factory=dict)
    balancing: dict[str, Any] = field(default_factory=dict)
    window: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] | None = None
    seconds: float = 0.0
    max_steps: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def trained_run(self, best_by: str | None = None) -> TrainedRun:
        """Facts about the run for model cards; `best_by` is the metric by which this checkpoint was chosen."""
        results = self.results or {}
        return TrainedRun(self.step, self.command, self.versions, self.rows, results, self.stopped, best_by)

    def to_json(self) -> str:
        """The text of `state.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "SavedState":
        """The state in a checkpoint's folder.

        Raises:
            UserError: if it cannot be read, or a newer version of this project wrote it.
        """
        path = folder / "state.json"
        try:
            found = {"format_version": 1} | json.loads(path.read_text(encoding="utf-8"))
            if found["format_version"] > FORMAT_VERSION:
                raise UserError(
                    f"--checkpoint: {path} has format version {found['format_version']}, this version of the project "
                    f"reads up to {FORMAT_VERSION}; use the version that wrote it ({found.get('versions')})"
                )
            if found["format_version"] == 1 and "computed_tokens" in found.get("window", {}):
                found["window"]["padded_tokens"] = found["window"].pop("computed_tokens")
            return cls(**{**found, "format_version": FORMAT_VERSION})
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"--checkpoint: {path} cannot be read: {error}") from error


@dataclass
class TrainState:
    """A run between two steps.

    Args:
        model: with its trained parameters.
        optimizer: of these, not wrapped by Accelerate.
        weighting: of the losses.
        stopping: what the evaluations have shown so far.
        window: sums since the last logged step.
        scaler: of the gradients, with fp16.
        max_steps: of the run, as it is planned now.
        command: the command line.
        labels: names of each task's labels.
        rows: rows of the dataset by task and split.
        step: steps done.
        results: the evaluation after this step, if there was one.
        run_id: the trackers' name of the run; a resumed run keeps it.
        seconds: that the run had taken when it was resumed.
        planned_steps: of the run when it was saved; 0 for a new one.
    """

    model: MultitaskModel
    optimizer: torch.optim.Optimizer
    weighting: LossWeighting
    stopping: EarlyStopping
    window: Stateful
    scaler: Any = None
    max_steps: int = 0
    command: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    step: int = 0
    results: Results | None = None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    seconds: float = 0.0
    planned_steps: int = 0
    started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Duration of the run in seconds, without the time between a stop and its resumption."""
        return self.seconds + time.monotonic() - self.started

    def advance(self, step: int) -> None:
        """Records the update of a step; its evaluation is still missing."""
        self.step, self.results = step, None

    def saved(self) -> SavedState:
        """A copy of the state, without tensors."""
        return SavedState(
            step=self.step,
            run_id=self.run_id,
            command=self.command,
            labels={task: list(names) for task, names in self.labels.items()},
            rows={task: dict(splits) for task, splits in self.rows.items()},
            results=self.results,
            average=average(self.results) if self.results else None,
            **self.stopping.state_dict(),
            balancing=self.weighting.state_dict(),
            window=self.window.state_dict(),
            scaler=self.scaler.state_dict() if self.scaler else None,
            seconds=self.elapsed(),
            max_steps=self.max_steps,
            versions={package: version(package) for package in PACKAGES},
        )

    def load(self, saved: SavedState) -> None:
        """Restores a saved state."""
        self.step, self.results, self.run_id = saved.step, saved.results, saved.run_id or self.run_id
        self.seconds, self.planned_steps = saved.seconds, saved.max_steps
        self.stopping.load_state_dict({"best": saved.best, "waits": saved.waits, "stopped": saved.stopped})
        self.weighting.load_state_dict(saved.balancing)
        self.window.load_state_dict(saved.window)
        if self.scaler and saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
