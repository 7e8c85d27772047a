"""The mean of the weights over the last steps of a run.

Stochastic weight averaging (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407), with the mean after every step
and the schedule of the learning rate as it is. Training goes on from the weights as they are; the mean is what is
evaluated, saved and exported.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_swa_avg_fn

from .distributed import reshard, shared_out, whole


class WeightAverage:
    """The mean of a model's trained weights after the steps from `first_step` on.

    Args:
        model: the model, not wrapped by Accelerate.
        share: part of the steps, the last ones, that the mean is over; 0 for no mean.
        max_steps: planned length of the run.
    """

    def __init__(self, model: nn.Module, share: float, max_steps: int):
        self.model = model
        self.first_step = max_steps - math.floor(share * max_steps) + 1 if share else math.inf
        self.count = 0  # of steps in the mean
        self._mean: dict[str, Tensor] = {}
        self._formula = get_swa_avg_fn()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after a step, if it is one of the last."""
        if step < self.first_step:
            return
        for name, weight in self._trained():
            if self.count:
                self._mean[name].copy_(self._formula(self._mean[name], weight, self.count))
            else:
                self._mean[name] = weight.detach().clone()
        self.count += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the mean as its weights, if there is one, and afterwards its own again."""
        own = {name: weight.detach().clone() for name, weight in self._trained()} if self.count else {}
        self._copy(self._mean)
        try:
            yield
        finally:
            self._copy(own)

    def tensors(self) -> dict[str, Tensor]:
        """The mean by the parameters' names; empty if there is none. Of sharded weights a collective call."""
        return {name: whole(tensor) for name, tensor in self._mean.items()}

    def load(self, step: int, count: int, tensors: Mapping[str, Tensor]) -> None:
        """Restores the mean after a step; not if the run was lengthened, and the mean begins later now."""
        if step >= self.first_step and count:
            self.count = count
            self._mean = {name: shared_out(tensors[name], weight).clone() for name, weight in self._trained()}

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        reshard(self.model)
        for name, weight in self._trained() if tensors else ():
            weight.copy_(tensors[name])
