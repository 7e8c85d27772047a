"""Losses that fit the labels: weights of classes, label smoothing, focal loss.

The loss of an example with class c among K, its probability p_c and the weights w:

    (1 - p_c) ** gamma * ((1 - s) * w_c * -log p_c + s / K * sum over k of w_k * -log p_k)

or, where the label is a probability q_k for each class, the sum over k of w_k * q_k * -log p_k, smoothed alike;
with s for label smoothing (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7; with weights as
`torch.nn.functional.cross_entropy` combines them) and gamma for the focal loss (Lin et al. 2017,
https://arxiv.org/abs/1708.02002, equation 5). Labels that do not exclude each other are one decision each.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LossOptions:
    """What a task's loss is besides the plain one of its type.

    Args:
        class_weights: a factor for each class or label; None for 1.
        label_smoothing: s, from 0 to less than 1.
        focal_gamma: gamma; 0 for none.
    """

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0


PLAIN = LossOptions()


def class_loss(logits: Tensor, labels: Tensor, options: LossOptions, ignored: int = -100) -> Tensor:
    """The loss of one class among several.

    Args:
        logits: shape (examples, classes), or (examples, classes, tokens).
        labels: shape (examples,), or (examples, tokens); or a probability for each class, as `logits`.
        options: of the task.
        ignored: a label that has no loss.

    Returns:
        Shape (examples,), or (examples, tokens); 0 where a label is ignored.
    """
    losses = F.cross_entropy(
        logits,
        labels,
        weight=on_device(options.class_weights, logits.device),
        ignore_index=ignored,
        reduction="none",
        label_smoothing=options.label_smoothing,
    )
    if not options.focal_gamma:
        return losses
    true = logits.log_softmax(1).gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    return (1 - true.exp()) ** options.focal_gamma * losses


def label_loss(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
    """The mean loss over labels that may each be there or not: a smoothed one is there with 1 - s / 2 or s / 2.

    Args:
        logits: shape (examples, labels).
        labels: the same shape; 1 for a label that is there, 0 for others.
        options: of the task.

    Returns:
        Shape (examples,).
    """
    targets = labels * (1 - options.label_smoothing) + options.label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if options.focal_gamma:
        losses = torch.where(labels > 0.5, 1 - logits.sigmoid(), logits.sigmoid()) ** options.focal_gamma * losses
    weights = on_device(options.class_weights, logits.device)
    return (losses if weights is None else weights * losses).mean(dim=-1)


@lru_cache
def on_device(weights: tuple[float, ...] | None, device: torch.device) -> Tensor | None:
    """The weights as a tensor that is copied once."""
    return None if weights is None else torch.tensor(weights, device=device)


def balanced(counts: NDArray[np.integer]) -> tuple[float, ...]:
    """Weights with which every class counts the same in all: rows / (classes * rows of the class).

    As `class_weight="balanced"` of scikit-learn (King and Zeng 2001, https://doi.org/10.1093/oxfordjournals.pan.a004868).
    A class without rows gets 1; the mean weight over the rows is 1.
    """
    there = counts > 0
    weights = np.where(there, counts.sum() / (there.sum() * np.maximum(counts, 1)), 1.0)
    return tuple(weights.tolist())
