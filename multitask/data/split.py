"""The tokenised rows of one split of a dataset."""

from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

NO_LABEL = -100  # what the loss passes over


COUNTS = ("length", "tokens", "truncated")


@dataclass(frozen=True)
class Split:
    """The tokenised rows of one split.

    Args:
        rows: what the model reads: columns `input_ids` (and `token_type_ids` where the encoder has them): one list of
            sequences a row; `label`, if they are known: a number, or a list with one number for each label or token.
        notes: what else reading the predictions takes.
        sequences: sequences in each row: 1, or the number of choices.
        label_dtype: of the labels as a tensor.
        length: tokens of each row's longest sequence, shape (rows,).
        tokens: tokens of each row, all its sequences together, shape (rows,).
        truncated: how many sequences lost a part of their text.
        num_examples: rows of the dataset; each window of a long context is a row here.
    """

    rows: Dataset
    notes: Dataset
    sequences: int
    label_dtype: torch.dtype
    length: NDArray[np.int32]
    tokens: NDArray[np.int32]
    truncated: int
    num_examples: int

    def __len__(self) -> int:
        return len(self.length)
