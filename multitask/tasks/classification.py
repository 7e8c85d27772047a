"""One of several classes for one or two texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, List, Value
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
)

from ..config.schema import TaskConfig
from ..data.columns import Layout
from ..data.split import Split
from ..errors import UserError
from .base import by_name, example_texts, pipeline_usage
from .labels import dense_names, holds_numbers, numbers_in
from .losses import PLAIN, LossOptions, class_loss
from .metrics import of_classes
from .pictures import Judged, confusion, judged_classes
from .texts import TextTask

SUM_TOLERANCE = 0.01  # of probabilities that were rounded


class Classification(TextTask):
    """One of several classes for one or two texts."""

    name = "classification"
    auto_class = AutoModelForSequenceClassification
    hub_name = "text-classification"
    metrics = ("accuracy", "f1", "matthews_correlation")
    takes_label_columns = has_teachers = is_calibrated = True
    loss_options = ("class_weights", "label_smoothing_factor", "focal_gamma")
    problem_type = "single_label_classification"

    def read_label(self, value: Any, layout: Layout, known: Mapping[str, int], at: str) -> Any:
        if not layout.is_dense:
            return super().read_label(value, layout, known, at)
        probabilities = numbers_in(value, len({*known.values()}), layout, at)
        if abs(sum(probabilities) - 1) > SUM_TOLERANCE:
            raise UserError(
                f"{at}: column '{layout.label}' holds {value!r}, which sums to {sum(probabilities):g}; the "
                f"probabilities of a row's classes sum to 1"
            )
        return [probability / sum(probabilities) for probability in probabilities]

    def is_dense(self, config: TaskConfig, train: Dataset) -> bool:
        return isinstance(config.label, list) or holds_numbers(train, config.label_column)

    def label_columns(self, is_dense: bool) -> dict[str, Any]:
        return {"label": List(Value("float32"))} if is_dense else self.columns

    def label_names(self, name: str, config: TaskConfig, train: Dataset) -> tuple[str, ...]:
        return (
            dense_names(name, config, train)
            if self.is_dense(config, train)
            else super().label_names(name, config, train)
        )

    def references(self, split: Split, names: Sequence[str]) -> NDArray:
        """The class; of probabilities, the likeliest."""
        return split.row_labels.argmax(axis=-1) if split.row_labels.ndim == 2 else split.row_labels

    def loss(self, logits: Tensor, labels: Tensor, options: LossOptions = PLAIN) -> Tensor:
        return class_loss(logits, labels, options)

    def targets(self, logits: NDArray, split: Split) -> tuple[NDArray, NDArray]:
        assert isinstance(split.labels, np.ndarray)
        own = split.labels if split.labels.ndim == 2 else np.eye(logits.shape[1])[split.labels]
        return own, softmax(logits, axis=-1)

    def class_counts(self, split: Split, labels: Sequence[str]) -> NDArray[np.int64]:
        return np.bincount(self.references(split, labels), minlength=len(labels))

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
        true, predicted = self.references(split, labels), logits.argmax(axis=-1)
        return confusion(true, predicted, labels), judged_classes(true, predicted, logits, labels)

    def usage(self, name: str, num_inputs: int) -> str:
        return pipeline_usage(self.hub_name, name, f"pipe({example_texts(num_inputs)})")
