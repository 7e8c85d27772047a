import pickle
import tracemalloc
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from helpers.counting import count_calls
from helpers.splits import GLUE

from multitask.mixture.allocation import Plan
from multitask.mixture.mixture import Mixture, permute
from multitask.mixture.sampling import Sampling, sampling_shares

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


CHANGING = {"sampling": "temperature", "temperature": 1, "final_temperature": 10}
UNIMAX = {"sampling": "unimax", "max_epochs": 2}


@pytest.mark.parametrize("options", [{}, CHANGING, UNIMAX], ids=["constant", "changing", "unimax"])
def test_no_row_is_lost_or_repeated_when_tasks_stop(options):
    """In the middle of windows, in which the rows that are left are dealt anew; windows of 16 steps, stops off them."""
    sizes = {"a": 230, "b": 700, "c": 1500}
    sampling = Sampling(sizes, 20, 200, **options)
    stopped = {"b": 37, "a": 122}
    mixture = Mixture(sizes, sampling.plans(stopped), 20, 3, lengths(sizes), window_steps=16)
    given: dict[str, list[int]] = {task: [] for task in sizes}
    for step in range(320):
        rows = mixture(step)
        assert sum(len(r) for r in rows.values()) == 20
        for task, of_step in rows.items():
            given[task] += of_step.tolist()
            assert len(given[task]) == mixture.given(task, step + 1)
            assert not len(of_step) or step < stopped.get(task, 320)
    for task, size in sizes.items():  # each row as often as any other, but for those of a pass that has not ended
        often = Counter(given[task])
        assert {often[row] for row in range(size)} <= {len(given[task]) // size, len(given[task]) // size + 1}
    assert len(given["c"]) > 3 * 1500


def test_rare_tasks_are_not_given_rows_twice():
    """GLUE in proportion: five of nine tasks get less than one of 32 examples a step."""
    mixture = Mixture(GLUE, sampling_shares("proportional", GLUE), 32, 0, lengths(GLUE))
    given: dict[str, list[int]] = {task: [] for task in GLUE}
    for step in range(3000):
        rows = mixture(step)
        assert sum(len(r) for r in rows.values()) == 32
        for task, of_step in rows.items():
            given[task] += of_step.tolist()
    assert all(len(set(rows)) == len(rows) > 60 for rows in given.values())


def test_a_task_that_is_left_with_next_to_nothing_is_found_at_once():
    """One example in a million steps, in a window of many rows: steps without any are not looked at one by one."""
    nearly_nothing = Fraction(1, 32 * 10**6)
    plans = [Plan([(0, {"a": Fraction(1, 2), "b": Fraction(1, 2)})], 32)]
    plans.append(Plan([(3, {"a": nearly_nothing, "b": 1 - nearly_nothing})], 32, {"a": 48, "b": 48}))
    mixture = Mixture({"a": 1000, "b": 1000}, plans, 32, 0, lengths({"a": 1000, "b": 1000}))
    steps = [step for million in (1, 2) for step in range(million * 10**6 - 10**6 // 2, million * 10**6, 10**5)]
    given = []
    calls = count_calls(
        lambda: given.extend([sum(len(mixture(step)["b"]) for step in steps), mixture.rows("a", 48, 60)])
    )
    assert given[0] >= 32 * len(steps) - 2 and len(given[1]) == 12
    assert calls < 10**6  # 952 rows of the window, a million steps each: 10^9, one by one


def test_what_was_before_a_stop_does_not_know_of_it():
    """So a run that goes on behind a stop had the same batches as one that was never interrupted."""
    sampling = Sampling(SIZES, 32, 1000, **CHANGING)
    without, one, two = (
        Mixture(SIZES, sampling.plans(stopped), 32, 0, lengths(SIZES))
        for stopped in ({}, {"rte": 300}, {"rte": 300, "stsb": 411})
    )
    for before, after, stop in [(without, one, 300), (one, two, 411)]:
        for step in [5, *range(stop - 140, stop)]:
            assert {t: r.tolist() for t, r in before(step).items()} == {t: r.tolist() for t, r in after(step).items()}
        assert before(stop)["csqa"].tolist() != after(stop)["csqa"].tolist()


def test_rows_are_grouped_by_length_again_after_a_stop():
    stopped = Mixture(SIZES, Sampling(SIZES, 32, 1000).plans({"rte": 61}), 32, 0, lengths(SIZES))
    task_lengths = lengths(SIZES)["csqa"]
    spreads = [np.ptp(task_lengths[stopped(step)["csqa"]]) for step in range(61, 110)]
    # The rows that are left of a window of 128 steps are about half as many: twice the 3 of a whole one.
    assert np.median(spreads) <= 6


@pytest.mark.parametrize("options", [{}, CHANGING, UNIMAX], ids=["constant", "changing", "unimax"])
def test_a_step_far_away_costs_no_more_than_one_nearby(options):
    """At most a few times as much, for larger integers; counted through, it would be a hundred million times."""
    far = 10**9
    sizes = SIZES if "max_epochs" not in options else {task: size * 10**7 for task, size in SIZES.items()}
    sampling = Sampling(sizes, 32, far + 1000, **options)
    for stopped in ({}, {"rte": far - 5}):
        calls = {}
        for step in (10, far):
            mixture, rows = Mixture(sizes, sampling.plans(stopped), 32, 0), []
            calls[step] = count_calls(lambda m=mixture, s=step, r=rows: r.extend(m(s + more) for more in range(20)))
            assert len(rows) == 20 and all(sum(len(r) for r in of_step.values()) == 32 for of_step in rows)
        assert calls[far] < 3 * calls[10]


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


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 24, 100])
def test_permute_sends_every_position_anywhere(size):
    keys = 4000
    table = np.zeros((size, size))
    for key in range(keys):
        table[np.arange(size), permute(np.arange(size), size, key)] += 1
    chi2 = ((table - keys / size) ** 2 / (keys / size)).sum()
    # A uniform random permutation gives chi2 with mean (size - 1)^2 and standard deviation about sqrt(2) (size - 1).
    assert abs(chi2 - (size - 1) ** 2) < 5 * np.sqrt(2) * (size - 1)
