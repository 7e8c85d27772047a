"""Any number of labels for one or two texts."""

from collections.abc import Sequence
from typing import Any

from datasets import List, Value
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
)

from ..data.split import Split
from .base import by_name
from .texts import TextTask


class MultiLabelClassification(TextTask):
    """Any number of labels for one or two texts."""

    name = "multi_label_classification"
    auto_class = AutoModelForSequenceClassification
    hub_name = "text-classification"
    columns = {"label": List(Value("float32"))}
    metrics = ("f1_micro", "f1_macro", "accuracy")
    num_default_metrics = 2
    problem_type = "multi_label_classification"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1)

    def predictions(self, logits: NDArray, split: Split, names: Sequence[str]) -> NDArray:
        return (logits > 0).astype(int)

    def answers(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "labels": [name for name, probability in zip(names, of_row, strict=True) if probability > 0.5],
                "probabilities": by_name(of_row, names),
            }
            for of_row in expit(logits)
        ]
