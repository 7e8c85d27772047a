"""Passes in a few fixed shapes, for devices that compile a graph for each shape (TPUs).

A pass holds one task, padded to a power of two.
"""

from collections.abc import Mapping

import numpy as np
import torch

from ..mixture.mixture import Rows
from .packing import Inputs, Pass, labels_of, num_labelled, pad
from .split import Split

SHORTEST = 16  # below, a graph of its own saves nothing


def static_lengths(split: Split) -> list[int]:
    """Tokens to which a split's sequences are padded: powers of two, and the length of the longest."""
    longest = int(split.length.max())
    powers = [2**n for n in range(SHORTEST.bit_length() - 1, longest.bit_length())]
    return [length for length in powers if length < longest] + [longest]


def static_shape(split: Split, longest: int, most_rows: int, max_tokens: int) -> tuple[int, int]:
    """Rows and tokens of the batch that a row is computed in.

    Args:
        split: of the row.
        longest: tokens of its longest sequence.
        most_rows: rows that ever come together, at most.
        max_tokens: of one pass; a row that is longer by itself gets a pass of its own.
    """
    length = next(length for length in static_lengths(split) if length >= longest)
    return max(1, min(most_rows, max_tokens // (length * split.sequences))), length


def num_graphs(splits: Mapping[str, Split]) -> int:
    """How many shapes the passes over these splits can have: lengths, summed over the tasks."""
    return sum(len(static_lengths(split)) for split in splits.values())


def split_statically(rows: Rows, split: Split, most_rows: int, max_tokens: int) -> list[Rows]:
    """Cuts a task's rows into batches of static shapes, longest first.

    Args:
        rows: shortest first.
        split: of the task.
        most_rows: rows that ever come together, at most.
        max_tokens: of one pass.
    """
    parts, remaining = [], rows[::-1]
    while len(remaining):
        fitting, _ = static_shape(split, int(split.length[remaining[0]]), most_rows, max_tokens)
        parts.append(remaining[:fitting])
        remaining = remaining[fitting:]
    return parts


def collate(
    split: Split, rows: Rows, pad_token_id: int, shape: tuple[int, int] | None = None, own_share: float = 1.0
) -> tuple[Inputs, torch.Tensor]:
    """Pads some rows of a split into tensors.

    Args:
        split: of the rows.
        rows: their numbers.
        pad_token_id: fills `input_ids`.
        shape: rows and tokens of the tensors, at least as many as needed. Rows are filled up with copies of the first,
            as attention over padding alone gives NaN. None takes what is needed.
        own_share: as of `labels_of`.

    Returns:
        Keyword arguments of the task's model, shape (rows, tokens), or (rows, choices, tokens) for multiple choice;
        and the labels, as `Pass` has them.
    """
    numbers = np.asarray(rows, np.int64)
    num_rows, width = shape or (len(numbers), 0)
    filler = numbers[:1] if len(numbers) else np.array([split.length.argmin()])
    numbers = np.concatenate([numbers, np.repeat(filler, num_rows - len(numbers))])
    sequences = split.sequence_numbers(numbers)
    sizes = split.input_ids.sizes[sequences]
    ids, is_token = pad(split.input_ids[sequences], sizes, pad_token_id, width or 1)
    columns = {"input_ids": ids, "attention_mask": is_token}
    if split.token_type_ids is not None:
        columns["token_type_ids"], _ = pad(split.token_type_ids[sequences], sizes, 0, width or 1)
    leading = (len(numbers), split.sequences) if split.sequences > 1 else (len(numbers),)
    inputs = {
        name: torch.from_numpy(column).long().view(*leading, column.shape[-1]) for name, column in columns.items()
    }
    return inputs, labels_of(split, numbers, width, own_share)


def static_pass(
    splits: Mapping[str, Split],
    task: str,
    rows: Rows,
    pad_token_id: int,
    most_rows: int,
    max_tokens: int,
    own_share: float = 1.0,
) -> Pass:
    """A pass of one task in a static shape; the other tasks have no rows in it.

    Args:
        splits: of all tasks.
        task: whose rows they are.
        rows: of the pass; none where this device has no more.
        pad_token_id: fills `input_ids`.
        most_rows: as of `static_shape`.
        max_tokens: as of `static_shape`.
        own_share: as of `labels_of`.
    """
    split = splits[task]
    shape = static_shape(split, int(split.length[rows].max(initial=0)), most_rows, max_tokens)
    nothing = np.empty(0, np.int64)
    batches = {
        name: collate(of_task, rows, pad_token_id, shape, own_share)
        if name == task
        else collate(of_task, nothing, pad_token_id)
        for name, of_task in splits.items()
    }
    is_row = {name: torch.arange(len(labels)) < len(rows) for name, (_, labels) in batches.items()}
    if split.has_label is not None:
        is_row[task][: len(rows)] &= torch.from_numpy(split.has_label[rows])
    return Pass(
        {name: inputs for name, (inputs, _) in batches.items()},
        {name: labels for name, (_, labels) in batches.items()},
        {name: num_labelled(split, rows) if name == task else 0 for name in splits},
        is_row,
    )
