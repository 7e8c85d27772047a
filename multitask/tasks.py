"""What differs between types of tasks: the head, the loss of an example, what a head's numbers say, the metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification


@dataclass(frozen=True)
class TaskType:
    """A type of task.

    Args:
        name: what the configuration calls it.
        auto_class: the `transformers` class that puts this head on an encoder.
        loss: (logits, labels) -> loss of each example, shape (examples,).
        predict: logits of shape (examples, outputs) -> predictions of shape (examples,).
        metrics: names of the metrics that can measure it, its usual ones first.
        num_default_metrics: how many of those it reports unless told otherwise.
        problem_type: what `transformers` calls it in a model's configuration.
    """

    name: str
    auto_class: Any
    loss: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[np.ndarray], np.ndarray]
    metrics: tuple[str, ...]
    num_default_metrics: int = 1
    problem_type: Literal["regression", "single_label_classification"] | None = None


def _squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits.float().squeeze(-1), labels, reduction="none")


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, reduction="none")


def _first_output(logits: np.ndarray) -> np.ndarray:
    return logits[:, 0]


def _most_likely(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=-1)


_TYPES = [
    TaskType(
        "regression",
        AutoModelForSequenceClassification,
        _squared_error,
        _first_output,
        metrics=("pearson", "spearmanr", "mse"),
        num_default_metrics=2,
        problem_type="regression",
    ),
    TaskType(
        "classification",
        AutoModelForSequenceClassification,
        _cross_entropy,
        _most_likely,
        metrics=("accuracy", "f1", "matthews_correlation"),
        problem_type="single_label_classification",
    ),
    TaskType(
        "multiple_choice",
        AutoModelForMultipleChoice,
        _cross_entropy,
        _most_likely,
        metrics=("accuracy", "f1", "matthews_correlation"),
    ),
]
TASK_TYPES = {task_type.name: task_type for task_type in _TYPES}
