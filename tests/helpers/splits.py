"""Splits without a tokenizer, and a mixture of them."""

from fractions import Fraction

import datasets
import numpy as np
import torch

from multitask.data.split import Ragged, Split
from multitask.mixture.mixture import Mixture

# Rows of the tasks of GLUE (Wang et al. 2019).
GLUE = {"cola": 8551, "sst2": 67349, "mrpc": 3668, "qqp": 363846, "stsb": 5749, "mnli": 392702, "qnli": 104743}


def make_split(num_rows: int, sequences: int = 1, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 40, (num_rows, sequences))
    sizes = lengths.ravel().astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    ids = np.repeat(np.repeat(np.arange(num_rows) + 1, sequences), sizes)
    first = np.zeros(1, np.int64)
    longest, total = lengths.max(1).astype(np.int32), lengths.sum(1).astype(np.int32)
    return Split(
        input_ids=Ragged([ids], first, starts, sizes),
        token_type_ids=Ragged([np.ones_like(ids)], first, starts, sizes),
        labels=np.arange(num_rows),
        notes=datasets.Dataset.from_dict({}),
        sequences=sequences,
        label_dtype=torch.int64,
        length=longest,
        tokens=total,
        truncated=0,
        num_examples=num_rows,
    )


SPLITS = {"single": make_split(40), "choice": make_split(90, sequences=3, seed=1), "rare": make_split(5, seed=2)}


def make_mixture(batch_size: int) -> Mixture:
    shares = {"single": Fraction(3, 10), "choice": Fraction(13, 20), "rare": Fraction(1, 20)}
    sizes = {task: len(split) for task, split in SPLITS.items()}
    return Mixture(sizes, shares, batch_size, 0, {task: split.length for task, split in SPLITS.items()})
