import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from helpers.splits import make_split

from multitask.data.split import Ragged, ranges


def make_lists(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 100, size=rng.integers(0, 9)).tolist() for _ in range(count)]


@pytest.mark.parametrize("rows_in_chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("sequences", [1, 3])
def test_lists_come_as_they_are_in_arrow_whatever_its_chunks(rows_in_chunk, sequences):
    rows = [make_lists(sequences, seed) for seed in range(50)]
    chunks = [
        pa.array(rows[i : i + rows_in_chunk], pa.list_(pa.list_(pa.int32()))) for i in range(0, 50, rows_in_chunk)
    ]
    first = pa.concat_arrays([chunks[-1], chunks[0]])
    chunks[0] = first[len(chunks[-1]) :]  # a slice, whose offsets do not begin at 0
    ragged = Ragged.of(pa.chunked_array(chunks))
    lists = [of_row for row in rows for of_row in row]
    assert len(ragged.chunks) == len(chunks)
    assert ragged.sizes.tolist() == [len(of_list) for of_list in lists]
    rng = np.random.default_rng(0)
    for numbers in (np.arange(len(lists)), rng.permutation(len(lists)), rng.integers(0, len(lists), 200)):
        assert ragged[numbers].tolist() == [value for number in numbers for value in lists[number]]
    assert ragged[np.empty(0, np.int64)].tolist() == []


def test_values_stay_in_arrow_s_memory():
    column = pa.chunked_array([pa.array(make_lists(20), pa.list_(pa.int32())) for _ in range(3)])
    for chunk, values in zip(column.chunks, Ragged.of(column).chunks, strict=True):
        assert values.ctypes.data == chunk.values.buffers()[1].address


def test_ranges_are_those_of_numpy_one_behind_the_other():
    assert ranges(np.array([5, 0, 9]), np.array([3, 0, 2])).tolist() == [5, 6, 7, 9, 10]


def test_a_fingerprint_is_what_it_was_in_earlier_runs():
    """Their checkpoints hold it: lengths as 64-bit numbers, then tokens, then labels."""
    split = make_split(40, sequences=2)
    ids = split.input_ids
    as_in_arrow = replace(ids, starts=ids.starts.astype(np.int32), sizes=ids.sizes.astype(np.int32))
    split, everything = replace(split, input_ids=as_in_arrow), np.arange(80)
    parts = [ids.sizes.astype(np.int64).tobytes(), split.input_ids[everything].tobytes(), split.row_labels.tobytes()]
    assert split.fingerprint() == hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()
