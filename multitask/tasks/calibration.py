"""Calibration: probabilities that are as often right as they say, and thresholds for labels.

A temperature divides the logits (Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2); a label is there
where its probability is above a threshold of its own, the one with the best F1 (Lipton et al. 2014,
https://arxiv.org/abs/1402.1892). Both are fitted on validation rows and leave the weights as they are.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.metrics import precision_recall_curve
from sklearn.model_selection import KFold

NUM_BINS = 15  # of the calibration error, as Guo et al. have it
NUM_FOLDS = 5
LOWEST, HIGHEST = 0.05, 20.0  # temperatures


@dataclass(frozen=True)
class Calibration:
    """What is done to a task's logits before they are read.

    Args:
        temperature: by which they are divided.
        thresholds: of the probability of each label, where labels do not exclude each other; None for 0.5.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None

    def applied(self, logits: NDArray) -> NDArray:
        """The logits divided by the temperature, of the same shape."""
        return logits if self.temperature == 1 else logits / np.float32(self.temperature)


NONE = Calibration()


@dataclass(frozen=True)
class Calibrated:
    """A calibration, and what it changes on the rows that it was fitted on.

    Args:
        calibration: the calibration.
        num_rows: number of rows.
        errors: the expected calibration error `before` and `after`, and `crossfitted`: of rows that the calibration
            was not fitted on, as each fifth of the rows is calibrated by the others.
        metrics: the task's metrics, in the same three ways; empty where thresholds do not change them.
        bins: `before` and `after`: mean confidence, accuracy and number of decisions, of each bin that has some.
    """

    calibration: Calibration
    num_rows: int
    errors: dict[str, float]
    metrics: dict[str, dict[str, float]]
    bins: dict[str, list[tuple[float, float, int]]]

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """As JSON values; `thresholds` by label."""
        values = dataclasses.asdict(self)
        found = values.pop("calibration")
        if found["thresholds"] is not None:
            found["thresholds"] = dict(zip(labels, found["thresholds"], strict=True))
        return found | values


def read_calibration(values: Mapping[str, Any] | None) -> Calibration:
    """The calibration in what `Calibrated.to_json` returned; none for None."""
    if not values:
        return NONE
    thresholds = values["thresholds"]
    return Calibration(values["temperature"], tuple(thresholds.values()) if thresholds else None)


def calibrate(
    logits: NDArray[np.float32],
    references: NDArray[np.integer],
    metrics: Mapping[str, Callable[[NDArray, NDArray], float]],
) -> Calibrated:
    """Fits a calibration and measures it.

    Args:
        logits: shape (rows, classes) or (rows, labels); -inf for choices that a row lacks.
        references: the right class, shape (rows,); or 0 or 1 for each label, shape (rows, labels).
        metrics: of (references, predictions).
    """
    found = fit(logits, references)
    crossfitted = _fitted_on_others(logits, references)
    scaled = {"before": logits, "after": found.applied(logits), "crossfitted": logits.copy()}
    for of_others, rows in crossfitted:
        scaled["crossfitted"][rows] = of_others.applied(logits[rows])
    measured: dict[str, dict[str, float]] = {}
    if found.thresholds is not None:
        predictions = {"before": decided(logits, None), "after": decided(scaled["after"], found.thresholds)}
        predictions["crossfitted"] = np.zeros_like(references)
        for of_others, rows in crossfitted:
            predictions["crossfitted"][rows] = decided(scaled["crossfitted"][rows], of_others.thresholds)
        measured = {
            when: {name: float(metric(references, of)) for name, metric in metrics.items()}
            for when, of in predictions.items()
        }
    bins = {when: _bins(*_decisions(of, references)) for when, of in scaled.items()}
    errors = {when: _error(of) for when, of in bins.items()}
    return Calibrated(found, len(logits), errors, measured, {when: bins[when] for when in ("before", "after")})


def _fitted_on_others(logits: NDArray, references: NDArray) -> list[tuple[Calibration, NDArray[np.int64]]]:
    """The rows in `NUM_FOLDS` parts, each with the calibration that was fitted on the others."""
    if len(logits) < 2:
        return []
    folds = KFold(min(NUM_FOLDS, len(logits)), shuffle=True, random_state=0).split(logits)
    return [(fit(logits[others], references[others]), rows) for others, rows in folds]


def fit(logits: NDArray, references: NDArray) -> Calibration:
    """The temperature with the least cross-entropy, and where labels do not exclude each other their thresholds."""
    logits = logits.astype(np.float64)

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if references.ndim == 1:
            return -log_softmax(scaled, axis=-1)[np.arange(len(references)), references].mean()
        return -np.where(references == 1, log_expit(scaled), log_expit(-scaled)).mean()

    bounds = float(np.log(LOWEST)), float(np.log(HIGHEST))
    temperature = float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))
    if references.ndim == 1:
        return Calibration(temperature)
    probabilities = expit(logits / temperature)
    return Calibration(
        temperature, tuple(_threshold(p, r) for p, r in zip(probabilities.T, references.T, strict=True))
    )


def decided(logits: NDArray, thresholds: Sequence[float] | None) -> NDArray[np.int64]:
    """Which labels are there, shape (rows, labels)."""
    return (expit(logits) > (0.5 if thresholds is None else np.asarray(thresholds))).astype(np.int64)


def _threshold(probabilities: NDArray, references: NDArray) -> float:
    """The threshold with the best F1, in the middle between two rows; 0.5 where no row has the label."""
    if not references.any():
        return 0.5
    precision, recall, scores = precision_recall_curve(references, probabilities)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1[:-1].argmax())
    below = probabilities[probabilities < scores[best]].max(initial=0.0)
    return float((scores[best] + below) / 2)


def _decisions(logits: NDArray, references: NDArray) -> tuple[NDArray, NDArray]:
    """The confidence of each decision, and whether it is right; each label of a row is a decision."""
    if references.ndim == 1:
        probabilities = softmax(logits.astype(np.float64), axis=-1)
        return probabilities.max(axis=-1), probabilities.argmax(axis=-1) == references
    probabilities = expit(logits.astype(np.float64)).ravel()
    return np.maximum(probabilities, 1 - probabilities), (probabilities > 0.5) == (references.ravel() == 1)


def _bins(confidence: NDArray, is_right: NDArray) -> list[tuple[float, float, int]]:
    numbers = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    found = (numbers == number for number in range(NUM_BINS))
    return [(float(confidence[of].mean()), float(is_right[of].mean()), int(of.sum())) for of in found if of.any()]


def _error(bins: Sequence[tuple[float, float, int]]) -> float:
    """The expected calibration error: the mean distance of confidence and accuracy (Guo et al. 2017, equation 3)."""
    total = sum(count for *_, count in bins)
    return sum(count * abs(confidence - accuracy) for confidence, accuracy, count in bins) / total
