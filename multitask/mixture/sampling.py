"""Task shares: sampling strategies, their schedule over a run, and redistribution after a task stops early."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction

from numpy.typing import NDArray

from ..errors import UserError
from .allocation import Plan, Shares, Stretches
from .mixture import Mixture

NUM_STRETCHES = 100  # intervals of constant shares in a run with a temperature schedule


def sampling_shares(
    sampling: str,
    sizes: Mapping[str, int],
    temperature: float | None = None,
    weights: Mapping[str, float] | None = None,
    cap: int | None = None,
) -> dict[str, Fraction]:
    """Each task's share of the examples, as exact fractions that add up to 1.

    Args:
        sampling: `proportional` to the sizes, `uniform`, `temperature` (sizes to the power 1/temperature) or
            `weights`. With `cap`, the first and the third are T5's examples-proportional and temperature-scaled
            mixing: Raffel et al. 2020, section 3.5.2, https://arxiv.org/abs/1910.10683.
        sizes: rows of each task.
        temperature: for `temperature`; positive. 1 is proportional, large values approach uniform.
        weights: for `weights`; any non-negative numbers.
        cap: T5's artificial data set size limit K: a task with more rows counts as having K. None sets no limit.
    """
    if cap is not None:
        sizes = {task: min(size, cap) for task, size in sizes.items()}
    if sampling == "weights":
        assert weights is not None
        raw = {task: Fraction(weights[task]) for task in sizes}
    elif sampling == "uniform":
        raw = {task: Fraction(1) for task in sizes}
    elif sampling == "temperature":
        assert temperature is not None
        # Relative to the largest task to avoid overflow.
        largest = max(sizes.values())
        raw = {task: Fraction((size / largest) ** (1 / temperature)) for task, size in sizes.items()}
    else:
        assert sampling == "proportional"
        raw = {task: Fraction(size) for task, size in sizes.items()}
    return _normalised(raw)


def unimax_shares(room: Mapping[str, Fraction], num_examples: int) -> dict[str, Fraction]:
    """Shares as equal as possible without exceeding any task's maximum number of examples.

    UniMax, Chung et al. 2023, algorithm 1, https://arxiv.org/abs/2304.09151: from the smallest task to the largest,
    each gets an equal part of the remaining budget, or its maximum if that is less.

    Args:
        room: maximum number of examples of each task: maximum number of epochs × rows.
        num_examples: the budget. If it exceeds the sum of `room`, shares are proportional to `room`.
    """
    left, given = Fraction(num_examples), {}
    for place, (task, most) in enumerate(sorted(room.items(), key=lambda item: item[1])):
        given[task] = min(most, left / (len(room) - place))
        left -= given[task]
    return _normalised({task: given[task] for task in room})


@dataclass(frozen=True)
class Sampling:
    """The shares of a run, as configured by `MixtureConfig`.

    Args:
        sizes: rows of each task.
        batch_size: examples per step.
        max_steps: steps in the run.
        sampling: as in `sampling_shares`, or `unimax`.
        temperature: as in `sampling_shares`; with `final_temperature`, the initial temperature.
        weights: as in `sampling_shares`.
        cap: as in `sampling_shares`.
        final_temperature: the temperature changes linearly over 100 stretches of the run to this value, which holds
            in the last stretch and in all later steps. None keeps the temperature constant.
        max_epochs: for `unimax`: maximum number of passes over a task's rows.

    Raises:
        UserError: if `cap` has no effect or `max_epochs` is too small with these sizes.
    """

    sizes: Mapping[str, int]
    batch_size: int
    max_steps: int
    sampling: str = "proportional"
    temperature: float | None = None
    weights: Mapping[str, float] | None = None
    cap: int | None = None
    final_temperature: float | None = None
    max_epochs: float | None = None

    def __post_init__(self) -> None:
        largest = max(self.sizes, key=lambda task: self.sizes[task])
        if self.cap is not None and self.cap >= self.sizes[largest]:
            raise UserError(
                f"mixture.cap: {self.cap:,} has no effect, as no task has more rows "
                f"(the largest is {largest} with {self.sizes[largest]:,})"
            )
        if self.max_epochs is not None:
            rows, wanted = sum(self.sizes.values()), self.batch_size * self.max_steps
            # The last step may exceed a whole number of epochs.
            if Fraction(self.max_epochs) * rows <= wanted - self.batch_size:
                raise UserError(
                    f"mixture.max_epochs: {self.max_epochs:g} times the {rows:,} rows of all tasks are fewer than the "
                    f"run's {wanted:,} examples; at least {math.ceil(wanted / rows * 100) / 100:g} is needed"
                )

    def plans(self, stopped: Mapping[str, int]) -> list[Plan]:
        """The plans of the mixture: one for the whole run, and one from each step at which tasks were stopped.

        From there on, the shares of the stopped tasks go to the others in proportion to their shares; with UniMax,
        the rest of the run is redistributed within what remains of each task's maximum. If no task is left, the run
        is over and the last plan remains.

        Args:
            stopped: number of steps after which each stopped task was stopped.
        """
        plans = [Plan(self._stretches(0, dict.fromkeys(self.sizes, 0), ()), self.batch_size)]
        for step in sorted(set(stopped.values())):
            given = {task: plans[-1].given(task, step) for task in self.sizes}
            gone = {task for task, at in stopped.items() if at <= step}
            if gone >= set(plans[0].tasks):
                break
            plans.append(Plan(self._stretches(step, given, gone), self.batch_size, given))
        return plans

    def mixture(
        self,
        seed: int,
        lengths: Mapping[str, NDArray],
        stopped: Mapping[str, int] | None = None,
        streams: Mapping[str, Collection[str]] | None = None,
    ) -> Mixture:
        """The run's mixture; `seed` and `lengths` as in `Mixture`, `stopped` as in `plans`.

        `streams` are the tasks that read the rows which the mixture draws; rows end when all their tasks are stopped.
        """
        steps = {rows: [(stopped or {}).get(task) for task in tasks] for rows, tasks in (streams or {}).items()}
        ended = {rows: max(filter(None, of_rows)) for rows, of_rows in steps.items() if None not in of_rows}
        if streams is None:
            ended = dict(stopped or {})
        plans, last_step = self.plans(ended), self.last_step(ended)
        return Mixture(self.sizes, plans, self.batch_size, seed, lengths, last_step=last_step)

    def last_step(self, stopped: Mapping[str, int]) -> int:
        """Number of steps after which the run ends: `max_steps`, or fewer if all trained tasks were stopped."""
        trained = self.plans({})[0].tasks
        return max(stopped[task] for task in trained) if stopped.keys() >= set(trained) else self.max_steps

    def _stretches(self, start: int, given: Mapping[str, int], gone: Collection[str]) -> Stretches:
        """The shares from a step on, with those of the tasks in `gone` given to the others."""
        if self.sampling == "unimax":
            assert self.max_epochs is not None
            most = {task: Fraction(self.max_epochs) * size for task, size in self.sizes.items() if task not in gone}
            room = {task: max(Fraction(0), of_task - given[task]) for task, of_task in most.items()}
            shares = unimax_shares(room if any(room.values()) else most, self.batch_size * (self.max_steps - start))
            return [(start, {task: shares.get(task, Fraction(0)) for task in self.sizes})]
        if self.final_temperature is None:
            shares = sampling_shares(self.sampling, self.sizes, self.temperature, self.weights, self.cap)
            return [(start, _without(shares, gone))]
        assert self.temperature is not None
        number = min(NUM_STRETCHES, self.max_steps)
        stretches: list[tuple[int, Shares]] = []
        for index in range(number):
            if index < number - 1 and (index + 1) * self.max_steps // number <= start:
                continue  # this stretch has ended
            change = (self.final_temperature - self.temperature) * index / max(1, number - 1)
            shares = sampling_shares("temperature", self.sizes, self.temperature + change, cap=self.cap)
            first = max(start, index * self.max_steps // number)
            stretches.append((first, _rounded(_without(shares, gone))))
        return stretches


def _normalised(raw: Mapping[str, Fraction]) -> dict[str, Fraction]:
    total = sum(raw.values())
    return {task: weight / total for task, weight in raw.items()}


def _without(shares: Shares, gone: Collection[str]) -> Shares:
    return (
        _normalised({task: Fraction(0) if task in gone else share for task, share in shares.items()})
        if gone
        else shares
    )


def _rounded(shares: Shares) -> Shares:
    """Rounds to a common denominator, so that sums of many stretches keep it; the largest takes the remainder."""
    rounded = {task: Fraction(round(share * 2**60), 2**60) for task, share in shares.items()}
    largest = max(shares, key=lambda task: shares[task])
    return rounded | {largest: rounded[largest] + 1 - sum(rounded.values())}
