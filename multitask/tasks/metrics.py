"""The metrics, as `evaluate` modules over scikit-learn and SciPy; those on the hub need a network to load."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from seqeval import metrics as seqeval  # type: ignore[import-untyped]
from sklearn import metrics


class LocalMetric(evaluate.Metric):
    """A metric that is one function of (references, predictions).

    Args:
        name: its name in results.
        function: (references, predictions) -> value; its docstring describes the metric.
        prediction: type of a prediction.
        reference: type of what is right.
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


def load_metric(task_type: str, name: str, num_classes: int) -> LocalMetric:
    """A metric of a type of task.

    Args:
        task_type: as in the configuration.
        name: one of `TASK_TYPES[task_type].metrics`.
        num_classes: or labels. In classification, f1 is that of class 1 where there are two classes, as GLUE reports
            it, and the mean over the classes (macro) where there are more.

    Returns:
        An `evaluate.Metric`; a correlation with a constant is not defined and comes out as NaN.
    """
    number, text = datasets.Value("float64"), datasets.Value("string")
    if task_type == "regression":
        of_numbers = {"pearson": _pearson, "spearmanr": _spearmanr, "mse": metrics.mean_squared_error}
        return LocalMetric(name, of_numbers[name], number, number)
    if task_type == "token_classification":
        return LocalMetric(name, partial(_spans, name), datasets.List(text), datasets.List(text))
    if task_type == "question_answering":
        return LocalMetric(name, partial(_squad, name), text, datasets.List(text))
    functions = {
        "accuracy": metrics.accuracy_score,
        "f1": _binary_f1 if num_classes == 2 else _macro_f1,
        "f1_macro": partial(_labels_f1, "macro", num_classes),
        "f1_micro": partial(_labels_f1, "micro", num_classes),
        "matthews_correlation": metrics.matthews_corrcoef,
    }
    label = datasets.Value("int64")
    label = datasets.List(label) if task_type == "multi_label_classification" else label
    return LocalMetric(name, functions[name], label, label)


def _binary_f1(references: Sequence, predictions: Sequence) -> float:
    """Harmonic mean of precision and recall of class 1."""
    return metrics.f1_score(references, predictions, average="binary", zero_division=0.0)


def _macro_f1(references: Sequence, predictions: Sequence) -> float:
    """Mean over the classes that occur of the harmonic mean of precision and recall."""
    return metrics.f1_score(references, predictions, average="macro", zero_division=0.0)


def _labels_f1(average: str, num_labels: int, references: Sequence, predictions: Sequence) -> float:
    """F1 of labels of which a row may have several: over all of them together (micro), or their mean (macro)."""
    average = average if num_labels > 1 else "binary"  # scikit-learn would count the rows without the only label too
    shape = (-1, num_labels) if num_labels > 1 else -1
    of_rows = [np.asarray(labels).reshape(shape) for labels in (references, predictions)]
    return metrics.f1_score(*of_rows, average=average, zero_division=0.0)


def _spans(name: str, references: list[list[str]], predictions: list[list[str]]) -> float:
    """Precision, recall and F1 of whole spans as in CoNLL (micro average), accuracy of words.

    `seqeval` knows B, I, E, S and O; the L(ast) and U(nit) of BILOU are other names of E(nd) and S(ingle).
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
    """Exact match and token F1 over the normalised text, as SQuAD defines them; 1 is best."""
    from torchmetrics.functional.text import squad  # takes a second to import, which runs without such a task save

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
    """The mean over tasks of the mean of each task's metrics, as GLUE averages; NaN without any."""
    return float(np.mean([float(np.mean(list(metrics.values()))) for metrics in results.values()] or [np.nan]))
