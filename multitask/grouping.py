"""Which sequences the encoder computes together: those of about one length, whichever task they belong to."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# What a call of the encoder costs besides its tokens, in tokens that take as long: it reads all weights, and its
# backward pass adds to all gradients. Measured on two CPU cores, 20 to 40; an accelerator must also be given hundreds
# of operations to do, one by one, and is much faster with tokens.
CALL_COST = {"cpu": 32}
CALL_COST_OF_ACCELERATORS = 1024

Inputs = Mapping[str, Tensor]


def group_by_length(lengths: NDArray, call_cost: int, max_tokens: int) -> list[NDArray]:
    """Cuts sequences into groups of about one length: of all ways, the one that costs least.

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
    if call_cost and least[-1] - call_cost * len(groups) > max_tokens:
        return group_by_length(lengths, call_cost // 2, max_tokens)
    return groups


def regroup(
    batches: Mapping[str, Inputs], pad_token_id: int, max_tokens: int | None
) -> tuple[list[Inputs], dict[str, Tensor]]:
    """Lays the sequences of several tasks into groups of about one length.

    Args:
        batches: of each task, the keyword arguments of an encoder, shape (…, tokens), `input_ids` and `attention_mask`
            among them; padding is on the right. What is the same object for several tasks is laid out once.
        pad_token_id: fills `input_ids`.
        max_tokens: as `group_by_length` takes it; None leaves the batches as they are.

    Returns:
        The groups, with the same keyword arguments, shape (sequences, tokens); and for each task, where its tokens are
        among those of all groups, one after the other, or the number of these for padding; shape (sequences, tokens).
    """
    flat = {id(i): {name: tensor.flatten(0, -2) for name, tensor in i.items()} for i in batches.values()}
    shapes = [inputs["input_ids"].shape for inputs in flat.values()]
    width = max(tokens for _, tokens in shapes)
    columns: dict[str, list[Tensor]] = {}
    for inputs in flat.values():
        for name, tensor in inputs.items():
            fill = pad_token_id if name == "input_ids" else 0
            columns.setdefault(name, []).append(F.pad(tensor, (0, width - tensor.shape[-1]), value=fill))
    everything = {name: torch.cat(tensors) for name, tensors in columns.items()}
    mask = everything["attention_mask"]
    groups: list[Inputs] = []
    places, taken = torch.zeros_like(mask, dtype=torch.int64), 0
    for rows, longest in _rows_of_groups(mask, shapes, max_tokens):
        groups.append({name: tensor[rows, :longest] for name, tensor in everything.items()})
        shape = groups[-1]["input_ids"].shape
        places[rows, :longest] = torch.arange(taken, taken + shape.numel(), device=mask.device).view(shape)
        taken += shape.numel()
    places = torch.where(mask.bool(), places, taken)
    of_inputs = {
        which: of_batch[:, :tokens]
        for which, of_batch, (_, tokens) in zip(flat, places.split([n for n, _ in shapes]), shapes, strict=True)
    }
    return groups, {task: of_inputs[id(inputs)] for task, inputs in batches.items()}


def _rows_of_groups(
    mask: Tensor, shapes: Sequence[torch.Size], max_tokens: int | None
) -> Iterator[tuple[Tensor, int]]:
    """Of each group the numbers of its sequences and the length of the longest."""
    if max_tokens is None:
        numbers = torch.arange(len(mask), device=mask.device).split([n for n, _ in shapes])
        yield from zip(numbers, (tokens for _, tokens in shapes), strict=True)
        return
    lengths, cost = mask.sum(dim=-1).cpu().numpy(), CALL_COST.get(mask.device.type, CALL_COST_OF_ACCELERATORS)
    for numbers in group_by_length(lengths, cost, max_tokens):
        yield torch.from_numpy(numbers).to(mask.device), int(lengths[numbers].max())
