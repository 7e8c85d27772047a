"""The metrics, as `evaluate` modules over scikit-learn and SciPy; those on the hub need a network to load."""

from collections.abc import Callable

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics


class LocalMetric(evaluate.Metric):
    """A metric that is one function of (references, predictions).

    Args:
        name: its name in results.
        function: (references, predictions) -> value; its docstring describes the metric.
        dtype: of predictions and references: "int64" (classes) or "float64".
    """

    def __init__(self, name: str, function: Callable[..., float], dtype: str):
        self.function, self.dtype = function, dtype
        super().__init__(config_name=name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({key: datasets.Value(self.dtype) for key in ("predictions", "references")})
        return evaluate.MetricInfo(description=str(self.function.__doc__), citation="", features=features)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {str(self.config_name): float(self.function(np.asarray(references), np.asarray(predictions)))}


def load_metric(name: str, num_classes: int) -> LocalMetric:
    """A metric by name.

    Args:
        name: accuracy, f1, matthews_correlation, pearson, spearmanr or mse.
        num_classes: f1 is that of class 1 where there are two classes, as GLUE reports it, and the mean over the
            classes (macro) where there are more.

    Returns:
        An `evaluate.Metric`; a correlation with a constant is not defined and comes out as NaN.
    """
    functions: dict[str, tuple[Callable[..., float], str]] = {
        "accuracy": (metrics.accuracy_score, "int64"),
        "f1": (_binary_f1 if num_classes == 2 else _macro_f1, "int64"),
        "matthews_correlation": (metrics.matthews_corrcoef, "int64"),
        "pearson": (_pearson, "float64"),
        "spearmanr": (_spearmanr, "float64"),
        "mse": (metrics.mean_squared_error, "float64"),
    }
    return LocalMetric(name, *functions[name])


def _binary_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1."""
    return metrics.f1_score(references, predictions, average="binary", zero_division=0.0)


def _macro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    """Mean over the classes of the harmonic mean of precision and recall."""
    return metrics.f1_score(references, predictions, average="macro", zero_division=0.0)


def _pearson(references: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's correlation; NaN where one side is constant."""
    defined = np.ptp(references) and np.ptp(predictions)
    return stats.pearsonr(references, predictions).statistic if defined else np.nan


def _spearmanr(references: np.ndarray, predictions: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one side is constant."""
    defined = np.ptp(references) and np.ptp(predictions)
    return stats.spearmanr(references, predictions).statistic if defined else np.nan
