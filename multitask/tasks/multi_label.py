"""Any number of labels for one or two texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, List, Value
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
)

from ..config.schema import TaskConfig
from ..data.columns import Layout, label_text, number_of, value_at
from ..data.split import Split
from ..errors import UserError
from .base import by_name, example_texts, pipeline_usage
from .calibration import decided
from .labels import arrow_column, column_labels, dense_names, distinct, labelled_rows, numbers_in
from .losses import PLAIN, LossOptions, label_loss
from .metrics import of_labels
from .pictures import MOST_LABELS, Judged
from .texts import TextTask


class MultiLabelClassification(TextTask):
    """Any number of labels for one or two texts."""

    name = "multi_label_classification"
    auto_class = AutoModelForSequenceClassification
    hub_name = "text-classification"
    columns = {"label": List(Value("float32"))}
    metrics = ("f1_micro", "f1_macro", "accuracy")
    num_default_metrics = 2
    takes_label_columns = has_teachers = is_calibrated = True
    loss_options = ("class_weights", "label_smoothing_factor", "focal_gamma")
    problem_type = "multi_label_classification"
    prediction = reference = List(Value("int64"))
    answer_types = {"labels": pa.list_(pa.string())}

    def read_label(self, value: Any, layout: Layout, known: Mapping[str, int], at: str) -> Any:
        if not isinstance(value, list):
            raise UserError(f"{at}: column '{layout.label}' holds {value!r}, not a list of labels")
        size = len({*known.values()})
        if layout.is_dense:
            return numbers_in(value, size, layout, at)
        present = {number_of(item, layout, known, at) for item in value}
        return [float(number in present) for number in range(size)]

    def loss(self, logits: Tensor, labels: Tensor, options: LossOptions = PLAIN) -> Tensor:
        return label_loss(logits, labels, options)

    def targets(self, logits: NDArray, split: Split) -> tuple[NDArray, NDArray]:
        assert isinstance(split.labels, np.ndarray)
        return split.labels, expit(logits)

    def class_counts(self, split: Split, labels: Sequence[str]) -> NDArray[np.int64]:
        return self.references(split, labels).sum(axis=0)

    def references(self, split: Split, names: Sequence[str]) -> NDArray[np.int64]:
        """0 or 1 for each label; 1 where it is likelier than not."""
        return (split.row_labels > 0.5).astype(np.int64)

    def predictions(
        self, logits: NDArray, split: Split, names: Sequence[str], thresholds: Sequence[float] | None = None
    ) -> NDArray:
        return decided(logits, thresholds)

    def answers(
        self, logits: NDArray, split: Split, names: Sequence[str], thresholds: Sequence[float] | None = None
    ) -> list[dict[str, Any]]:
        return [
            {
                "labels": [name for name, is_there in zip(names, there, strict=True) if is_there],
                "probabilities": by_name(of_row, names),
            }
            for of_row, there in zip(expit(logits), decided(logits, thresholds), strict=True)
        ]

    def metric(self, name: str, num_labels: int) -> Callable[..., float]:
        return of_labels(name, num_labels)

    def label_names(self, name: str, config: TaskConfig, train: Dataset) -> tuple[str, ...]:
        if config.label_names or self.is_dense(config, train):
            return (
                dense_names(name, config, train) if self.is_dense(config, train) else tuple(config.label_names or ())
            )
        return column_labels(name, config, train, in_lists=True, least=1)

    def is_dense(self, config: TaskConfig, train: Dataset) -> bool:
        """Whether rows have a number for each label; a list of labels called 0 and 1 would never hold one twice."""
        if isinstance(config.label, list):
            return True
        column = arrow_column(train, config.label_column)
        if column is not None and pa.types.is_list(column.type) and pa.types.is_floating(column.type.value_type):
            return True
        if not set(map(label_text, distinct(train, config.label_column, in_lists=True))) <= {
            "0",
            "1",
            "True",
            "False",
        }:
            return False
        rows = [value_at(row, config.label_column) for row in train.select(range(min(len(train), 1000)))]
        lists = [row for row in rows if isinstance(row, list)]
        is_one_length = len({len(row) for row in lists}) == 1
        return is_one_length and (bool(config.label_names) or any(len({*row}) < len(row) for row in lists))

    def labelled(self, dataset: Dataset, config: TaskConfig, labels: Sequence[str]) -> NDArray[np.bool_]:
        return labelled_rows(dataset, config.label_column, None)

    def log_label_space(self, labels: Sequence[str], train: Split) -> float:
        return math.log(2)  # each label is a binary decision

    def look(self, split: Split, logits: NDArray, labels: Sequence[str]) -> tuple[dict[str, Any], Judged]:
        true, predicted, sure = split.row_labels > 0.5, logits > 0, expit(logits)
        found, missed, wrong = (true & predicted).sum(0), (true & ~predicted).sum(0), (~true & predicted).sum(0)
        most = np.argsort(-(found + missed + wrong), kind="stable")[:MOST_LABELS]
        bars = {labels[i]: [int(found[i]), int(missed[i]), int(wrong[i])] for i in most}

        def names(flags: NDArray) -> str:
            return ", ".join(name for name, flag in zip(labels, flags, strict=True) if flag) or "none"

        error = np.where(true != predicted, np.maximum(sure, 1 - sure), 0).max(axis=-1, initial=0)
        confidence = np.maximum(sure, 1 - sure).min(axis=-1, initial=1)
        judged: Judged = [
            (names(p), names(t), float(e if e else c), float(e))
            for p, t, e, c in zip(predicted, true, error, confidence, strict=True)
        ]
        return {"kind": "bars", "segments": ["found", "missed", "wrong"], "bars": bars}, judged

    def usage(self, name: str, num_inputs: int) -> str:
        call = f'pipe({example_texts(num_inputs)}, function_to_apply="sigmoid", top_k=None)'
        return pipeline_usage(self.hub_name, name, call)
