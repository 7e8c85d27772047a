"""Which rows make up a step: a pure function of (seed, step), with no state to save and nothing to communicate."""

import hashlib
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def sampling_shares(
    sampling: str,
    sizes: Mapping[str, int],
    temperature: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, Fraction]:
    """Each task's share of the examples, as exact fractions that add up to 1.

    Args:
        sampling: `proportional` to the sizes, `uniform`, `temperature` (sizes to the power 1/temperature, as in
            Raffel et al. 2020, section 3.5.2, https://arxiv.org/abs/1910.10683) or `weights`.
        sizes: rows of each task.
        temperature: for `temperature`; above 0. 1 is proportional, towards infinity it becomes uniform.
        weights: for `weights`; any non-negative numbers.
    """
    if sampling == "weights":
        assert weights is not None
        raw = {task: Fraction(weights[task]) for task in sizes}
    elif sampling == "uniform":
        raw = {task: Fraction(1) for task in sizes}
    elif sampling == "temperature":
        assert temperature is not None
        # Relative to the largest task, so that no temperature can overflow.
        largest = max(sizes.values())
        raw = {task: Fraction((size / largest) ** (1 / temperature)) for task, size in sizes.items()}
    else:
        assert sampling == "proportional"
        raw = {task: Fraction(size) for task, size in sizes.items()}
    total = sum(raw.values())
    return {task: weight / total for task, weight in raw.items()}


class Mixture:
    """`mixture(step)` gives the rows of every task in that step.

    Shares come out exactly: before step s, task t of T has been given `floor(P_t·B·s) - floor(P_(t-1)·B·s)` examples,
    with P the cumulative shares and B the batch size. So each step holds exactly B examples and no task is ever more
    than one example away from its share. Step s of a run is computed without the steps before it.

    A task's rows come as an endless sequence of seeded permutations, one a pass over its data. Inside a window of
    `window_steps` steps, rows are grouped by length, so that rows of one step have about the same length, and the
    groups are dealt to the window's steps in random order, so that lengths come in no fixed order.

    Args:
        sizes: number of rows of each task.
        shares: share of each task; exact fractions that add up to 1, 0 for a task that gets nothing.
        batch_size: examples in a step.
        seed: another seed gives another order; each task's order depends on the seed and the task's name alone.
        lengths: tokens of each row's longest sequence, per task; without them rows are not grouped.
        window_steps: how many steps' rows are grouped together.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        shares: Mapping[str, Fraction],
        batch_size: int,
        seed: int,
        lengths: Mapping[str, NDArray] | None = None,
        window_steps: int = 128,
    ):
        assert sizes.keys() == shares.keys() and sum(shares.values()) == 1 and min(sizes.values()) > 0
        self.sizes, self.batch_size, self.seed, self.lengths = dict(sizes), batch_size, seed, lengths
        self._cumulative = {}
        total = Fraction(0)
        for task, share in shares.items():
            self._cumulative[task] = (total, total + share)
            total += share
        # Windows divide a task's pass evenly and never reach over its end: each pass gives every row exactly once.
        self._windows = {
            task: max(1, round(size / max(Fraction(1), window_steps * batch_size * shares[task])))
            for task, size in sizes.items()
        }
        self._last_window: dict[str, tuple[int, Rows]] = {}  # steps in a row mostly stay in one window

    def __call__(self, step: int) -> dict[str, Rows]:
        """Row numbers of each task in step `step` (from 0), shortest row first; some may be empty."""
        return {task: self.rows(task, self.given(task, step), self.given(task, step + 1)) for task in self.sizes}

    def given(self, task: str, step: int) -> int:
        """How many examples `task` has been given before step `step`."""
        below, above = self._cumulative[task]
        examples = self.batch_size * step
        return above.numerator * examples // above.denominator - below.numerator * examples // below.denominator

    def most_rows(self, task: str) -> int:
        """As many examples as `task` ever has in one step, or one more."""
        below, above = self._cumulative[task]
        return min(self.batch_size, math.ceil((above - below) * self.batch_size) + 1)

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
        key = key_of(self.seed, task, start // size)
        rows = permute(np.arange(start % size, start % size + stop - start), size, key)
        if self.lengths is None:
            return rows
        by_length = rows[np.argsort(self.lengths[task][rows], kind="stable")]
        # The steps' boundaries cut the window into segments; each gets a run of rows of about the same length.
        bounds = self._step_boundaries(task, start, stop)
        segments = list(zip(bounds[:-1], bounds[1:], strict=True))
        ordered = np.empty_like(rows)
        taken = 0
        for index in np.random.default_rng([key, start]).permutation(len(segments)):
            begin, end = segments[index]
            ordered[begin - start : end - start] = by_length[taken : taken + end - begin]
            taken += end - begin
        return ordered

    def _step_boundaries(self, task: str, start: int, stop: int) -> list[int]:
        low, high = 0, 1  # the first step after whose begin the stream stands beyond `start`
        while self.given(task, high) <= start:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.given(task, middle) <= start else (low, middle)
        bounds = [start]
        while bounds[-1] < stop:
            boundary = min(stop, self.given(task, high))
            if boundary > bounds[-1]:
                bounds.append(boundary)
            high += 1
        return bounds


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


def key_of(*parts: object) -> int:
    """One integer from several values, the same in every process and Python version."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
