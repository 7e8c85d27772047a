"""A number for one or two texts."""

from collections.abc import Sequence
from typing import Any

from datasets import Value
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
)

from ..data.split import Split
from .texts import TextTask


class Regression(TextTask):
    """A number for one or two texts."""

    name = "regression"
    auto_class = AutoModelForSequenceClassification
    hub_name = "text-classification"
    columns = {"label": Value("float32")}
    metrics = ("pearson", "spearmanr", "mse")
    num_default_metrics = 2
    problem_type = "regression"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(logits.squeeze(-1), labels, reduction="none")

    def predictions(self, logits: NDArray, split: Split, names: Sequence[str]) -> NDArray:
        return logits[:, 0]

    def answers(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
        return [{"score": float(score)} for score in logits[:, 0]]

    def outputs(self, labels: Sequence[str]) -> str:
        return "a number"
