"""Differences between runs with the paired bootstrap over validation rows and seeds.

Rows are drawn with replacement, the same ones for both sides, so that what makes a row easy or hard for both cancels
(Efron and Tibshirani 1993, chapter 6; Berg-Kirkpatrick et al. 2012, https://aclanthology.org/D12-1091). Where a side
has several runs (seeds), these are drawn too.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Metric = Callable[[Sequence, Sequence], float]


class Difference(NamedTuple):
    """A difference with its percentile interval.

    Args:
        value: of the sides as they are.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, samples: NDArray) -> "Difference":
        """From the difference of the sides and those of the resamples, without the undefined ones."""
        defined = samples[np.isfinite(samples)]
        low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
        return cls(value, float(low), float(high))

    @property
    def is_significant(self) -> bool:
        """Whether the interval does not contain 0."""
        return self.low > 0 or self.high < 0


def resampled(
    metric: Metric,
    references: Sequence,
    first: Sequence[Sequence],
    second: Sequence[Sequence],
    num_samples: int,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Differences second - first of a metric, averaged over the runs of a side, on resampled rows and runs.

    Args:
        metric: a function of (references, predictions).
        references: of each row.
        first: predictions of each run of one side.
        second: of the other side, for the same rows.
        num_samples: number of resamples.
        seed: of the random generator.

    Returns:
        shape (num_samples,); not a number where the metric is undefined.
    """
    rng = np.random.default_rng(seed)
    sides = [[_picker(run) for run in side] for side in (first, second)]
    pick_references = _picker(references)
    differences = np.empty(num_samples)
    for sample in range(num_samples):
        rows = rng.integers(len(references), size=len(references))
        drawn = pick_references(rows)
        values = []
        for side in sides:
            runs = rng.integers(len(side), size=len(side)) if len(side) > 1 else [0]
            values.append(np.mean([metric(drawn, side[run](rows)) for run in runs]))
        differences[sample] = values[1] - values[0]
    return differences


def _picker(values: Sequence) -> Callable[[NDArray], Sequence]:
    """Takes some rows out of numbers, or out of anything else."""
    if isinstance(values[0], (int, float)) or (
        isinstance(values[0], list) and values[0] and isinstance(values[0][0], (int, float))
    ):
        array = np.asarray(values)
        return lambda rows: array[rows]
    return lambda rows: [values[row] for row in rows]
