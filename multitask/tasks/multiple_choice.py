"""The right one of several choices."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForMultipleChoice,
)

from ..data.split import Split
from .texts import TextTask


class MultipleChoice(TextTask):
    """The right one of several choices."""

    name = "multiple_choice"
    auto_class = AutoModelForMultipleChoice
    hub_name = "multiple-choice"
    metrics = ("accuracy", "f1", "matthews_correlation")

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
