"""The optimizer and the learning rate schedule."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from transformers import get_scheduler

from .gradient_similarity import OTHER, part_of

# Peak learning rate of the log variances. They start at 0 and must reach the logarithm of a loss; at the encoder's
# learning rate, about 1e-5, they would hardly move.
LOG_VARIANCE_RATE = 0.01


def build_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    own_rates: Sequence[tuple[Sequence[nn.Parameter], float]] = (),
) -> torch.optim.AdamW:
    """AdamW on the trainable parameters, fused except on XLA; biases and norms have no weight decay.

    Args:
        model: the model to optimise.
        learning_rate: peak of the schedule.
        weight_decay: weight decay of the weight matrices.
        own_rates: (parameters, peak) of the parameters with a different peak learning rate.

    Returns:
        The optimizer; `scale` in each parameter group is the group's learning rate divided by the schedule's.
    """
    log_variances = set(getattr(model, "log_variances", nn.Module()).parameters())
    trainable = [p for p in model.parameters() if p.requires_grad and p not in log_variances]
    scales = {parameter: peak / learning_rate for parameters, peak in own_rates for parameter in parameters}
    groups = [
        {
            "params": [p for p in trainable if (p.ndim >= 2) == is_matrix and scales.get(p, 1.0) == scale],
            "weight_decay": weight_decay if is_matrix else 0.0,
            "scale": scale,
        }
        for scale in dict.fromkeys([1.0, *scales.values()])
        for is_matrix in (True, False)
    ]
    if log_variances:
        of_tasks = [p for p in model.parameters() if p in log_variances]
        groups.append({"params": of_tasks, "weight_decay": 0.0, "scale": LOG_VARIANCE_RATE / learning_rate})
    return torch.optim.AdamW(groups, lr=learning_rate, fused=trainable[0].device.type != "xla")


def layer_rates(encoder: nn.Module, learning_rate: float, decay: float) -> list[tuple[list[nn.Parameter], float]]:
    """The peak learning rate of each part of the encoder: that of the heads times `decay` for each layer below them.

    Layer n of N, from 0, has decay ** (N - n), the embeddings decay ** (N + 1). Discriminative fine-tuning (Howard and
    Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.2), with depths as ELECTRA counts them (Clark et al. 2020,
    https://arxiv.org/abs/2003.10555). ALBERT's groups count as layers.

    Returns:
        (parameters, peak) of each part, as `build_optimizer` takes them; none if `decay` is 1.
    """
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters() if decay < 1 else ():
        parts.setdefault(part_of(name), []).append(parameter)
    layers = sorted((part for part in parts if part.startswith("layer_")), key=lambda part: int(part.split("_")[1]))
    depths = {"embeddings": 0, OTHER: len(layers) + 1} | {layer: depth for depth, layer in enumerate(layers, start=1)}
    return [(of, learning_rate * decay ** (len(layers) + 1 - depths[part])) for part, of in parts.items()]


def check_losses(step: int, losses: Mapping[str, float], learning_rate: float) -> None:
    """Refuses a loss that is infinite or NaN before it is applied to the weights.

    Raises:
        FloatingPointError: naming the step and the task.
    """
    for task, loss in losses.items():
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"step {step}: the loss of task {task} is {loss}; this step was not applied. "
                f"A lower training.learning_rate (it stood at {learning_rate:.3g}) often helps"
            )


def forget_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sets gradients to None, so that the optimizer skips the parameters; with zeros, weight decay would apply."""
    for parameter in parameters:
        parameter.grad = None


def lr_schedule(kind: str, peak: float, warmup_ratio: float, max_steps: int) -> Callable[[int], float]:
    """The learning rate as a stateless function of the number of steps done.

    The formulas are those of `transformers`: linear warm-up from 0 to `peak` over `round(warmup_ratio * max_steps)`
    steps, then `linear` or `cosine` decay to exactly 0 at `max_steps`, or `constant`.
    """
    name = {"constant": "constant_with_warmup"}.get(kind, kind)
    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    factor = get_scheduler(name, unused, round(warmup_ratio * max_steps), max_steps).lr_lambdas[0]
    return lambda step: peak * factor(step)
