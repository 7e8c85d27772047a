"""The tokenised rows of one split of a dataset, flat: the tokens of all sequences lie one behind the other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray

NO_LABEL = -100  # ignored by the loss


FINGERPRINT_TOKENS = 1_000_000
AT_ONCE = 10_000  # lists


COUNTS = ("length", "tokens", "truncated")


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths, without a Python object for each.

    The values stay where Arrow has them; of a cached dataset that is a file mapped into memory.

    Args:
        chunks: arrays of values; each holds those of consecutive lists.
        first_lists: number of the first list in each chunk, shape (chunks,).
        starts: where each list begins in its chunk, shape (lists,); int32, as Arrow has it.
        sizes: of each list, shape (lists,); int32.
    """

    chunks: Sequence[NDArray]
    first_lists: NDArray[np.int64]
    starts: NDArray[np.int32]
    sizes: NDArray[np.int32]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Ragged":
        """From a column of lists, or of lists of lists, whose outer level is ignored."""
        lists = [chunk.flatten() if pa.types.is_list(chunk.type.value_type) else chunk for chunk in column.chunks]
        offsets = [of_chunk.offsets.to_numpy() for of_chunk in lists]
        counts = [len(of_chunk) for of_chunk in lists]
        nothing = np.empty(0, np.int32)
        return cls(
            chunks=[of_chunk.values.to_numpy() for of_chunk in lists],
            first_lists=np.cumsum([0, *counts[:-1]], dtype=np.int64),
            starts=np.concatenate([nothing, *(of_chunk[:-1] for of_chunk in offsets)]),
            sizes=np.concatenate([nothing, *(np.diff(of_chunk) for of_chunk in offsets)]),
        )

    def __getitem__(self, numbers: NDArray[np.int64]) -> NDArray:
        """The values of some lists, one list behind the other."""
        sizes = self.sizes[numbers].astype(np.int64)
        if len(self.chunks) == 1 or not len(numbers):
            return self.chunks[0][ranges(self.starts[numbers].astype(np.int64), sizes)]
        chunk = np.searchsorted(self.first_lists, numbers, side="right") - 1
        order = np.argsort(chunk, kind="stable")
        source = ranges(self.starts[numbers][order].astype(np.int64), sizes[order])
        target = ranges((np.cumsum(sizes) - sizes)[order], sizes[order])
        values = np.empty(len(source), self.chunks[0].dtype if self.chunks else np.int64)
        touched, firsts = np.unique(chunk[order], return_index=True)
        cuts = (np.cumsum(sizes[order]) - sizes[order])[firsts]
        for number, from_, to in zip(touched, np.split(source, cuts[1:]), np.split(target, cuts[1:]), strict=True):
            values[to] = self.chunks[number][from_]
        return values


def ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The whole numbers of several ranges, one range behind the other."""
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(starts - before, sizes)


class Targets(NamedTuple):
    """What rows are trained on where a teacher's predictions are mixed with the labels.

    Args:
        own: the labels, float32: shape (rows,) for numbers, else (rows, labels) with the probability of each; -1 for
            choices that a row lacks.
        taught: what the teacher predicts, alike.
        fingerprint: of the teacher.
    """

    own: NDArray[np.float32]
    taught: NDArray[np.float32]
    fingerprint: str = ""


@dataclass(frozen=True)
class Split:
    """The tokenised rows of one split.

    Args:
        input_ids: tokens of each sequence; sequence s of row r is list `r * sequences + s`.
        token_type_ids: the same for the types of the tokens, where the encoder has them.
        labels: of each row, shape (rows,) or (rows, labels); a list with one number for each token; None if unknown.
        notes: columns that are needed to read the predictions.
        sequences: sequences in each row: 1, or the number of choices.
        label_dtype: of the labels as a tensor.
        length: tokens of each row's longest sequence, shape (rows,).
        tokens: tokens of each row, all its sequences together, shape (rows,).
        truncated: how many sequences lost a part of their text.
        num_examples: rows of the dataset; each window of a long context is a row here.
        has_label: which rows have a label, shape (rows,); None if all have. Without one, `labels` hold another's.
        targets: of training rows that have a teacher.
    """

    input_ids: Ragged
    token_type_ids: Ragged | None
    labels: NDArray | Ragged | None
    notes: Dataset
    sequences: int
    label_dtype: torch.dtype
    length: NDArray[np.int32]
    tokens: NDArray[np.int32]
    truncated: int
    num_examples: int
    has_label: NDArray[np.bool_] | None = None
    targets: Targets | None = None

    def __len__(self) -> int:
        return len(self.length)

    @property
    def row_labels(self) -> NDArray:
        """The labels of tasks that have one for each row, or one for each row and label; of rows that have a label."""
        assert isinstance(self.labels, np.ndarray)
        return self.labels if self.has_label is None else self.labels[self.has_label]

    @property
    def num_labelled(self) -> int:
        """Rows that have a label."""
        return len(self) if self.has_label is None else int(self.has_label.sum())

    def sequence_numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the rows' sequences, row by row."""
        return (rows[:, None] * self.sequences + np.arange(self.sequences)).ravel()

    def sequence(self, row: int, which: int = 0) -> list[int]:
        """The tokens of one sequence of a row."""
        return self.input_ids[np.array([row * self.sequences + which])].tolist()

    def fingerprint(self) -> str:
        """Changes with the rows' tokens and labels; of very long splits, the first and last million tokens count."""
        digest = hashlib.blake2b(digest_size=8)
        parts = [self.input_ids, *([self.labels] if isinstance(self.labels, Ragged) else [])]
        for ragged in parts:
            count = len(ragged.sizes)
            for first in range(0, count, AT_ONCE):
                digest.update(ragged.sizes[first : first + AT_ONCE].astype(np.int64).tobytes())
            some = max(1, FINGERPRINT_TOKENS // max(1, int(ragged.sizes.max(initial=1))))
            numbers = np.arange(count) if count <= 2 * some else np.r_[:some, count - some : count]
            for first in range(0, len(numbers), AT_ONCE):
                digest.update(ragged[numbers[first : first + AT_ONCE]].tobytes())
        if isinstance(self.labels, np.ndarray):
            digest.update(self.labels.tobytes())
        if self.has_label is not None:
            digest.update(self.has_label.tobytes())
        return digest.hexdigest()

    def has_sequences_of(self, other: "Split") -> bool:
        """Whether an encoder reads the same in both."""
        mine, theirs = (
            [ragged for ragged in (split.input_ids, split.token_type_ids) if ragged is not None]
            for split in (self, other)
        )
        return self.sequences == other.sequences and all(
            np.array_equal(a.sizes, b.sizes) and np.array_equal(a[np.arange(len(a.sizes))], b[np.arange(len(b.sizes))])
            for a, b in zip(mine, theirs, strict=True)
        )
