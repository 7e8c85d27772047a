"""The right one of several choices."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForMultipleChoice,
)

from ..config.schema import TaskConfig
from ..data.columns import Layout, is_missing, label_text, number_of, value_at
from ..data.split import Split
from ..errors import UserError
from .base import model_usage
from .labels import arrow_column, labelled_rows
from .losses import PLAIN, LossOptions
from .metrics import of_classes
from .pictures import Judged, confusion, judged_classes
from .texts import SHIFT, TextTask


class MultipleChoice(TextTask):
    """The right one of several choices."""

    name = "multiple_choice"
    auto_class = AutoModelForMultipleChoice
    hub_name = "multiple-choice"
    metrics = ("accuracy", "f1", "matthews_correlation")
    reads_choices = True
    has_label_names = False
    has_teachers = is_calibrated = True
    several_sequences = True
    answer_types = {"label": pa.string(), "choice": pa.int64(), "score": pa.float64()}

    def read_label(self, value: Any, layout: Layout, known: Mapping[str, int], at: str) -> Any:
        is_index = isinstance(value, bool) and not layout.choice_labels
        return number_of(int(value) if is_index else value, layout, known, at)

    def loss(self, logits: Tensor, labels: Tensor, options: LossOptions = PLAIN) -> Tensor:
        """Cross-entropy over the choices that a row has; of probabilities, those that it lacks are -1."""
        if labels.is_floating_point():
            return F.cross_entropy(logits.masked_fill(labels < 0, -1e9), labels.clamp(min=0), reduction="none")
        counts = (labels >> SHIFT)[:, None]  # 0 where it has all
        is_absent = (counts > 0) & (torch.arange(logits.shape[1], device=logits.device) >= counts)
        return F.cross_entropy(
            logits.masked_fill(is_absent, -torch.inf), labels & ((1 << SHIFT) - 1), reduction="none"
        )

    def targets(self, logits: NDArray, split: Split) -> tuple[NDArray, NDArray]:
        assert isinstance(split.labels, np.ndarray)
        own = np.eye(logits.shape[1])[split.labels & ((1 << SHIFT) - 1)]
        taught = present(logits, split.labels >> SHIFT)
        is_absent = np.isinf(taught)
        return np.where(is_absent, -1, own), np.where(is_absent, -1, softmax(taught, axis=-1))

    def calibration_logits(self, logits: NDArray, split: Split) -> NDArray:
        return present(logits, split.row_labels >> SHIFT)

    def predictions(self, logits: NDArray, split: Split, names: Sequence[str]) -> NDArray:
        return present(logits, split.row_labels >> SHIFT).argmax(axis=-1)

    def references(self, split: Split, names: Sequence[str]) -> NDArray:
        return split.row_labels & ((1 << SHIFT) - 1)

    def answers(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
        counts = np.array([len(choices) for choices in split.notes["choices"]])
        return [
            {
                "label": choices[of_row.argmax()],
                "choice": int(of_row.argmax()),
                "score": float(of_row.max()),
                "probabilities": of_row[: len(choices)].tolist(),
            }
            for of_row, choices in zip(softmax(present(logits, counts), axis=-1), split.notes["choices"], strict=True)
        ]

    def metric(self, name: str, num_labels: int) -> Callable[..., float]:
        return of_classes(name, num_labels)

    def label_names(self, name: str, config: TaskConfig, train: Dataset) -> tuple[str, ...]:
        assert config.choices is not None
        if not isinstance(config.choices, str):
            return tuple(config.choices)
        column = arrow_column(train, config.choices)
        if column is not None and pa.types.is_list(column.type):
            most = pc.max(pc.list_value_length(column)).as_py() or 0
        else:
            lists = (value_at(row, config.choices) for row in train)
            most = max((len(choices) for choices in lists if isinstance(choices, list)), default=0)
        if most < 2:
            first = value_at(train[0], config.choices)
            raise UserError(
                f"tasks.{name}.choices: '{config.choices}' holds {first!r}, not a list of two or more choices"
            )
        return tuple(str(position) for position in range(most))

    def label_numbers(
        self, config: TaskConfig, labels: Sequence[str], feature: Any, values: Callable[[], list]
    ) -> dict[str, int]:
        """Positions from 0 or from 1, letters, or the names of the columns; empty where labels are choices' texts."""
        positions = range(len(labels))
        ways = [{str(p): p for p in positions}, {str(p + 1): p for p in positions}]
        ways += [{chr(ord(first) + p): p for p in positions} for first in "Aa"]
        ways += [{column: p for p, column in enumerate(config.choices)}] if isinstance(config.choices, list) else []
        if config.choice_labels:
            return ways[0]
        found = {label_text(int(v) if isinstance(v, bool) else v) for v in values() if not is_missing(v)}
        found -= {"", "-1", "-100"}
        return next((way for way in ways if found <= way.keys()), {})

    def labelled(self, dataset: Dataset, config: TaskConfig, labels: Sequence[str]) -> NDArray[np.bool_]:
        return labelled_rows(dataset, config.label_column, ())

    def look(self, split: Split, logits: NDArray, labels: Sequence[str]) -> tuple[dict[str, Any], Judged]:
        logits = present(logits, split.row_labels >> SHIFT)
        true, predicted = self.references(split, labels), logits.argmax(axis=-1)
        shown = [f"choice {number + 1}" for number in range(len(labels))]
        numbers = [str(number) for number in range(len(labels))]
        return confusion(true, predicted, shown), judged_classes(true, predicted, logits, numbers)

    def shown_label(self, label: str, row: dict[str, Any], layout: Layout) -> str:
        """The choice's text."""
        choices = layout.choices
        assert choices is not None
        return str(
            value_at(row, choices)[int(label)] if isinstance(choices, str) else value_at(row, choices[int(label)])
        )

    def usage(self, name: str, num_inputs: int) -> str:
        return model_usage(
            self.auto_class,
            name,
            'inputs = tokenizer(["A question?"] * 2, ["one choice", "another"], return_tensors="pt", padding=True)\n'
            "model(**{name: tensor[None] for name, tensor in inputs.items()}).logits.argmax()",
        )


def present(logits: NDArray, counts: NDArray) -> NDArray:
    """Logits of shape (rows, choices) with -inf for choices that a row lacks; a count of 0 means that it has all."""
    is_absent = (counts[:, None] > 0) & (np.arange(logits.shape[1]) >= counts[:, None])
    return np.where(is_absent, -np.inf, logits)
