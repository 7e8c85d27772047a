"""How many of a step's examples each task gets: its share, how that changes over a run, and who stops early."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction

from numpy.typing import NDArray

from ..errors import UserError
from .allocation import Plan, Shares, Stretches
from .mixture import Mixture

NUM_STRETCHES = 100  # a run with changing shares changes them so many times


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
        temperature: for `temperature`; above 0. 1 is proportional, towards infinity it becomes uniform.
        weights: for `weights`; any non-negative numbers.
        cap: T5's artificial limit K: a task with more rows counts as if it had so many. None sets no limit.
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
        # Relative to the largest task, so that no temperature can overflow.
        largest = max(sizes.values())
        raw = {task: Fraction((size / largest) ** (1 / temperature)) for task, size in sizes.items()}
    else:
        assert sampling == "proportional"
        raw = {task: Fraction(size) for task, size in sizes.items()}
    return _normalised(raw)


def unimax_shares(room: Mapping[str, Fraction], num_examples: int) -> dict[str, Fraction]:
    """As equal as can be without giving any task more than it has room for.

    UniMax, Chung et al. 2023, algorithm 1, https://arxiv.org/abs/2304.09151: from the smallest task to the largest,
    each gets an equal part of what is left to give, or all that it has room for.

    Args:
        room: how many examples each task may get: maximum of epochs × rows.
        num_examples: how many there are to give. If that is more than all room, every task gets in proportion to it.
    """
    left, given = Fraction(num_examples), {}
    for place, (task, most) in enumerate(sorted(room.items(), key=lambda item: item[1])):
        given[task] = min(most, left / (len(room) - place))
        left -= given[task]
    return _normalised({task: given[task] for task in room})


@dataclass(frozen=True)
class Sampling:
    """The shares of a run, as `MixtureConfig` describes them.

    Args:
        sizes: rows of each task.
        batch_size: examples in a step.
        max_steps: steps in the run.
        sampling: as of `sampling_shares`, or `unimax`.
        temperature: as of `sampling_shares`; with `final_temperature`, that of the beginning.
        weights: as of `sampling_shares`.
        cap: as of `sampling_shares`.
        final_temperature: the run is divided into 100 stretches, and the temperature goes in equal parts to this one,
            which is that of the last stretch and of all steps after it. None keeps the temperature.
        max_epochs: for `unimax`: how often a task's rows are seen at most.

    Raises:
        UserError: for a cap or a maximum that cannot have an effect, or cannot be kept, with these sizes.
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
            # The last step may be filled up beyond a whole number of passes.
            if Fraction(self.max_epochs) * rows <= wanted - self.batch_size:
                raise UserError(
                    f"mixture.max_epochs: {self.max_epochs:g} times the {rows:,} rows of all tasks are fewer than the "
                    f"run's {wanted:,} examples; at least {math.ceil(wanted / rows * 100) / 100:g} is needed"
                )

    def plans(self, stopped: Mapping[str, int]) -> list[Plan]:
        """What the mixture gives: a plan for the whole run, and another from each step on at which tasks stopped.

        From there on, the shares of those that stopped go to the others in proportion to theirs; with UniMax, what is
        left of the run is dealt anew, within what is left of each task's maximum. If there are no others, the run is
        over, and the last plan stays.

        Args:
            stopped: after how many steps a task was stopped, for those that were.
        """
        plans = [Plan(self._stretches(0, dict.fromkeys(self.sizes, 0), ()), self.batch_size)]
        for step in sorted(set(stopped.values())):
            given = {task: plans[-1].given(task, step) for task in self.sizes}
            gone = {task for task, at in stopped.items() if at <= step}
            if gone >= set(plans[0].tasks):
                break
            plans.append(Plan(self._stretches(step, given, gone), self.batch_size, given))
        return plans

    def mixture(self, seed: int, lengths: Mapping[str, NDArray], stopped: Mapping[str, int] | None = None) -> Mixture:
        """The run's mixture; `seed` and `lengths` as of `Mixture`, `stopped` as of `plans`."""
        plans, last_step = self.plans(stopped or {}), self.last_step(stopped or {})
        return Mixture(self.sizes, plans, self.batch_size, seed, lengths, last_step=last_step)

    def last_step(self, stopped: Mapping[str, int]) -> int:
        """After how many steps the run ends: when it is done, or when the last task that is trained was stopped."""
        trained = self.plans({})[0].tasks
        return max(stopped[task] for task in trained) if stopped.keys() >= set(trained) else self.max_steps

    def _stretches(self, start: int, given: Mapping[str, int], gone: Collection[str]) -> Stretches:
        """The shares from a step on, of which those of some tasks go to the others."""
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
                continue  # it has ended
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
    """With one denominator, so that sums over many stretches keep it too; the largest takes the rest."""
    rounded = {task: Fraction(round(share * 2**60), 2**60) for task, share in shares.items()}
    largest = max(shares, key=lambda task: shares[task])
    return rounded | {largest: rounded[largest] + 1 - sum(rounded.values())}
