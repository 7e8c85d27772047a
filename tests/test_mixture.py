import pickle
import tracemalloc
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from multitask.mixture import Mixture, permute
from multitask.shares import sampling_shares

SIZES = {"stsb": 5749, "rte": 2490, "csqa": 9741}


def lengths(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return {task: rng.integers(5, 120, size).astype(np.int32) for task, size in sizes.items()}


@pytest.mark.parametrize("sampling", ["proportional", "uniform", "temperature", "weights"])
@pytest.mark.parametrize("first", [0, 777, 10**9, 10**12 + 3])
def test_shares_are_exact_over_any_range_of_steps(sampling, first):
    weights = {"stsb": 0.3, "rte": 0.1, "csqa": 1 / 3}
    shares = sampling_shares(sampling, SIZES, temperature=3, weights=weights)
    mixture = Mixture(SIZES, shares, batch_size=32, seed=0, lengths=lengths(SIZES))
    counts = Counter()
    for step in range(first, first + 200):
        rows = mixture(step)
        assert sum(len(r) for r in rows.values()) == 32
        counts.update({task: len(r) for task, r in rows.items()})
        for task in SIZES:
            assert abs(mixture.given(task, step) - shares[task] * 32 * step) < 1
            assert abs(counts[task] - shares[task] * 32 * (step + 1 - first)) < 2  # one at each end of the range
    assert sum(counts.values()) == 200 * 32


def test_sampling_gives_the_shares_of_its_definition():
    assert sampling_shares("proportional", {"a": 1, "b": 3}) == {"a": Fraction(1, 4), "b": Fraction(3, 4)}
    assert sampling_shares("uniform", {"a": 1, "b": 3}) == {"a": Fraction(1, 2), "b": Fraction(1, 2)}
    assert sampling_shares("weights", {"a": 1, "b": 3}, weights={"a": 2, "b": 0}) == {"a": 1, "b": 0}
    root = sampling_shares("temperature", {"a": 100, "b": 400}, temperature=2)
    assert float(root["a"]) == pytest.approx(1 / 3)
    assert sum(root.values()) == 1
    flat = sampling_shares("temperature", {"a": 1, "b": 10**9}, temperature=1e6)
    assert float(flat["a"]) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("grouped", [True, False])
def test_every_pass_over_the_data_holds_every_row_once(grouped):
    sizes = {"one": 1, "few": 7, "some": 250, "many": 4001}
    mixture = Mixture(sizes, sampling_shares("uniform", sizes), 20, 3, lengths(sizes) if grouped else None, 16)
    passes = 0
    for task, size in sizes.items():
        for start in (0, 1, 2, 10**9):
            assert sorted(mixture.rows(task, start * size, (start + 1) * size)) == list(range(size))
            passes += 1
    assert passes == 16


def test_steps_partition_the_stream():
    """Rows of steps s…t together are the rows at those positions: nothing is lost or doubled where windows meet."""
    mixture = Mixture(SIZES, sampling_shares("proportional", SIZES), 32, 0, lengths(SIZES), window_steps=10)
    for first in (0, 555, 12345):
        for task in SIZES:
            by_step = np.concatenate([mixture(step)[task] for step in range(first, first + 90)])
            start, stop = mixture.given(task, first), mixture.given(task, first + 90)
            assert Counter(by_step.tolist()) == Counter(mixture.rows(task, start, stop).tolist())


def test_another_pass_comes_in_another_order_and_another_seed_too():
    shares = sampling_shares("proportional", SIZES)
    first = Mixture(SIZES, shares, 32, 0)
    assert first.rows("rte", 0, 2490).tolist() != first.rows("rte", 2490, 4980).tolist()
    assert first.rows("rte", 0, 2490).tolist() != Mixture(SIZES, shares, 32, 1).rows("rte", 0, 2490).tolist()
    assert first.rows("rte", 0, 2490).tolist() == Mixture(SIZES, shares, 32, 0).rows("rte", 0, 2490).tolist()


def test_a_tasks_order_does_not_depend_on_the_other_tasks():
    alone = Mixture({"rte": 2490}, {"rte": Fraction(1)}, 8, 5)
    among = Mixture(SIZES, sampling_shares("uniform", SIZES), 24, 5)
    assert alone.rows("rte", 0, 300).tolist() == among.rows("rte", 0, 300).tolist()


def test_a_step_is_a_function_of_its_number_alone():
    """Whatever was asked before, in whatever order, and from a new object."""
    make = lambda: Mixture(SIZES, sampling_shares("proportional", SIZES), 32, 0, lengths(SIZES))  # noqa: E731
    forward = make()
    steps = [*range(50), 10**9, 3, 10**9 + 1]
    expected = {step: {t: r.tolist() for t, r in make()(step).items()} for step in steps}
    for step in [*steps, *reversed(steps)]:
        assert {t: r.tolist() for t, r in forward(step).items()} == expected[step]


def test_a_mixture_can_be_sent_to_another_process():
    """Where processes are spawned, not forked, the background workers get a pickled copy."""
    mixture = Mixture(SIZES, sampling_shares("proportional", SIZES), 32, 0, lengths(SIZES))
    copy = pickle.loads(pickle.dumps(mixture))
    assert copy(77)["rte"].tolist() == mixture(77)["rte"].tolist()


def test_a_billion_rows_at_step_a_billion_need_no_index_array():
    sizes = {"huge": 10**9, "small": 100}
    mixture = Mixture(sizes, sampling_shares("uniform", sizes), 32, 0)
    tracemalloc.start()
    rows = mixture(10**9)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows["huge"]) == 16 and min(rows["huge"]) >= 0 and max(rows["huge"]) < 10**9
    assert peak_bytes < 10**6  # an index array would be 8 * 10**9


def test_rows_of_a_step_have_about_the_same_length_and_lengths_no_order():
    mixture = Mixture(SIZES, sampling_shares("proportional", SIZES), 32, 0, lengths(SIZES))
    task_lengths = lengths(SIZES)["csqa"]
    means, spreads = [], []
    for step in range(500):
        of_step = task_lengths[mixture(step)["csqa"]]
        assert (np.diff(of_step) >= 0).all()
        means.append(of_step.mean())
        spreads.append(of_step.max() - of_step.min())
    assert np.median(spreads) <= 3  # of 115; ungrouped, 17 rows span about 102
    # Without an order, the lag-1 correlation of 500 means is noise: its standard deviation is 1/sqrt(500) = 0.045.
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 4 * 0.045


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_permute_is_a_permutation(size):
    for key in range(20):
        assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permute_at_some_positions_equals_the_whole():
    whole = permute(np.arange(1000), 1000, 7)
    assert permute(np.array([999, 0, 512]), 1000, 7).tolist() == whole[[999, 0, 512]].tolist()


@pytest.mark.parametrize("size", [5, 24, 100])
def test_permute_sends_every_position_anywhere(size):
    keys = 4000
    table = np.zeros((size, size))
    for key in range(keys):
        table[np.arange(size), permute(np.arange(size), size, key)] += 1
    chi2 = ((table - keys / size) ** 2 / (keys / size)).sum()
    # A uniform random permutation gives chi2 with mean (size - 1)^2 and standard deviation about sqrt(2) (size - 1).
    assert abs(chi2 - (size - 1) ** 2) < 5 * np.sqrt(2) * (size - 1)
