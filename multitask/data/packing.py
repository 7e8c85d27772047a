"""From the rows of a step to what one device computes: passes of padded tensors."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ..mixture.mixture import Rows
from .split import NO_LABEL, Split

SHORTEST = 16  # below, a graph of its own saves nothing


def static_lengths(split: Split) -> list[int]:
    """Tokens to which a split's sequences are padded: powers of two, and the length of the longest."""
    longest = int(split.length.max())
    powers = [2**n for n in range(SHORTEST.bit_length() - 1, longest.bit_length())]
    return [length for length in powers if length < longest] + [longest]


def static_shape(split: Split, longest: int, most_rows: int, max_tokens: int) -> tuple[int, int]:
    """The rows and the tokens of the sub-batch that a row travels in.

    Args:
        split: what the row is of.
        longest: tokens of its longest sequence.
        most_rows: as many as ever come together.
        max_tokens: of one pass; a row that is longer by itself gets a pass of its own.
    """
    length = next(length for length in static_lengths(split) if length >= longest)
    return max(1, min(most_rows, max_tokens // (length * split.sequences))), length


def num_graphs(splits: Mapping[str, Split]) -> int:
    """How many shapes the passes over these splits can have: lengths, summed over the tasks."""
    return sum(len(static_lengths(split)) for split in splits.values())


# A batch of one task: "inputs", the keyword arguments of its model, and "labels"; with static shapes also "is_row",
# false for the rows that fill it up.
Batch = dict[str, dict[str, Tensor] | Tensor]


class Step(NamedTuple):
    """What one device computes in one step.

    Args:
        passes: for each forward and backward, a batch of every task; without rows where the pass has none of them.
        examples: examples of each task in the step, over all devices.
        tokens: real tokens in the step, over all devices.
    """

    passes: list[dict[str, Batch]]
    examples: dict[str, int]
    tokens: int


def split_statically(rows: Rows, split: Split, most_rows: int, max_tokens: int) -> list[Rows]:
    """Cuts a task's rows into sub-batches of static shapes, longest first.

    Args:
        rows: shortest first.
        split: of the task.
        most_rows: as many as ever come together.
        max_tokens: of one pass.
    """
    parts, remaining = [], rows[::-1]
    while len(remaining):
        fitting, _ = static_shape(split, int(split.length[remaining[0]]), most_rows, max_tokens)
        parts.append(remaining[:fitting])
        remaining = remaining[fitting:]
    return parts


def share_out(
    rows: Mapping[str, Rows], splits: Mapping[str, Split], num_devices: int, step: int
) -> list[dict[str, Rows]]:
    """Deals out each task's rows to the devices in turns, so that all compute on about as many tokens.

    What does not divide evenly goes to those that have the fewest tokens so far; the tasks with the longest rows come
    first, so that the others can make up for them. Whose turn it is between equals changes from step to step.

    Args:
        rows: of each task, shortest first.
        splits: of each task, for the lengths.
        num_devices: how many share the step.
        step: its number.

    Returns:
        For each device its rows of each task, shortest first.
    """
    shares: list[dict[str, Rows]] = [dict(rows) for _ in range(num_devices)]
    tokens = [0] * num_devices
    for task in sorted(rows, key=lambda task: -padded_tokens(splits[task], rows[task][-1:])):
        turns = sorted(range(num_devices), key=lambda d: (tokens[d], (d + step) % num_devices))
        for turn, device in enumerate(turns):
            shares[device][task] = rows[task][turn::num_devices]
            tokens[device] += padded_tokens(splits[task], shares[device][task])
    return shares


def split_into_passes(rows: Mapping[str, Rows], splits: Mapping[str, Split], max_tokens: int) -> list[dict[str, Rows]]:
    """Cuts each task's rows into runs and lays the runs into passes of at most `max_tokens` padded tokens.

    Args:
        rows: of each task, shortest first.
        splits: of each task, for the lengths.
        max_tokens: of one pass; a row that is longer by itself gets a pass of its own.

    Returns:
        One mapping from task to rows (longest first) a pass; at least one pass.
    """
    passes: list[dict[str, Rows]] = [{}]
    left = max_tokens
    for task, of_task in rows.items():
        split, remaining = splits[task], of_task[::-1]
        while len(remaining):
            fitting = max(0, left) // padded_tokens(split, remaining[:1])
            if not passes[-1]:
                fitting = max(1, fitting)
            if fitting:
                part, remaining = remaining[:fitting], remaining[fitting:]
                passes[-1][task] = part
                left -= padded_tokens(split, part)
            if len(remaining):
                passes.append({})
                left = max_tokens
    return passes


def padded_tokens(split: Split, rows: NDArray) -> int:
    """Tokens computed on when these rows are padded to the longest of their sequences."""
    return len(rows) * split.sequences * int(split.length[rows].max(initial=0))


def collate(
    split: Split, rows: Sequence[int] | NDArray, pad_token_id: int, shape: tuple[int, int] | None = None
) -> Batch:
    """Pads some rows of a split into tensors.

    Args:
        split: what the rows are of.
        rows: their numbers.
        pad_token_id: fills `input_ids`.
        shape: rows and tokens of the tensors, at least as many as needed; rows are filled up with a real one again, as
            all there is to compute from a row of padding is not a number. None takes what is needed.

    Returns:
        `inputs`: tensors of shape (rows, tokens), or (rows, choices, tokens) for multiple choice; `labels`, where they
        are known: (rows,), or (rows, labels or tokens) with `NO_LABEL` behind the end of a sequence; with `shape`,
        `is_row`: (rows,), false for those that fill up.
    """
    numbers = np.asarray(rows, np.int64)
    num_rows, num_tokens = shape or (len(numbers), 0)
    filler = numbers[:1] if len(numbers) else [int(split.length.argmin())]
    numbers = np.concatenate([numbers, np.repeat(filler, num_rows - len(numbers))])
    columns = split.rows[numbers] if len(numbers) else {name: [] for name in split.rows.column_names}
    labels = columns.pop("label", [])
    sequences = {name: [torch.tensor(s) for row in column for s in row] for name, column in columns.items()}
    inputs = {
        name: _pad(of_name, pad_token_id if name == "input_ids" else 0, num_tokens)
        if of_name
        else torch.zeros(0, 1, dtype=torch.int64)
        for name, of_name in sequences.items()
    }
    inputs["attention_mask"] = torch.zeros_like(inputs["input_ids"])
    for row, ids in enumerate(sequences["input_ids"]):
        inputs["attention_mask"][row, : len(ids)] = 1
    if split.sequences > 1:
        inputs = {
            name: tensor.view(len(numbers), split.sequences, tensor.shape[-1]) for name, tensor in inputs.items()
        }
    batch: Batch = {"inputs": inputs}
    if labels and isinstance(labels[0], list):
        lists = [torch.tensor(of_row, dtype=split.label_dtype) for of_row in labels]
        # Numbers for tokens are as many as these; those for labels are as many in every row.
        batch["labels"] = _pad(lists, NO_LABEL, 0 if split.label_dtype.is_floating_point else num_tokens)
    else:
        batch["labels"] = torch.tensor(labels, dtype=split.label_dtype)
    return batch if shape is None else {**batch, "is_row": torch.arange(num_rows) < len(rows)}


def num_rows(batch: Batch) -> int:
    """How many examples a batch holds, without those that fill it up."""
    return int(torch.as_tensor(batch["is_row"]).sum()) if "is_row" in batch else len(batch["labels"])


def _pad(sequences: list[Tensor], value: int, at_least: int) -> Tensor:
    padded = pad_sequence(sequences, batch_first=True, padding_value=value)
    return F.pad(padded, (0, max(0, at_least - padded.shape[1])), value=value)
