"""From the rows of a step to what one device computes: passes of packed sequences."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..mixture.mixture import Rows
from .split import NO_LABEL, Ragged, Split, ranges

Inputs = dict[str, Tensor]  # keyword arguments of a model: padded tensors of shape (rows, [choices,] tokens)


Readers = Mapping[str, Mapping[str, Split]]  # of each stream of rows: the tasks that read it, with their labels


class Span(NamedTuple):
    """Where a task's sequences are among those of a packed pass.

    Args:
        first: number of its first sequence.
        num_rows: examples.
        per_row: sequences in each of them; a row's sequences stand together.
    """

    first: int
    num_rows: int
    per_row: int

    @property
    def sequences(self) -> slice:
        """All its sequences."""
        return slice(self.first, self.first + self.num_rows * self.per_row)


class Packed(NamedTuple):
    """Sequences of several tasks one behind the other in a row of shape (1, tokens); there is no padding.

    Args:
        input_ids: shape (1, tokens).
        token_type_ids: the same shape; None for encoders that have no types.
        position_ids: the same shape; from 0 in each sequence.
        cu_seqlens: where each sequence begins, and where the last one ends; int32, shape (sequences + 1,).
        lengths: tokens of each sequence, on the host.
        spans: of each task.
    """

    input_ids: Tensor
    token_type_ids: Tensor | None
    position_ids: Tensor
    cu_seqlens: Tensor
    lengths: NDArray[np.int64]
    spans: dict[str, Span]

    def only(self, task: str) -> "Packed":
        """The sequences of one task."""
        span = self.spans[task]
        first, last = int(self.lengths[: span.first].sum()), int(self.lengths[: span.sequences.stop].sum())
        cu_seqlens = self.cu_seqlens[span.first : span.sequences.stop + 1]
        return Packed(
            self.input_ids[:, first:last],
            None if self.token_type_ids is None else self.token_type_ids[:, first:last],
            self.position_ids[:, first:last],
            cu_seqlens - cu_seqlens[0],
            self.lengths[span.sequences],
            {task: span._replace(first=0)},
        )


class Pass(NamedTuple):
    """One forward and backward on one device.

    Args:
        inputs: what the model is called with; with static shapes the padded inputs of each task.
        labels: of each task: (rows,), or (rows, labels or tokens) with `NO_LABEL` behind the end of a sequence.
        num_rows: examples of each task.
        is_row: of tasks whose rows do not all count, (rows,): false for rows without a label of the task, and for
            those that only fill up a static shape. None if all count.
    """

    inputs: Packed | dict[str, Inputs]
    labels: dict[str, Tensor]
    num_rows: dict[str, int]
    is_row: dict[str, Tensor] | None = None


class Step(NamedTuple):
    """What one device computes in one step.

    Args:
        passes: of this device.
        examples: examples of each task in the step, over all devices.
        tokens: tokens in the step, over all devices, without padding.
    """

    passes: list[Pass]
    examples: dict[str, int]
    tokens: int


def share_out(
    rows: Mapping[str, Rows], splits: Mapping[str, Split], num_devices: int, step: int
) -> list[dict[str, Rows]]:
    """Deals out each task's rows to the devices in turns, so that all compute on about as many tokens.

    In each turn, the longest row goes to the device with the fewest tokens so far, and so on. The tasks with the
    longest rows come first, so that the others can make up for them. Which of two equal devices comes first changes
    from step to step.

    Args:
        rows: of each task, shortest first.
        splits: of each task, for the lengths.
        num_devices: how many share the step.
        step: its number.

    Returns:
        For each device its rows of each task, shortest first.
    """
    if num_devices == 1:
        return [dict(rows)]
    shares: list[dict[str, list[int]]] = [{task: [] for task in rows} for _ in range(num_devices)]
    tokens = [0] * num_devices
    for task in sorted(rows, key=lambda task: -int(splits[task].tokens[rows[task][-1:]].sum())):
        longest_first = rows[task][::-1]
        of_rows = splits[task].tokens[longest_first].tolist()
        for first in range(0, len(longest_first), num_devices):
            turn = sorted(range(num_devices), key=lambda d: (tokens[d], (d + step) % num_devices))
            for device, place in zip(turn, range(first, len(longest_first)), strict=False):
                shares[device][task].append(longest_first[place])
                tokens[device] += of_rows[place]
    return [{task: np.array(own[::-1], np.int64) for task, own in share.items()} for share in shares]


def split_into_passes(rows: Mapping[str, Rows], splits: Mapping[str, Split], max_tokens: int) -> list[dict[str, Rows]]:
    """Cuts each task's rows into runs and lays the runs into passes of at most `max_tokens` tokens.

    Args:
        rows: of each task, shortest first.
        splits: of each task, for the lengths.
        max_tokens: of one pass; a row that is longer by itself gets a pass of its own.

    Returns:
        One mapping from task to rows (longest first) for each pass; at least one pass.
    """
    passes: list[dict[str, Rows]] = [{}]
    free = max_tokens
    for task, of_task in rows.items():
        remaining = of_task[::-1]
        ends = np.cumsum(splits[task].tokens[remaining])
        taken, used = 0, 0
        while taken < len(remaining):
            fitting = int(np.searchsorted(ends, used + free, side="right"))
            if not passes[-1]:
                fitting = max(fitting, taken + 1)
            if fitting > taken:
                passes[-1][task] = remaining[taken:fitting]
                free -= int(ends[fitting - 1]) - used
                taken, used = fitting, int(ends[fitting - 1])
            if taken < len(remaining):
                passes.append({})
                free = max_tokens
    return passes


def pack(
    rows: Mapping[str, Rows], splits: Mapping[str, Split], readers: Readers | None = None, own_share: float = 1.0
) -> Pass:
    """Gathers the sequences of some rows, stream by stream.

    Args:
        rows: of each stream; one without rows keeps a span of none.
        splits: of each stream.
        readers: the tasks that read each stream; None for one of its name.
        own_share: as of `labels_of`.
    """
    readers = readers or {stream: {stream: split} for stream, split in splits.items()}
    spans: dict[str, Span] = {}
    columns: dict[str, list[NDArray]] = {"input_ids": [], "token_type_ids": []}
    lengths, first = [np.empty(0, np.int64)], 0
    for task, of_task in rows.items():
        split = splits[task]
        sequences = split.sequence_numbers(of_task)
        spans[task] = Span(first, len(of_task), split.sequences)
        lengths.append(split.input_ids.sizes[sequences].astype(np.int64))
        columns["input_ids"].append(split.input_ids[sequences])
        if split.token_type_ids is not None:
            columns["token_type_ids"].append(split.token_type_ids[sequences])
        first += len(sequences)
    flat = {name: torch.from_numpy(np.concatenate(parts))[None].long() for name, parts in columns.items() if parts}
    sizes = np.concatenate(lengths)
    packed = Packed(
        input_ids=flat["input_ids"],
        token_type_ids=flat.get("token_type_ids"),
        position_ids=torch.from_numpy(ranges(np.zeros_like(sizes), sizes))[None],
        cu_seqlens=torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)),
        lengths=sizes,
        spans=spans,
    )
    packed = packed._replace(spans={task: spans[stream] for stream in rows for task in readers[stream]})
    of_tasks = {task: (split, rows[stream]) for stream in rows for task, split in readers[stream].items()}
    return Pass(
        packed,
        labels={task: labels_of(split, of_task, own_share=own_share) for task, (split, of_task) in of_tasks.items()},
        num_rows={task: num_labelled(split, of_task) for task, (split, of_task) in of_tasks.items()},
        is_row={
            task: torch.from_numpy(split.has_label[of_task])
            for task, (split, of_task) in of_tasks.items()
            if split.has_label is not None
        }
        or None,
    )


def num_labelled(split: Split, rows: Rows) -> int:
    """How many of some rows have a label."""
    return len(rows) if split.has_label is None else int(split.has_label[rows].sum())


def labels_of(split: Split, rows: Rows, width: int = 0, own_share: float = 1.0) -> Tensor:
    """The labels of some rows as a tensor; empty if they are not known.

    Args:
        split: of the rows.
        rows: their numbers.
        width: of labels for each token, at least that many; the end is filled with `NO_LABEL`.
        own_share: of the rows' own labels, where a teacher's predictions make up the rest.
    """
    if split.targets is not None:
        own, taught = split.targets.own[rows], split.targets.taught[rows]
        return torch.from_numpy(own_share * own + (1 - own_share) * taught).float()
    if split.labels is None:
        return torch.empty(0, dtype=split.label_dtype)
    if not isinstance(split.labels, Ragged):
        return torch.from_numpy(split.labels[rows]).to(split.label_dtype)
    values, _ = pad(split.labels[rows], split.labels.sizes[rows], NO_LABEL, width)
    return torch.from_numpy(values).to(split.label_dtype)


def pad(values: NDArray, sizes: NDArray[np.integer], fill: int, width: int = 0) -> tuple[NDArray, NDArray[np.bool_]]:
    """Lists that lie one behind the other as the rows of a matrix.

    Args:
        values: of all lists.
        sizes: of each list.
        fill: what stands behind the end of a list.
        width: columns, at least; as many as the longest list has are always there.

    Returns:
        The values, shape (lists, columns), and where a list has one.
    """
    is_value = np.arange(max(width, sizes.max(initial=0))) < sizes[:, None]
    padded = np.full(is_value.shape, fill, values.dtype)
    padded[is_value] = values
    return padded, is_value
