"""One of several classes for one or two texts."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
)

from ..data.split import Split
from .base import by_name
from .texts import TextTask


class Classification(TextTask):
    """One of several classes for one or two texts."""

    name = "classification"
    auto_class = AutoModelForSequenceClassification
    hub_name = "text-classification"
    metrics = ("accuracy", "f1", "matthews_correlation")
    problem_type = "single_label_classification"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    def predictions(self, logits: NDArray, split: Split, names: Sequence[str]) -> NDArray:
        return logits.argmax(axis=-1)

    def answers(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {"label": names[of_row.argmax()], "score": float(of_row.max()), "probabilities": by_name(of_row, names)}
            for of_row in softmax(logits, axis=-1)
        ]
