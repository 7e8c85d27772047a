"""Shares by their definitions."""

from fractions import Fraction

import pytest

from multitask.errors import UserError
from multitask.mixture.sampling import Sampling, sampling_shares, unimax_shares

SIZES = {"a": 100, "b": 1000, "c": 9000}


def test_sampling_gives_the_shares_of_its_definition():
    assert sampling_shares("proportional", {"a": 1, "b": 3}) == {"a": Fraction(1, 4), "b": Fraction(3, 4)}
    assert sampling_shares("uniform", {"a": 1, "b": 3}) == {"a": Fraction(1, 2), "b": Fraction(1, 2)}
    assert sampling_shares("weights", {"a": 1, "b": 3}, weights={"a": 2, "b": 0}) == {"a": 1, "b": 0}
    root = sampling_shares("temperature", {"a": 100, "b": 400}, temperature=2)
    assert float(root["a"]) == pytest.approx(1 / 3)
    assert sum(root.values()) == 1
    flat = sampling_shares("temperature", {"a": 1, "b": 10**9}, temperature=1e6)
    assert float(flat["a"]) == pytest.approx(0.5, abs=1e-4)


def test_the_cap_is_t5s_artificial_limit():
    """Raffel et al. 2020, section 3.5.2: r_m = min(e_m, K) / sum of min(e_n, K), to the power 1/T, normalised."""
    assert sampling_shares("proportional", SIZES, cap=900) == {
        "a": Fraction(1, 19),
        "b": Fraction(9, 19),
        "c": Fraction(9, 19),
    }
    powers = {"a": 100**0.5, "b": 900**0.5, "c": 900**0.5}
    shares = sampling_shares("temperature", SIZES, temperature=2, cap=900)
    assert {task: float(share) for task, share in shares.items()} == pytest.approx(
        {task: power / sum(powers.values()) for task, power in powers.items()}
    )
    assert sum(shares.values()) == 1


@pytest.mark.parametrize(
    ("room", "num_examples", "expected"),
    [
        ({"a": 200, "b": 2000, "c": 18000}, 300, {"a": 100, "b": 100, "c": 100}),  # uniform where there is room
        ({"a": 200, "b": 2000, "c": 18000}, 3000, {"a": 200, "b": 1400, "c": 1400}),
        ({"c": 18000, "a": 200, "b": 2000}, 10000, {"a": 200, "b": 2000, "c": 7800}),
        ({"a": 200, "b": 2000, "c": 18000}, 40400, {"a": 400, "b": 4000, "c": 36000}),  # more than all room
        ({"a": 0, "b": 10}, 10, {"a": 0, "b": 10}),
    ],
)
def test_unimax_is_as_equal_as_its_maximum_allows(room, num_examples, expected):
    """By hand, after algorithm 1 of Chung et al. 2023."""
    shares = unimax_shares({task: Fraction(most) for task, most in room.items()}, num_examples)
    assert list(shares) == list(room)
    assert {task: share * num_examples for task, share in shares.items()} == expected


def test_unimax_keeps_its_maximum_also_when_a_task_stops():
    sampling = Sampling(SIZES, 10, 800, "unimax", max_epochs=2.5)
    whole, after = sampling.plans({"c": 300})
    assert [whole.given(task, 800) for task in SIZES] == [250, 2500, 5250]
    assert after.given("c", 800) == whole.given("c", 300)
    # 8,000 examples; c keeps what it had of 3,000, and a and b have room for 2,750 in all, which is too little: then
    # both go beyond, in proportion to the room that each had left.
    assert after.planned("a", 800) + after.planned("b", 800) == 8000 - after.given("c", 800)
    enough = Sampling(SIZES, 10, 300, "unimax", max_epochs=2.5).plans({"c": 100})[-1]
    assert enough.given("a", 300) == 250
    assert enough.given("b", 300) == 3000 - 250 - enough.given("c", 300)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"sampling": "proportional", "cap": 9000},
            "mixture.cap: 9,000 has no effect, as no task has more rows (the largest is c with 9,000)",
        ),
        (
            {"sampling": "unimax", "max_epochs": 2},
            "mixture.max_epochs: 2 times the 10,100 rows of all tasks are fewer than the run's 30,300 examples; at least 3 is needed",
        ),
    ],
)
def test_what_the_sizes_do_not_allow(options, said):
    with pytest.raises(UserError) as caught:
        Sampling(SIZES, 100, 303, **options)
    assert str(caught.value) == said
    Sampling(SIZES, 100, 303, "proportional", cap=8999)
    Sampling(SIZES, 100, 303, "unimax", max_epochs=3)
    Sampling(SIZES, 64, 474, "unimax", max_epochs=3)  # num_train_epochs: 3, its last step filled up


def test_a_changing_temperature_begins_and_ends_where_it_should():
    plan = Sampling(SIZES, 10, 50, "temperature", temperature=1, final_temperature=4, cap=5000).plans({})[0]
    assert plan.starts == list(range(50))
    ends = [sampling_shares("temperature", SIZES, temperature=t, cap=5000) for t in (1, 4)]
    for of_plan, expected in zip((plan.stretch_shares[0], plan.stretch_shares[-1]), ends, strict=True):
        assert {t: float(s) for t, s in of_plan.items()} == pytest.approx({t: float(s) for t, s in expected.items()})
    small = [shares["a"] for shares in plan.stretch_shares]
    assert small == sorted(small) and len(set(small)) == 50
    one_step = Sampling(SIZES, 10, 1, "temperature", temperature=1, final_temperature=4).plans({"a": 1})
    assert len(one_step) == 2
