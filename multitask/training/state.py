"""The state of a run: `TrainState` in memory, `SavedState` as written to a checkpoint's `state.json`.

Weights and optimizer moments are tensors in separate files (`checkpoints/format.py`); everything else is here, and no
other module reads or writes `state.json`.
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
from .weight_averaging import WeightAverage

FORMAT_VERSION = 2  # 1 had no version field, and called the window's `padded_tokens` `computed_tokens`
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft")


class Stateful(Protocol):
    """An object with a state dict, as in `torch.distributed.checkpoint.stateful`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class SavedState:
    """The content of `state.json`.

    Args:
        step: number of steps done.
        run_id: the run's id in the trackers.
        command: command line of the run.
        labels: names of each task's labels.
        rows: number of dataset rows by task and split, `{"rte": {"train": 2490, "validation": 277}}`.
        fingerprints: of each task's training rows (`rte`), of the encoder's weights before training (`encoder`), and
            of teachers (`teacher of rte`).
        results: results of the evaluation after this step; None without one.
        average: mean of `results` over the tasks.
        calibrations: of the same evaluation, by task, as `Evaluation` has them.
        best: step and score of the best checkpoint (`EarlyStopping`).
        waits: each task's best score and the number of evaluations since (`EarlyStopping`).
        stopped: the step at which each task was stopped (`EarlyStopping`).
        balancing: state of the loss weighting.
        window: sums since the last logged step.
        scaler: state of the fp16 gradient scaler; None in other precisions.
        seconds: duration of the run so far, over all resumptions.
        averaged_steps: number of steps in the average of the weights; 0 for none.
        max_steps: planned length of the run; 0 if unknown.
        versions: versions of `PACKAGES`.
        format_version: version of this file's format.
    """

    step: int
    run_id: str = ""
    command: str = ""
    labels: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    results: Results | None = None
    average: float | None = None
    calibrations: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=lambda: {"step": None})
    waits: dict[str, dict[str, float]] = field(default_factory=dict)
    stopped: dict[str, int] = field(default_factory=dict)
    balancing: dict[str, Any] = field(default_factory=dict)
    window: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] | None = None
    seconds: float = 0.0
    averaged_steps: int = 0
    max_steps: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def trained_run(self, best_by: str | None = None) -> TrainedRun:
        """The run's entries for a model card; `best_by` is the metric by which this is the best checkpoint."""
        results = self.results or {}
        return TrainedRun(
            self.step, self.command, self.versions, self.rows, results, self.stopped, best_by, self.calibrations
        )

    def to_json(self) -> str:
        """The text of `state.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "SavedState":
        """Reads the state from a checkpoint's folder.

        Raises:
            UserError: if the file cannot be read, or was written by a newer version of this project.
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
    """The state of a run between two steps.

    Args:
        model: the model.
        optimizer: the optimizer, not wrapped by Accelerate.
        weighting: the loss weighting.
        stopping: the evaluation history.
        window: sums since the last logged step.
        average: mean of the weights over the last steps.
        scaler: the fp16 gradient scaler.
        max_steps: planned length of the run.
        command: command line of the run.
        labels: names of each task's labels.
        rows: number of dataset rows by task and split.
        fingerprints: as of `SavedState`.
        step: number of steps done.
        results: results of the evaluation after this step; None without one.
        calibrations: of the same evaluation.
        run_id: the run's id in the trackers; a resumed run keeps it.
        seconds: duration of the run before it was resumed.
        planned_steps: length of the run when it was saved; 0 for a new run.
        started: when this process began, on the monotonic clock.
    """

    model: MultitaskModel
    optimizer: torch.optim.Optimizer
    weighting: LossWeighting
    stopping: EarlyStopping
    window: Stateful
    average: WeightAverage
    scaler: Any = None
    max_steps: int = 0
    command: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    step: int = 0
    results: Results | None = None
    calibrations: dict[str, dict[str, Any]] = field(default_factory=dict)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    seconds: float = 0.0
    planned_steps: int = 0
    started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Duration of the run in seconds, without the time between a stop and its resumption."""
        return self.seconds + time.monotonic() - self.started

    def advance(self, step: int) -> None:
        """Sets the step after an update, averages the weights, and clears the results of the last evaluation."""
        self.step, self.results, self.calibrations = step, None, {}
        self.average.update(step)

    def saved(self) -> SavedState:
        """The state to write to `state.json`: everything except the tensors."""
        return SavedState(
            step=self.step,
            run_id=self.run_id,
            command=self.command,
            labels={task: list(names) for task, names in self.labels.items()},
            rows={task: dict(splits) for task, splits in self.rows.items()},
            fingerprints=dict(self.fingerprints),
            results=self.results,
            average=average(self.results) if self.results else None,
            calibrations=self.calibrations,
            **self.stopping.state_dict(),
            balancing=self.weighting.state_dict(),
            window=self.window.state_dict(),
            scaler=self.scaler.state_dict() if self.scaler else None,
            seconds=self.elapsed(),
            averaged_steps=self.average.count,
            max_steps=self.max_steps,
            versions={package: version(package) for package in PACKAGES},
        )

    def load(self, saved: SavedState) -> None:
        """Restores the state that `saved` returned."""
        self.step, self.results, self.run_id = saved.step, saved.results, saved.run_id or self.run_id
        self.calibrations = saved.calibrations
        self.seconds, self.planned_steps = saved.seconds, saved.max_steps
        self.stopping.load_state_dict({"best": saved.best, "waits": saved.waits, "stopped": saved.stopped})
        self.weighting.load_state_dict(saved.balancing)
        self.window.load_state_dict(saved.window)
        if self.scaler and saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
