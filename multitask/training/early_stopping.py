"""What the evaluations of a run have shown so far: which step was best, and which tasks no longer improve."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError, hint
from ..tasks.metrics import HIGHER_IS_BETTER, Results, average

AVERAGE = "average"


def score(results: Results, name: str) -> float:
    """A number that is the greater the better.

    Args:
        results: of an evaluation.
        name: `average` over all tasks, `TASK` for the mean of its metrics, or `TASK/METRIC`. Errors count as less than
            nothing: -mse.
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
    """What a checkpoint keeps of a run's evaluations, so that a run that goes on decides as one that never stopped.

    Args:
        metric: by which the best checkpoint is chosen; a name as `score` takes it.
        patience: of the tasks that may be stopped, after how many evaluations in a row without a better mean metric.
        best: the step of the best checkpoint so far and, under the name of `metric`, its score.
        waits: of each task with patience, its best score so far and how many evaluations in a row were not better.
        stopped: after how many steps each task was stopped, in the order in which they were.
    """

    metric: str = AVERAGE
    patience: Mapping[str, int] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=lambda: {"step": None})
    waits: dict[str, dict[str, float]] = field(default_factory=dict)
    stopped: dict[str, int] = field(default_factory=dict)

    def add(self, step: int, results: Results) -> list[str]:
        """Takes in the evaluation after a step; gives the tasks that are stopped by it."""
        newly = []
        for task, patience in self.patience.items():
            if task not in self.stopped:
                of_task = self.waits.setdefault(task, {"best": -math.inf, "without": 0})
                if (value := score(results, task)) > of_task["best"]:
                    of_task.update(best=value, without=0)
                else:
                    of_task["without"] += 1
                if of_task["without"] >= patience:
                    self.stopped[task] = step
                    newly.append(task)
        return newly

    def is_best(self, results: Results | None) -> bool:
        """Whether an evaluation is better than that of the best checkpoint."""
        return bool(results) and score(results or {}, self.metric) > self.best.get(self.metric, -math.inf)

    def saved(self, step: int, results: Results | None) -> None:
        """Takes note that there is a checkpoint of a step, and of its evaluation, if it has one."""
        if results and self.is_best(results):
            self.best = {"step": step, self.metric: score(results, self.metric)}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "waits": self.waits, "stopped": self.stopped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.best, self.waits, self.stopped = dict(state["best"]), dict(state["waits"]), dict(state["stopped"])


def check_stopping(
    metric: str, patience: Collection[str], load_best: bool, measured: Mapping[str, Collection[str]]
) -> None:
    """Refuses what no evaluation of this run can tell.

    Args:
        metric: by which the best checkpoint is to be chosen.
        patience: the tasks that have a patience.
        load_best: whether the best checkpoint is to be exported.
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
