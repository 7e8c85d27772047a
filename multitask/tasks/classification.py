"""One of several classes for one or two texts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
)

from ..data.split import Split
from .base import by_name, example_texts, pipeline_usage
from .losses import PLAIN, LossOptions, class_loss
from .metrics import of_classes
from .pictures import Judged, confusion, judged_classes
from .texts import TextTask


class Classification(TextTask):
    """One of several classes for one or two texts."""

    name = "classification"
    auto_class = AutoModelForSequenceClassification
    hub_name = "text-classification"
    metrics = ("accuracy", "f1", "matthews_correlation")
    loss_options = ("class_weights", "label_smoothing_factor", "focal_gamma")
    problem_type = "single_label_classification"

    def loss(self, logits: Tensor, labels: Tensor, options: LossOptions = PLAIN) -> Tensor:
        return class_loss(logits, labels, options)

    def class_counts(self, split: Split, labels: Sequence[str]) -> NDArray[np.int64]:
        return np.bincount(split.row_labels, minlength=len(labels))

    def predictions(self, logits: NDArray, split: Split, names: Sequence[str]) -> NDArray:
        return logits.argmax(axis=-1)

    def answers(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {"label": names[of_row.argmax()], "score": float(of_row.max()), "probabilities": by_name(of_row, names)}
            for of_row in softmax(logits, axis=-1)
        ]

    def metric(self, name: str, num_labels: int) -> Callable[..., float]:
        return of_classes(name, num_labels)

    def look(self, split: Split, logits: NDArray, labels: Sequence[str]) -> tuple[dict[str, Any], Judged]:
        true, predicted = split.row_labels, logits.argmax(axis=-1)
        return confusion(true, predicted, labels), judged_classes(true, predicted, logits, labels)

    def usage(self, name: str, num_inputs: int) -> str:
        return pipeline_usage(self.hub_name, name, f"pipe({example_texts(num_inputs)})")
