"""Summaries of predictions for the report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import confusion_matrix

MOST_POINTS = 1000  # of a scatter plot
MOST_LABELS = 20  # of a confusion matrix
# For each row: what is predicted, what is right, how sure the model is (None: its type does not say), how wrong it is.
Judged = list[tuple[str, str, float | None, float]]


def judged_classes(true: NDArray, predicted: NDArray, logits: NDArray, names: Sequence[str]) -> Judged:
    """Rows with one class each: sure is the class's probability; a right one is not wrong at all."""
    sure = softmax(logits, axis=-1).max(axis=-1)
    return [
        (names[p], names[t], float(s), float(s) if p != t else 0.0)
        for p, t, s in zip(predicted, true, sure, strict=True)
    ]


def confusion(true: NDArray, predicted: NDArray, labels: Sequence[str]) -> dict[str, Any]:
    """Counts of (right, predicted), of the labels with the most rows if there are too many to show."""
    rows = np.bincount(true, minlength=len(labels)) + np.bincount(predicted, minlength=len(labels))
    kept = np.sort(np.argsort(-rows, kind="stable")[:MOST_LABELS])
    counts = confusion_matrix(true, predicted, labels=np.arange(len(labels)))[np.ix_(kept, kept)]
    others = len(true) - int(counts.sum())
    return {"kind": "confusion", "labels": [labels[i] for i in kept], "counts": counts.tolist(), "others": others}
