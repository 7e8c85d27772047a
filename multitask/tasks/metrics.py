"""Metrics as `evaluate` modules over scikit-learn and SciPy, since loading those on the hub needs a network."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from seqeval import metrics as seqeval  # type: ignore[import-untyped]
from sklearn import metrics

from ..config.schema import METRIC_NAMES


class LocalMetric(evaluate.Metric):
    """A metric computed by a function of (references, predictions).

    Args:
        name: its name in results.
        function: (references, predictions) -> value; its docstring describes the metric.
        prediction: type of a prediction.
        reference: type of a reference.
    """

    def __init__(self, name: str, function: Callable[..., float], prediction: Any, reference: Any):
        self.function, self.types = function, {"predictions": prediction, "references": reference}
        super().__init__(config_name=name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(self.function.__doc__), citation="", features=datasets.Features(self.types)
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {str(self.config_name): float(self.function(references, predictions))}


# Whether higher is better, by metric.
HIGHER_IS_BETTER = {
    "accuracy": True,
    "exact_match": True,
    "f1": True,
    "f1_macro": True,
    "f1_micro": True,
    "matthews_correlation": True,
    "mse": False,
    "pearson": True,
    "precision": True,
    "recall": True,
    "spearmanr": True,
}
METRIC_NAMES.update(HIGHER_IS_BETTER)


def of_numbers(name: str) -> Callable[..., float]:
    """A metric of numeric (references, predictions); the correlation with a constant is NaN."""
    return {"pearson": _pearson, "spearmanr": _spearmanr, "mse": metrics.mean_squared_error}[name]


def of_classes(name: str, num_classes: int) -> Callable[..., float]:
    """A metric of (references, predictions) that are class indices.

    With two classes f1 is that of class 1, as GLUE reports it; with more it is the mean over the classes (macro).
    """
    f1 = _binary_f1 if num_classes == 2 else _macro_f1
    return {"accuracy": metrics.accuracy_score, "f1": f1, "matthews_correlation": metrics.matthews_corrcoef}[name]


def of_labels(name: str, num_labels: int) -> Callable[..., float]:
    """A metric of (references, predictions) with 0 or 1 for each label."""
    if name == "accuracy":
        return metrics.accuracy_score
    return partial(_labels_f1, name.removeprefix("f1_"), num_labels)


def of_spans(name: str) -> Callable[..., float]:
    """A metric of (references, predictions) with a tag for each word."""
    return partial(_spans, name)


def of_answers(name: str) -> Callable[..., float]:
    """A metric of (references, predictions): all correct answers to a question, and the predicted one."""
    return partial(_squad, name)


def _binary_f1(references: Sequence, predictions: Sequence) -> float:
    """Harmonic mean of precision and recall of class 1."""
    return metrics.f1_score(references, predictions, average="binary", zero_division=0.0)


def _macro_f1(references: Sequence, predictions: Sequence) -> float:
    """Macro F1: the mean F1 over the classes that occur."""
    return metrics.f1_score(references, predictions, average="macro", zero_division=0.0)


def _labels_f1(average: str, num_labels: int, references: Sequence, predictions: Sequence) -> float:
    """Multi-label F1: over all labels together (micro), or the mean over labels (macro)."""
    average = average if num_labels > 1 else "binary"  # else scikit-learn takes a single label for two classes
    shape = (-1, num_labels) if num_labels > 1 else -1
    of_rows = [np.asarray(labels).reshape(shape) for labels in (references, predictions)]
    return metrics.f1_score(*of_rows, average=average, zero_division=0.0)


def _spans(name: str, references: list[list[str]], predictions: list[list[str]]) -> float:
    """Precision, recall and F1 of whole spans as in CoNLL (micro average); accuracy is that of words.

    `seqeval` knows B, I, E, S and O; the L(ast) and U(nit) of BILOU are renamed to E(nd) and S(ingle).
    """
    renamed = {"L-": "E-", "U-": "S-"}
    references, predictions = (
        [[renamed.get(tag[:2], tag[:2]) + tag[2:] for tag in row] for row in rows]
        for rows in (references, predictions)
    )
    if name == "accuracy":
        return seqeval.accuracy_score(references, predictions)
    return getattr(seqeval, f"{name}_score")(references, predictions, average="micro", zero_division=0)


def _squad(name: str, references: list[list[str]], predictions: list[str]) -> float:
    """Exact match or token F1 of the normalised text as in SQuAD, from 0 to 1."""
    from torchmetrics.functional.text import squad  # imported here because it takes a second

    answers: list[Any] = [{"id": str(i), "prediction_text": text} for i, text in enumerate(predictions)]
    right: list[Any] = [
        {"id": str(i), "answers": {"text": texts, "answer_start": [0] * len(texts)}}
        for i, texts in enumerate(references)
    ]
    return float(squad(answers, right)[name]) / 100


def _pearson(references: Sequence, predictions: Sequence) -> float:
    """Pearson's correlation; NaN where one side is constant."""
    defined = np.ptp(references) and np.ptp(predictions)
    return stats.pearsonr(references, predictions).statistic if defined else np.nan


def _spearmanr(references: Sequence, predictions: Sequence) -> float:
    """Spearman's rank correlation; NaN where one side is constant."""
    defined = np.ptp(references) and np.ptp(predictions)
    return stats.spearmanr(references, predictions).statistic if defined else np.nan


# Metrics of each task: {"rte": {"accuracy": 0.61}}.
Results = dict[str, dict[str, float]]


def average(results: Results) -> float:
    """The mean over tasks of the mean of each task's defined metrics, as in GLUE; NaN if none is defined."""
    defined = [[v for v in metrics.values() if v is not None and np.isfinite(v)] for metrics in results.values()]
    return float(np.mean([float(np.mean(of_task)) for of_task in defined if of_task] or [np.nan]))


def undefined(results: Results) -> list[str]:
    """The metrics that are not defined, as TASK/METRIC: correlations with constant predictions or labels."""
    return [f"{task}/{name}" for task, metrics in results.items() for name, v in metrics.items() if not np.isfinite(v)]
