"""Rows of each step as a pure function of (seed, step): no state to save, nothing to communicate."""

import math
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..utils import stable_seed
from .allocation import Plan, Shares

Rows = NDArray[np.int64]


class Mixture:
    """`mixture(step)` returns the rows of every task in that step.

    Before step s, task t of T has been given `floor(P_t·B·s) - floor(P_(t-1)·B·s)` examples, where P are the
    cumulative shares and B is the batch size: each step holds exactly B examples, and no task is ever more than one
    example away from its share (`Plan` describes shares below 1/B). Step s is computed without the steps before it.

    A task's rows are an endless sequence of seeded permutations, one per epoch. Within a window of `window_steps`
    steps, rows are grouped by length, so that the rows of one step have similar lengths, and the groups are assigned
    to the window's steps in random order. If a new plan begins inside a window, the remaining rows of the window are
    regrouped for the coming steps; earlier steps stay as they were, because the plan was not yet known.

    Args:
        sizes: number of rows of each task.
        shares: share of each task: exact fractions that add up to 1, 0 for a task without examples. Or plans, each
            of which holds until the next one begins.
        batch_size: examples per step.
        seed: each task's order depends only on the seed and the task's name.
        lengths: tokens of each row's longest sequence, per task; None disables grouping by length.
        window_steps: number of steps whose rows are grouped together.
        last_step: number of steps in the run; None for an endless mixture.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        shares: Shares | Sequence[Plan],
        batch_size: int,
        seed: int,
        lengths: Mapping[str, NDArray] | None = None,
        window_steps: int = 128,
        last_step: int | None = None,
    ):
        plans = [Plan([(0, shares)], batch_size)] if isinstance(shares, Mapping) else list(shares)
        assert min(sizes.values()) > 0 and all(plan.before.keys() == sizes.keys() for plan in plans)
        assert plans[0].first_step == 0 and all(plan.batch_size == batch_size for plan in plans)
        self.sizes, self.batch_size, self.seed, self.lengths = dict(sizes), batch_size, seed, lengths
        self.last_step = sys.maxsize if last_step is None else last_step
        self._plans = plans
        # Windows divide an epoch evenly and never cross its end, so each epoch yields every row exactly once.
        self._windows = {
            task: max(1, round(sizes[task] / max(Fraction(1), window_steps * batch_size * share)))
            for task, share in plans[0].mean_shares().items()
        }
        self._last_window: dict[str, tuple[int, Rows]] = {}  # consecutive steps mostly share a window

    def __call__(self, step: int) -> dict[str, Rows]:
        """Row numbers of each task in step `step` (from 0), shortest row first; some may be empty."""
        return {task: self.rows(task, self.given(task, step), self.given(task, step + 1)) for task in self.sizes}

    def given(self, task: str, step: int) -> int:
        """Number of examples given to `task` before step `step`."""
        return next(plan for plan in reversed(self._plans) if plan.first_step <= step).given(task, step)

    def shares(self, max_steps: int) -> dict[str, float]:
        """Each task's share of the examples in a run of `max_steps` steps."""
        examples = self.batch_size * max_steps
        return {task: float(self._plans[-1].planned(task, max_steps) / examples) for task in self.sizes}

    def most_rows(self, task: str) -> int:
        """The maximum number of examples of `task` in one step, or one more."""
        share = max(plan.most_share(task) for plan in self._plans)
        return min(self.batch_size, math.ceil(share * self.batch_size) + 1)

    def rows(self, task: str, start: int, stop: int) -> Rows:
        """Row numbers at positions `start` to `stop` of the task's endless stream, shortest row first."""
        parts = []
        while start < stop:
            window_start, window_stop = self._window_around(task, start)
            end = min(stop, window_stop)
            if self._last_window.get(task, (None,))[0] != window_start:
                self._last_window[task] = window_start, self._compute_window(task, window_start, window_stop)
            parts.append(self._last_window[task][1][start - window_start : end - window_start])
            start = end
        rows = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return rows if self.lengths is None else rows[np.argsort(self.lengths[task][rows], kind="stable")]

    def _window_around(self, task: str, position: int) -> tuple[int, int]:
        size, windows = self.sizes[task], self._windows[task]
        first, offset = position - position % size, position % size
        window = ((offset + 1) * windows - 1) // size  # the last with window * size // windows <= offset
        return first + window * size // windows, first + (window + 1) * size // windows

    def _compute_window(self, task: str, start: int, stop: int) -> Rows:
        """The rows of one window in stream order."""
        size = self.sizes[task]
        key = stable_seed(self.seed, task, start // size)
        rows = permute(np.arange(start % size, start % size + stop - start), size, key)
        if self.lengths is None:
            return rows
        for plan, begin in self._plans_within(task, start, stop):
            # Step boundaries split the rest of the window into runs; each run gets rows of similar length.
            left = rows[begin - start :]
            by_length = left[np.argsort(self.lengths[task][left], kind="stable")]
            bounds = _step_boundaries(plan, task, begin, stop)
            runs = list(zip(bounds[:-1], bounds[1:], strict=True))
            taken = 0
            for index in np.random.default_rng([key, begin]).permutation(len(runs)):
                first, end = runs[index]
                rows[first - start : end - start] = by_length[taken : taken + end - first]
                taken += end - first
        return rows

    def _plans_within(self, task: str, start: int, stop: int) -> list[tuple[Plan, int]]:
        """The plans that cover positions `start` to `stop` of a task's stream, each with its first position."""
        found: dict[int, Plan] = {}
        for plan in self._plans:
            if task in plan.tasks:  # the others give it no rows
                begin = max(start, plan.before[task])
                if begin < stop:
                    found[begin] = plan  # of plans that begin at the same position, the last one applies
        return [(plan, begin) for begin, plan in found.items()]


def _step_boundaries(plan: Plan, task: str, start: int, stop: int) -> list[int]:
    """Positions from `start` to `stop` of a task's stream at which steps begin, assuming the plan never ends."""
    bounds, step = [start], plan.first_step
    while bounds[-1] < stop:
        step = _first_step_past(plan, task, bounds[-1], step)
        bounds.append(min(stop, plan.given(task, step)))
    return bounds


def _first_step_past(plan: Plan, task: str, position: int, low: int) -> int:
    """The first step with `plan.given(task, step) > position`; step `low` must come before it."""
    stride = 1
    while plan.given(task, low + stride) <= position:
        low, stride = low + stride, 2 * stride
    high = low + stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if plan.given(task, middle) <= position else (low, middle)
    return high


def permute(positions: NDArray, size: int, key: int) -> Rows:
    """Evaluates a keyed permutation of `range(size)` at some positions without materialising it.

    A balanced Feistel network over the next power of four, with cycle walking for values outside the range: Black &
    Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, https://eprint.iacr.org/2001/012. Not
    cryptographically secure.

    Args:
        positions: integers in `range(size)`, any shape.
        size: number of rows, at most 2**62.
        key: each key gives a different permutation.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    round_keys = np.random.SeedSequence(key).generate_state(8, np.uint64)
    values = np.asarray(positions, np.uint64).copy()
    pending = np.ones(values.shape, bool)
    while pending.any():
        left, right = values[pending] >> shift, values[pending] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        values[pending] = left << shift | right
        pending &= values >= size
    return values.astype(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): every input bit affects every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
