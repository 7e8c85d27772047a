"""The right one of several choices."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForMultipleChoice,
)

from ..config.schema import TaskConfig
from ..data.columns import Layout, number_of, value_at
from ..data.split import Split
from ..errors import UserError
from .base import model_usage
from .metrics import of_classes
from .pictures import Judged, confusion, judged_classes
from .texts import TextTask


class MultipleChoice(TextTask):
    """The right one of several choices."""

    name = "multiple_choice"
    auto_class = AutoModelForMultipleChoice
    hub_name = "multiple-choice"
    metrics = ("accuracy", "f1", "matthews_correlation")
    reads_choices = True
    several_sequences = True
    answer_types = {"label": pa.string(), "choice": pa.int64(), "score": pa.float64()}

    def read_label(self, value: Any, layout: Layout, known: Mapping[str, int], at: str) -> Any:
        is_index = isinstance(value, bool) and not layout.choice_labels
        return number_of(int(value) if is_index else value, layout, known, at)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    def predictions(self, logits: NDArray, split: Split, names: Sequence[str]) -> NDArray:
        return logits.argmax(axis=-1)

    def answers(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "label": choices[of_row.argmax()],
                "choice": int(of_row.argmax()),
                "score": float(of_row.max()),
                "probabilities": of_row.tolist(),
            }
            for of_row, choices in zip(softmax(logits, axis=-1), split.notes["choices"], strict=True)
        ]

    def metric(self, name: str, num_labels: int) -> Callable[..., float]:
        return of_classes(name, num_labels)

    def label_names(self, name: str, config: TaskConfig, train: Dataset) -> tuple[str, ...]:
        assert config.choices is not None
        if not isinstance(config.choices, str):
            return tuple(config.choices)
        first = value_at(train[0], config.choices)
        if not isinstance(first, list) or len(first) < 2:
            raise UserError(
                f"tasks.{name}.choices: '{config.choices}' holds {first!r}, not a list of two or more choices"
            )
        return tuple(str(position) for position in range(len(first)))

    def look(self, split: Split, logits: NDArray, labels: Sequence[str]) -> tuple[dict[str, Any], Judged]:
        true, predicted = split.row_labels, logits.argmax(axis=-1)
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
