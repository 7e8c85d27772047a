"""Loss weighting: fixed weights, by the size of the label space, learned uncertainty, or FAMO.

The loss of a step is the sum over its examples of weight * factor * example loss, divided by the batch size. The
weight comes from the configuration; the methods here choose the factor. They compute it from sums over all passes and
processes, so that the result does not depend on how a step is split.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.multitask import MultitaskModel
from ..tasks.load import TaskData
from .distributed import whole


class LossWeighting:
    """Constant factors (`static` with ones, `size_of_label_space`); base class of the other methods.

    A step calls `begin`, `terms` in each pass, and `end`.

    Args:
        weights: weight of each task, from the configuration.
        batch_size: examples in a step, over all tasks and processes.
        factors: factor of each task; 1 by default.
    """

    def __init__(self, weights: Mapping[str, float], batch_size: int, factors: Mapping[str, float] | None = None):
        self.weights, self.batch_size = dict(weights), batch_size
        self.factors = dict(factors or dict.fromkeys(weights, 1.0))

    def begin(
        self, examples: Mapping[str, int], num_passes: int, pass_losses: Callable[[int], Mapping[str, Tensor]]
    ) -> None:
        """Called before the passes of a step.

        Args:
            examples: number of examples of each task in the step, over all processes.
            num_passes: number of passes on every process.
            pass_losses: pass index -> each task's sum of example losses in that pass of this process, computed with
                the current parameters and the dropout of that pass.
        """

    def terms(self, sums: Mapping[str, Tensor], rows: Mapping[str, int]) -> list[Tensor]:
        """Each task's term of the loss in a pass; the terms of all passes and processes sum to the step's loss.

        Args:
            sums: sum of each task's example losses in the pass, scalars with gradients.
            rows: number of examples of each task in the pass.

        Returns:
            A scalar for each task.
        """
        factors = {task: self.weights[task] * self.factors.get(task, 0.0) for task in sums}
        return [factors[task] * total / self.batch_size for task, total in sums.items()]

    def end(self) -> None:
        """Called after the update."""

    def values(self) -> dict[str, float]:
        """The weight of each task's example losses, for the log; empty if only the configured weights apply."""
        return {f"train/{task}/loss_weight": self.weights[task] * factor for task, factor in self.factors.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state to save in a checkpoint besides the model's parameters; it survives a round trip through JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class Static(LossWeighting):
    """Only the configured weights."""

    def values(self) -> dict[str, float]:
        return {}


class Uncertainty(LossWeighting):
    """Homoscedastic uncertainty, learned (Kendall, Gal and Cipolla 2018, arXiv:1705.07115, equations 7 and 10).

    An example's loss L becomes L / (2 sigma^2) + log sigma for a regression and L / sigma^2 + log sigma otherwise,
    with one sigma per task. The learned parameter is s = log sigma^2, initialised to 0; as the paper explains, this
    avoids a division and keeps sigma positive. Both terms are summed over examples, so an idle task contributes
    neither.

    Args:
        weights: weight of each task, applied to both terms.
        batch_size: examples in a step.
        model: holds each task's s as a parameter.
        regressions: the tasks that are regressions.
    """

    def __init__(self, weights: Mapping[str, float], batch_size: int, model: MultitaskModel, regressions: set[str]):
        super().__init__(weights, batch_size)
        self.model, self.scales = model, {task: 0.5 if task in regressions else 1.0 for task in weights}

    def terms(self, sums: Mapping[str, Tensor], rows: Mapping[str, int]) -> list[Tensor]:
        terms = []
        for task, total in sums.items():
            s = self.model.log_variance(task)
            loss = self.scales[task] * torch.exp(-s) * total + rows[task] * s / 2
            terms.append(self.weights[task] * loss.sum() / self.batch_size)
        return terms

    def values(self) -> dict[str, float]:
        self.factors = {
            task: scale * math.exp(-float(whole(self.model.log_variance(task)))) for task, scale in self.scales.items()
        }
        return super().values()


class Famo(LossWeighting):
    """FAMO: decreases all losses at the same rate (Liu et al. 2023, arXiv:2306.03792, algorithm 1).

    With z the softmax of the tasks' logits and l_t the mean loss of task t in the step, the loss of the step is
    sum_t weight_t * q_t * l_t with q_t = (z_t / l_t) / sum_u (z_u / l_u), so it depends neither on the sampling shares
    nor on the scales of the losses. After the update the same examples give new losses l'_t; d_t = log l_t - log l'_t
    is each loss's decrease. Adam updates the logits with the gradient dz/dlogits * d + decay * logits, which favours
    the tasks whose loss decreased least.

    The cost, for any number of tasks, is one forward without gradients after each update, and another one before a
    step of several passes, whose losses must be known before the first backward. Tasks without examples in a step are
    left out of its softmax; their logits and Adam moments do not change.

    Args:
        weights: weight of each task, multiplied with the method's factors.
        batch_size: examples in a step.
        reduce: sums a tensor over the processes.
        rate: Adam's learning rate, as in the authors' code.
        decay: weight decay of the logits, towards equal weights; the paper's gamma.
    """

    epsilon = 1e-8  # added to losses, as in the authors' code; also Adam's
    rounding = 1e-6  # rounding error of float32 sums: smaller changes of a loss count as none

    def __init__(
        self,
        weights: Mapping[str, float],
        batch_size: int,
        reduce: Callable[[Tensor], Tensor],
        rate: float = 0.025,
        decay: float = 0.001,
    ):
        super().__init__(weights, batch_size)
        self.reduce, self.rate, self.decay = reduce, rate, decay
        self.logits, self.mean, self.square, self.updates = (np.zeros(len(self.weights)) for _ in range(4))

    def begin(
        self, examples: Mapping[str, int], num_passes: int, pass_losses: Callable[[int], Mapping[str, Tensor]]
    ) -> None:
        self.examples = np.array([examples[task] for task in self.weights])
        self.present = self.examples > 0
        self.num_passes, self.pass_losses = num_passes, pass_losses
        if num_passes > 1:
            self._weigh(self._measure())

    @torch.no_grad()
    def _measure(self) -> Tensor:
        """Each task's sum of losses in the step, shape (tasks,)."""
        passes = [torch.stack(list(self.pass_losses(index).values())) for index in range(self.num_passes)]
        return self.reduce(torch.stack(passes).sum(dim=0))

    def terms(self, sums: Mapping[str, Tensor], rows: Mapping[str, int]) -> list[Tensor]:
        if self.num_passes == 1:  # the losses of the pass are those of the step
            self._weigh(self.reduce(torch.stack(list(sums.values())).detach()))
        return super().terms(sums, rows)

    def _weigh(self, sums: Tensor) -> None:
        self.losses = self._means(sums)
        exponentials = np.exp(self.logits[self.present] - self.logits[self.present].max())
        self.shares = exponentials / exponentials.sum()
        weights = self.shares / self.losses
        factors = weights / weights.sum() * self.batch_size / self.examples[self.present]
        present = [task for task, is_present in zip(self.weights, self.present, strict=True) if is_present]
        self.factors = dict(zip(present, factors.tolist(), strict=True))

    def _means(self, sums: Tensor) -> np.ndarray:
        """Mean losses of the tasks that are present."""
        return sums.double().cpu().numpy()[self.present] / self.examples[self.present] + self.epsilon

    def end(self) -> None:
        fallen = np.log(self.losses) - np.log(self._means(self._measure()))
        if not np.isfinite(fallen).all():  # `check_losses` reports it in the next step
            return
        fallen[abs(fallen) < self.rounding] = 0  # Adam would scale the rounding error to a full step
        here = self.present
        gradient = self.shares * (fallen - (self.shares * fallen).sum()) + self.decay * self.logits[here]
        self.updates[here] += 1
        self.mean[here] = 0.9 * self.mean[here] + 0.1 * gradient
        self.square[here] = 0.999 * self.square[here] + 0.001 * gradient**2
        mean = self.mean[here] / (1 - 0.9 ** self.updates[here])
        square = self.square[here] / (1 - 0.999 ** self.updates[here])
        self.logits[here] -= self.rate * mean / (np.sqrt(square) + self.epsilon)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).tolist() for name in ("logits", "mean", "square", "updates")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, values in state.items():
            setattr(self, name, np.array(values))


def build_loss_weighting(
    method: str,
    model: MultitaskModel,
    tasks: Sequence[TaskData],
    batch_size: int,
    reduce: Callable[[Tensor], Tensor],
) -> LossWeighting:
    """Builds the loss weighting by its name in the configuration.

    Args:
        method: `static`, `size_of_label_space`, `uncertainty` or `famo`.
        model: the model to train; `uncertainty` adds its log variances to it.
        tasks: the tasks, in the configuration's order.
        batch_size: examples in a step.
        reduce: sums a tensor over the processes.
    """
    weights = {task.name: task.weight for task in tasks}
    if method == "size_of_label_space":  # MUPPET: Aghajanyan et al. 2021, arXiv:2101.11038
        return LossWeighting(
            weights, batch_size, {task.name: 1 / task.type.log_label_space(task.labels, task.train) for task in tasks}
        )
    if method == "uncertainty":
        model.add_log_variances()
        regressions = {task.name for task in tasks if task.type.problem_type == "regression"}
        return Uncertainty(weights, batch_size, model, regressions)
    return Famo(weights, batch_size, reduce) if method == "famo" else Static(weights, batch_size)
