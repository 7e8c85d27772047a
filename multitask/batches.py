"""From the rows of a step to what one device computes: passes of padded tensors, prepared in the background."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from .data import Split
from .mixture import Mixture, Rows
from .words import NO_LABEL

# A batch of one task: "inputs", the keyword arguments of its model, and "labels".
Batch = dict[str, dict[str, Tensor] | Tensor]


class Step(NamedTuple):
    """What one device computes in one step.

    Args:
        passes: for each forward and backward, a batch of every task; without rows where the pass has none of them.
        examples: examples of each task in the step, over all devices.
        tokens: real tokens in the step, over all devices.
        padded_tokens: tokens computed on, over all devices.
    """

    passes: list[dict[str, Batch]]
    examples: dict[str, int]
    tokens: int
    padded_tokens: int


class StepDataset(Dataset[Step]):
    """The steps of a run as one device sees them; item s is step s, computed from s alone.

    Device r of R takes rows r, r + R, r + 2R… of each task's rows, which are ordered by length. What does not fit into
    one pass is split into several, the same number on every device.

    Args:
        mixture: gives each step's rows.
        splits: training rows of each task.
        pad_token_id: fills `input_ids`.
        max_tokens_per_pass: limit of padded tokens in a pass.
        num_devices: R.
        device: r.
    """

    def __init__(
        self,
        mixture: Mixture,
        splits: Mapping[str, Split],
        pad_token_id: int,
        max_tokens_per_pass: int,
        num_devices: int = 1,
        device: int = 0,
    ):
        self.mixture, self.splits, self.pad_token_id = mixture, splits, pad_token_id
        self.max_tokens_per_pass, self.num_devices, self.device = max_tokens_per_pass, num_devices, device

    def __getitem__(self, step: int) -> Step:
        rows = self.mixture(step)
        plans = [
            split_into_passes(
                {task: r[device :: self.num_devices] for task, r in rows.items()},
                self.splits,
                self.max_tokens_per_pass,
            )
            for device in range(self.num_devices)
        ]
        num_passes = max(len(plan) for plan in plans)
        own = plans[self.device] + [{}] * (num_passes - len(plans[self.device]))
        return Step(
            passes=[
                {task: collate(split, part.get(task, ()), self.pad_token_id) for task, split in self.splits.items()}
                for part in own
            ],
            examples={task: len(r) for task, r in rows.items()},
            tokens=sum(int(self.splits[task].tokens[r].sum()) for task, r in rows.items()),
            padded_tokens=sum(
                padded_tokens(self.splits[task], r) for plan in plans for part in plan for task, r in part.items()
            ),
        )


class StepLoader:
    """The steps of a run with their numbers, prepared in the background.

    What has been prepared when `use` gives it another mixture is thrown away and made anew.

    Args:
        dataset: gives a step as this device sees it.
        first: how many steps are done already.
        last: the number of the last step.
        options: further arguments of `DataLoader`.
    """

    def __init__(self, dataset: StepDataset, first: int, last: int, **options: Any):
        self.dataset, self.first, self.last, self.options = dataset, first, last, options

    def use(self, mixture: Mixture, last: int) -> None:
        """From the next step on, takes rows as a mixture says, up to another last step."""
        self.dataset.mixture, self.last = mixture, last

    def __iter__(self) -> Iterator[tuple[int, Step]]:
        done = self.first
        while done < self.last:
            mixture, remaining = self.dataset.mixture, range(done, self.last)
            for step in DataLoader(self.dataset, batch_size=None, sampler=remaining, **self.options):
                done += 1
                yield done, step
                if self.dataset.mixture is not mixture:
                    break


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


def collate(split: Split, rows: Sequence[int] | NDArray, pad_token_id: int) -> Batch:
    """Pads some rows of a split into tensors.

    Returns:
        `inputs`: tensors of shape (rows, tokens), or (rows, choices, tokens) for multiple choice; `labels`, where they
        are known: (rows,), or (rows, labels or tokens) with `NO_LABEL` behind the end of a sequence.
    """
    columns = split.rows[np.asarray(rows, np.int64)] if len(rows) else {name: [] for name in split.rows.column_names}
    labels = columns.pop("label", [])
    sequences = {name: [torch.tensor(s) for row in column for s in row] for name, column in columns.items()}
    inputs = {
        name: pad_sequence(of_name, batch_first=True, padding_value=pad_token_id if name == "input_ids" else 0)
        if of_name
        else torch.zeros(0, 1, dtype=torch.int64)
        for name, of_name in sequences.items()
    }
    inputs["attention_mask"] = torch.zeros_like(inputs["input_ids"])
    for row, ids in enumerate(sequences["input_ids"]):
        inputs["attention_mask"][row, : len(ids)] = 1
    if split.sequences > 1:
        inputs = {name: tensor.view(len(rows), split.sequences, tensor.shape[-1]) for name, tensor in inputs.items()}
    if labels and isinstance(labels[0], list):
        lists = [torch.tensor(of_row, dtype=split.label_dtype) for of_row in labels]
        return {"inputs": inputs, "labels": pad_sequence(lists, batch_first=True, padding_value=NO_LABEL)}
    return {"inputs": inputs, "labels": torch.tensor(labels, dtype=split.label_dtype)}
