"""Charts of predictions, and a judgement of every row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import confusion_matrix

MOST_POINTS = 1000  # of a scatter plot
MOST_LABELS = 20  # of a confusion matrix
# For each row: predicted label, true label, confidence (None if the task type has none), size of the error (0: right).
Judged = list[tuple[str, str, float | None, float]]


def judged_classes(true: NDArray, predicted: NDArray, logits: NDArray, names: Sequence[str]) -> Judged:
    """Judges single-label rows: confidence, and error if wrong, is the probability of the predicted class."""
    sure = softmax(logits, axis=-1).max(axis=-1)
    return [
        (names[p], names[t], float(s), float(s) if p != t else 0.0)
        for p, t, s in zip(predicted, true, sure, strict=True)
    ]


def confusion(true: NDArray, predicted: NDArray, labels: Sequence[str]) -> dict[str, Any]:
    """A confusion matrix of (true, predicted), limited to the `MOST_LABELS` most frequent labels."""
    rows = np.bincount(true, minlength=len(labels)) + np.bincount(predicted, minlength=len(labels))
    kept = np.sort(np.argsort(-rows, kind="stable")[:MOST_LABELS])
    both = np.isin(true, kept) & np.isin(predicted, kept)
    if not both.any():
        counts = np.zeros((len(kept), len(kept)), int)
    else:
        counts = confusion_matrix(np.asarray(true)[both], np.asarray(predicted)[both], labels=kept)
    others = len(true) - int(counts.sum())
    return {"kind": "confusion", "labels": [labels[i] for i in kept], "counts": counts.tolist(), "others": others}
