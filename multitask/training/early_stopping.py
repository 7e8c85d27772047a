"""Tracks the evaluations of a run: the best checkpoint, and early stopping of tasks that no longer improve."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError, hint
from ..tasks.metrics import HIGHER_IS_BETTER, Results, average

AVERAGE = "average"


def score(results: Results, name: str) -> float:
    """Computes a score for which higher is better.

    Args:
        results: results of an evaluation.
        name: `average` over all tasks, `TASK` for the mean of its metrics, or `TASK/METRIC`. Metrics for which lower
            is better are negated: -mse. Those that are not defined are left out; NaN if none is.
    """
    task, _, metric = name.partition("/")
    chosen = results if name == AVERAGE else {task: results[task]}
    return average(
        {
            task: {
                key: value if HIGHER_IS_BETTER[key] else -value
                for key, value in of_task.items()
                if metric in ("", key)
            }
            for task, of_task in chosen.items()
        }
    )


@dataclass
class EarlyStopping:
    """Evaluation history of a run. It is saved in checkpoints, so that a resumed run makes the same decisions.

    Args:
        metric: metric that chooses the best checkpoint; a name that `score` accepts.
        patience: for each task with early stopping, the number of consecutive evaluations without a better mean metric
            after which it is stopped.
        best: step of the best checkpoint so far and, under the name of `metric`, its score.
        waits: for each task with patience, its best score and the number of evaluations since.
        stopped: the step at which each task was stopped, in order of stopping.
    """

    metric: str = AVERAGE
    patience: Mapping[str, int] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=lambda: {"step": None})
    waits: dict[str, dict[str, float]] = field(default_factory=dict)
    stopped: dict[str, int] = field(default_factory=dict)

    def add(self, step: int, results: Results) -> list[str]:
        """Records the evaluation after a step; returns the tasks that it stops."""
        newly = []
        for task, patience in self.patience.items():
            if task not in self.stopped:
                of_task = self.waits.setdefault(task, {"best": -math.inf, "without": 0})
                if math.isnan(value := score(results, task)):
                    continue  # neither better nor worse
                if value > of_task["best"]:
                    of_task.update(best=value, without=0)
                else:
                    of_task["without"] += 1
                if of_task["without"] >= patience:
                    self.stopped[task] = step
                    newly.append(task)
        return newly

    def is_best(self, results: Results | None) -> bool:
        """Whether an evaluation scores higher than that of the best checkpoint."""
        return bool(results) and score(results or {}, self.metric) > self.best.get(self.metric, -math.inf)

    def saved(self, step: int, results: Results | None) -> None:
        """Records that a checkpoint was saved, and updates the best one if its evaluation is better."""
        if results and self.is_best(results):
            self.best = {"step": step, self.metric: score(results, self.metric)}

    def state_dict(self) -> dict[str, Any]:
        """The state to save in a checkpoint."""
        return {"best": self.best, "waits": self.waits, "stopped": self.stopped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.best, self.waits, self.stopped = dict(state["best"]), dict(state["waits"]), dict(state["stopped"])


def check_stopping(
    metric: str, patience: Collection[str], load_best: bool, measured: Mapping[str, Collection[str]]
) -> None:
    """Refuses settings that depend on metrics that this run does not compute.

    Args:
        metric: metric that chooses the best checkpoint.
        patience: the tasks that have a patience.
        load_best: whether to export the best checkpoint.
        measured: the metrics of each task that has validation rows.

    Raises:
        UserError: naming the key.
    """
    names = [AVERAGE, *measured, *(f"{task}/{name}" for task, metrics in measured.items() for name in metrics)]
    if metric not in names:
        raise UserError(f"training.metric_for_best_model: '{metric}' is not measured{hint(metric, names)}")
    if load_best and not measured:
        raise UserError("training.load_best_model_at_end: no task has validation rows, so none is the best")
    for task in patience:
        if task not in measured:
            raise UserError(
                f"tasks.{task}.patience: it has no validation rows with labels that would tell when to stop"
            )
