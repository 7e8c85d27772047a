"""Which rows make up a step: a pure function of (seed, step), with no state to save and nothing to communicate."""

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
    """`mixture(step)` gives the rows of every task in that step.

    Shares come out exactly: before step s, task t of T has been given `floor(P_t·B·s) - floor(P_(t-1)·B·s)` examples,
    with P the cumulative shares and B the batch size (`Plan` says more). So each step holds exactly B examples and no
    task is ever more than one example away from its share. Step s of a run is computed without the steps before it.

    A task's rows come as an endless sequence of seeded permutations, one a pass over its data. Inside a window of
    `window_steps` steps, rows are grouped by length, so that rows of one step have about the same length, and the
    groups are dealt to the window's steps in random order, so that lengths come in no fixed order. Where a new plan
    begins in a window, the rows that are left in it are grouped anew for the steps to come; what was given before
    stays as it was, as the plan was not yet known.

    Args:
        sizes: number of rows of each task.
        shares: share of each task; exact fractions that add up to 1, 0 for a task that gets nothing. Or plans, each
            of which holds up to the next, and the last for ever.
        batch_size: examples in a step.
        seed: another seed gives another order; each task's order depends on the seed and the task's name alone.
        lengths: tokens of each row's longest sequence, per task; without them rows are not grouped.
        window_steps: how many steps' rows are grouped together.
        last_step: of the run; None for a mixture without an end.
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
        # Windows divide a task's pass evenly and never reach over its end: each pass gives every row exactly once.
        self._windows = {
            task: max(1, round(sizes[task] / max(Fraction(1), window_steps * batch_size * share)))
            for task, share in plans[0].mean_shares().items()
        }
        self._last_window: dict[str, tuple[int, Rows]] = {}  # steps in a row mostly stay in one window

    def __call__(self, step: int) -> dict[str, Rows]:
        """Row numbers of each task in step `step` (from 0), shortest row first; some may be empty."""
        return {task: self.rows(task, self.given(task, step), self.given(task, step + 1)) for task in self.sizes}

    def given(self, task: str, step: int) -> int:
        """How many examples `task` has been given before step `step`."""
        return next(plan for plan in reversed(self._plans) if plan.first_step <= step).given(task, step)

    def shares(self, max_steps: int) -> dict[str, float]:
        """Each task's share of the examples of a run of so many steps."""
        examples = self.batch_size * max_steps
        return {task: float(self._plans[-1].planned(task, max_steps) / examples) for task in self.sizes}

    def most_rows(self, task: str) -> int:
        """As many examples as `task` ever has in one step, or one more."""
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
        window = ((offset + 1) * windows - 1) // size  # the last one with window * size // windows <= offset
        return first + window * size // windows, first + (window + 1) * size // windows

    def _compute_window(self, task: str, start: int, stop: int) -> Rows:
        """The rows of one window in the order in which the stream gives them."""
        size = self.sizes[task]
        key = stable_seed(self.seed, task, start // size)
        rows = permute(np.arange(start % size, start % size + stop - start), size, key)
        if self.lengths is None:
            return rows
        for plan, begin in self._plans_within(task, start, stop):
            # The steps' boundaries cut what is left of the window into runs; each gets rows of about the same length.
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
        """The plans by which the positions `start` to `stop` of a task's stream are given, each with its first one."""
        found: dict[int, Plan] = {}
        for plan in self._plans:
            if task in plan.tasks:  # the others give it nothing
                begin = max(start, plan.before[task])
                if begin < stop:
                    found[begin] = plan  # of those that begin at the same position, the last one gives it
        return [(plan, begin) for begin, plan in found.items()]


def _step_boundaries(plan: Plan, task: str, start: int, stop: int) -> list[int]:
    """The positions from `start` to `stop` of a task's stream at which steps begin, if the plan holds for ever."""
    bounds, step = [start], plan.first_step
    while bounds[-1] < stop:
        step = _first_step_past(plan, task, bounds[-1], step)
        bounds.append(min(stop, plan.given(task, step)))
    return bounds


def _first_step_past(plan: Plan, task: str, position: int, low: int) -> int:
    """The first step at whose begin a task's stream is past a position; at that of step `low` it is not."""
    stride = 1
    while plan.given(task, low + stride) <= position:
        low, stride = low + stride, 2 * stride
    high = low + stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if plan.given(task, middle) <= position else (low, middle)
    return high


def permute(positions: NDArray, size: int, key: int) -> Rows:
    """A keyed permutation of `range(size)` at some positions, without ever building the whole of it.

    A balanced Feistel network over the next power of four, walked again wherever it leaves the range: Black & Rogaway,
    "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, https://eprint.iacr.org/2001/012. Shuffles data; keeps no
    secrets.

    Args:
        positions: integers in `range(size)`, any shape.
        size: number of rows, at most 2**62.
        key: every key gives a permutation of its own.
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
    """The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): every bit of `x` reaches every bit out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
