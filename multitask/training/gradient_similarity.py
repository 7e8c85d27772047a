"""Gradient similarity: the cosine between the tasks' gradients on the shared parameters.

It is positive where a step for one task also helps the other, negative where the gradients conflict (Yu et al. 2020,
arXiv:2001.06782; Du et al. 2018, arXiv:1812.02224).
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from ..model.multitask import MultitaskModel

GROUP = "agreement"  # of logged names


OTHER = "other"


MANY = 10  # with more tasks, similarity is measured only if `agreement_steps` is set


SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class GradientSimilarity:
    """Replaces a step's backward passes and keeps the tasks' gradients separate until the step ends.

    In a measured step the encoder computes each task's sub-batch separately, so that one backward pass per task costs
    about as much as one for all. The update is the same as in any other step, except for the order of float32
    additions and the dropout masks.

    In a measured step the device holds, besides the gradients, a copy of the shared parameters' gradients for each
    task: 4 bytes * shared parameters * (tasks + 1).

    Args:
        model: the model to train.
        accelerator: the run's accelerator.
        every: steps between two measurements; 0 for none, None for ten over the run, unless there are many tasks.
        max_steps: total number of steps.
    """

    def __init__(self, model: MultitaskModel, accelerator: Accelerator, every: int | None, max_steps: int):
        self.accelerator = accelerator
        self.every = (0 if len(model.tasks) > MANY else math.ceil(max_steps / 10)) if every is None else every
        self.own = {task: [p for p in model.head_parameters(task) if p.requires_grad] for task in model.tasks}
        of_one_task = {p for parameters in self.own.values() for p in parameters}
        parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in model.encoder.named_parameters():
            if parameter.requires_grad and parameter not in of_one_task:
                parts.setdefault(part_of(name), []).append(parameter)
        self.shared = [p for parameters in parts.values() for p in parameters]
        self.sizes = [p.numel() for p in self.shared]
        self.part_sizes = {part: sum(p.numel() for p in parameters) for part, parameters in parts.items()}
        is_sharded = accelerator.distributed_type in SHARDED
        self.is_possible = bool(self.shared) and len(self.own) > 1 and not is_sharded
        if every and not self.is_possible:
            why = "processes hold parts of the model" if is_sharded else "no two tasks train the same parameters"
            accelerator.print(f"note: training.agreement_steps has no effect: {why}")
        if every is None and self.is_possible and len(self.own) > MANY:
            needed = 4 * sum(self.sizes) * (len(self.own) + 1) / 2**30
            accelerator.print(
                f"note: whether {len(self.own)} tasks agree is not measured, as it would take {needed:.1f} GiB on "
                f"each device; training.agreement_steps: N measures it every N steps"
            )
        self.rows: Tensor | None = None  # shape (tasks, shared parameters), columns grouped by part
        self.own_rows: list[Tensor] = []

    def is_due(self, step: int) -> bool:
        """Whether a step is measured: every multiple of `every`, so that a resumed run measures the same steps."""
        return self.is_possible and self.every > 0 and step % self.every == 0

    def backward(self, terms: Sequence[Tensor]) -> None:
        """Runs backward for a pass of this process, without reducing the gradients over processes yet.

        Args:
            terms: each task's term of the loss, in the tasks' order; no two depend on the same activations, except
                the word embeddings.
        """
        scaler = self.accelerator.scaler  # with float16
        if self.rows is None:
            self.rows = torch.zeros(len(terms), sum(self.sizes), device=terms[0].device)
            self.own_rows = [self.rows.new_zeros(sum(p.numel() for p in own)) for own in self.own.values()]
        for term, own, row, own_row in zip(terms, self.own.values(), self.rows, self.own_rows, strict=True):
            term = term if scaler is None else scaler.scale(term)
            gradients = torch.autograd.grad(term, [*self.shared, *own], retain_graph=True, allow_unused=True)
            places = [*row.split(self.sizes), *own_row.split([p.numel() for p in own])]
            for place, gradient in zip(places, gradients, strict=True):
                if gradient is not None:  # None if the task has no rows in this pass
                    place += gradient.flatten()

    def finish(self, examples: Mapping[str, int]) -> dict[str, float]:
        """Sets each parameter's `grad` to what ordinary backward passes would have accumulated.

        Args:
            examples: number of examples of each task in the step, over all processes.

        Returns:
            The cosines between tasks with examples in the step, by their names in the log.
        """
        assert self.rows is not None
        for row in self.rows:
            row.copy_(self.accelerator.reduce(row))
        _set_gradients(self.shared, self.rows.sum(dim=0))
        for own, own_row in zip(self.own.values(), self.own_rows, strict=True):
            _set_gradients(own, self.accelerator.reduce(own_row))
        parts = zip(self.part_sizes, self.rows.split(list(self.part_sizes.values()), dim=1), strict=True)
        products = {part: (columns @ columns.T).double().cpu() for part, columns in parts}
        self.rows, self.own_rows = None, []
        return cosines(products, examples)


def _set_gradients(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def cosines(products: Mapping[str, Tensor], examples: Mapping[str, int]) -> dict[str, float]:
    """Computes cosines from inner products of the tasks' gradients, overall and for each named part of the encoder.

    Args:
        products: inner products for each part of the encoder, shape (tasks, tasks).
        examples: number of examples of each task; tasks without examples are left out.

    Returns:
        In `GROUP`: `average` over all pairs, `TASK_A/TASK_B` and `PART/TASK_A/TASK_B`, A before B; pairs with a zero
        or non-finite gradient are left out.
    """
    values: dict[str, float] = {}
    overall = torch.stack(list(products.values())).sum(dim=0)
    for part, product in {"": overall, **products}.items():
        norms = product.diagonal().sqrt()
        cosine = product / norms.outer(norms)
        for (a, task_a), (b, task_b) in combinations(enumerate(examples), 2):
            value = float(cosine[a, b])
            if examples[task_a] and examples[task_b] and abs(value) <= 1.001 and part != OTHER:
                values[f"{GROUP}/{part}/{task_a}/{task_b}".replace("//", "/")] = min(1.0, max(-1.0, value))
        if not part and values:
            values = {f"{GROUP}/average": sum(values.values()) / len(values)} | values
    return values


def part_of(name: str) -> str:
    """The part of the encoder that a parameter belongs to: `embeddings`, `layer_N` from 0, or `OTHER`.

    ALBERT's layers share parameters in groups, so for ALBERT `layer_N` is a group.
    """
    if layer := re.search(r"(?:^|\.)(?:layers?|albert_layer_groups)\.(\d+)\.", name):
        return f"layer_{layer[1]}"
    return "embeddings" if "embedding" in name else OTHER
