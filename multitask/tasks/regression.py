"""A number for one or two texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Value
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
)

from ..config.schema import TaskConfig
from ..data.columns import Layout
from ..data.split import Split
from ..errors import UserError
from .base import example_texts, pipeline_usage
from .labels import labelled_rows
from .losses import PLAIN, LossOptions
from .metrics import of_numbers
from .pictures import MOST_POINTS, Judged
from .texts import TextTask


class Regression(TextTask):
    """A number for one or two texts."""

    name = "regression"
    has_label_names = False
    has_teachers = True
    auto_class = AutoModelForSequenceClassification
    hub_name = "text-classification"
    columns = {"label": Value("float32")}
    metrics = ("pearson", "spearmanr", "mse")
    num_default_metrics = 2
    problem_type = "regression"
    prediction = reference = Value("float64")
    answer_types = {"score": pa.float64()}

    def labelled(self, dataset: Dataset, config: TaskConfig, labels: Sequence[str]) -> NDArray[np.bool_]:
        return labelled_rows(dataset, config.label_column, None)

    def read_label(self, value: Any, layout: Layout, known: Mapping[str, int], at: str) -> Any:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{at}: label {value!r} in column '{layout.label}' is not a finite number")
        return number

    def loss(self, logits: Tensor, labels: Tensor, options: LossOptions = PLAIN) -> Tensor:
        return F.mse_loss(logits.squeeze(-1), labels, reduction="none")

    def targets(self, logits: NDArray, split: Split) -> tuple[NDArray, NDArray]:
        assert isinstance(split.labels, np.ndarray)
        return split.labels, logits[:, 0]

    def predictions(self, logits: NDArray, split: Split, names: Sequence[str]) -> NDArray:
        return logits[:, 0]

    def answers(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
        return [{"score": float(score)} for score in logits[:, 0]]

    def outputs(self, labels: Sequence[str]) -> str:
        return "a number"

    def metric(self, name: str, num_labels: int) -> Callable[..., float]:
        return of_numbers(name)

    def label_names(self, name: str, config: TaskConfig, train: Dataset) -> tuple[str, ...]:
        return ()

    def log_label_space(self, labels: Sequence[str], train: Split) -> float:
        return 1.0

    def look(self, split: Split, logits: NDArray, labels: Sequence[str]) -> tuple[dict[str, Any], Judged]:
        true, predicted = split.row_labels.astype(np.float64), logits[:, 0].astype(np.float64)
        some = np.unique(np.linspace(0, len(true) - 1, MOST_POINTS).astype(int))
        points = {key: [float(f"{x:.4g}") for x in of[some]] for key, of in (("true", true), ("predicted", predicted))}
        judged: Judged = [(f"{p:.2f}", f"{t:.2f}", None, abs(p - t)) for p, t in zip(predicted, true, strict=True)]
        return {"kind": "scatter"} | points, judged

    def usage(self, name: str, num_inputs: int) -> str:
        call = f'pipe({example_texts(num_inputs)}, function_to_apply="none")'
        return pipeline_usage(self.hub_name, name, call)
