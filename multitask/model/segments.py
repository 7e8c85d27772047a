"""Where the sequences of a packed row lie, and how kernels that want padded batches get them."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.split import ranges

# What a call of attention costs besides its tokens, in padded tokens that take as long: measured on two CPU cores.
ATTENTION_CALL_COST = 32


class Group(NamedTuple):
    """Sequences of about one length that one call computes.

    Args:
        num_sequences: in the group.
        length: tokens of the longest of them.
        mask: shape (sequences, length), true for tokens; None if all sequences are that long.
    """

    num_sequences: int
    length: int
    mask: Tensor | None


class Layout(NamedTuple):
    """The tokens of a packed row in groups of about one length, padded.

    Args:
        groups: shorter sequences first.
        source: for each place of the groups the token that stands there, and some token for padding; (places,).
        places: the place of each token; (tokens,).
        padding: places where no token stands; (places - tokens,).
    """

    groups: list[Group]
    source: Tensor
    places: Tensor
    padding: Tensor

    @property
    def sizes(self) -> list[int]:
        """Places in each group."""
        return [group.num_sequences * group.length for group in self.groups]


def lay_out(lengths: NDArray[np.int64], call_cost: int, device: torch.device, max_tokens: int | None = None) -> Layout:
    """Lays sequences that lie one behind the other into groups.

    Args:
        lengths: tokens of each sequence.
        call_cost: as of `group_by_length`.
        device: of the tokens.
        max_tokens: as of `group_by_length`.
    """
    starts = np.cumsum(lengths) - lengths
    places = np.empty(lengths.sum(), np.int64)
    groups, sources, taken = [], [], 0
    for numbers in group_by_length(lengths, call_cost, max_tokens):
        of_group = lengths[numbers]
        longest = int(of_group.max())
        is_token = np.arange(longest) < of_group[:, None]
        sources.append((starts[numbers, None] + np.minimum(np.arange(longest), of_group[:, None] - 1)).ravel())
        places[ranges(starts[numbers], of_group)] = taken + np.flatnonzero(is_token)
        mask = None if is_token.all() else to_device(is_token, device)
        groups.append(Group(len(numbers), longest, mask))
        taken += is_token.size
    padding = np.setdiff1d(np.arange(taken), places, assume_unique=True)
    return Layout(groups, *(to_device(array, device) for array in (np.concatenate(sources), places, padding)))


def to_device(values: NDArray | Sequence[float], device: torch.device) -> Tensor:
    """Numbers of the host as a tensor on a device; from pinned memory, so that the host does not wait for a GPU."""
    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def group_by_length(lengths: NDArray[np.int64], call_cost: int, max_tokens: int | None = None) -> list[NDArray]:
    """Cuts sequences into groups of about one length: of all ways, the cheapest.

    A group costs `call_cost` and the tokens that it has once its sequences are padded to the longest of them. As
    lengths stay in order, the best groups up to one length follow from the best ones up to each length before.

    Args:
        lengths: tokens of each sequence; at least one.
        call_cost: of a group, in tokens.
        max_tokens: limit of padded tokens in all groups together, kept by making more groups than were best.

    Returns:
        For each group the places of its sequences in `lengths`; groups of shorter ones first.
    """
    kinds, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(counts)])
    least, begins = np.zeros(len(ends)), np.zeros(len(ends), np.int64)
    for end in range(1, len(ends)):
        costs = least[:end] + kinds[end - 1] * (ends[end] - ends[:end]) + call_cost
        begins[end] = np.argmin(costs)
        least[end] = costs[begins[end]]
    groups: list[NDArray] = []
    order, end = np.argsort(lengths, kind="stable"), len(kinds)
    while end:
        groups.insert(0, order[ends[begins[end]] : ends[end]])
        end = begins[end]
    if call_cost and max_tokens is not None and least[-1] - call_cost * len(groups) > max_tokens:
        return group_by_length(lengths, call_cost // 2, max_tokens)
    return groups


class Segments:
    """The sequences of a packed row, as attention needs them.

    Args:
        lengths: tokens of each sequence, on the host, so that nothing waits for the device to tell them.
        cu_seqlens: where each sequence begins, and where the last one ends; int32, shape (sequences + 1,).
    """

    def __init__(self, lengths: NDArray[np.int64], cu_seqlens: Tensor):
        self.lengths, self.cu_seqlens = lengths, cu_seqlens
        self.max_length = int(lengths.max())

    @cached_property
    def layout(self) -> Layout:
        """For kernels that take padded batches; made once for all layers."""
        return lay_out(self.lengths, ATTENTION_CALL_COST, self.cu_seqlens.device)
