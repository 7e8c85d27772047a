"""Every step holds exactly its examples, no count falls, and none strays from what it should be."""

import random
from fractions import Fraction

import pytest
from helpers.counting import count_calls
from helpers.splits import GLUE

from multitask.mixture.allocation import Plan
from multitask.mixture.sampling import Sampling, sampling_shares

# The rows of GLUE's training sets: https://huggingface.co/datasets/nyu-mll/glue
GLUE |= {"rte": 2490, "wnli": 635}
SIZES = {"stsb": 5749, "rte": 2490, "csqa": 9741}


def furthest(plan: Plan, steps: range) -> float:
    """How far a task strays from its plan at most, in examples; checks what must hold at every step."""
    last = {task: plan.given(task, steps[0]) for task in plan.before}
    worst = 0.0
    for step in steps[1:]:
        now = {task: plan.given(task, step) for task in plan.before}
        assert sum(now.values()) - sum(last.values()) == plan.batch_size
        assert all(now[task] >= last[task] for task in now)
        assert sum(plan.planned(task, step) for task in now) == sum(now.values())
        worst = max(worst, *(abs(float(now[task] - plan.planned(task, step))) for task in now))
        last = now
    return worst


@pytest.mark.parametrize("first", [0, 10**9])
def test_tasks_with_less_than_an_example_a_step(first):
    """In GLUE's proportions five of nine tasks get less than one of 32; they must not take any back."""
    plan = Plan([(0, sampling_shares("proportional", GLUE))], 32)
    assert sum(share * 32 < 1 for share in plan.mean_shares().values()) == 5
    assert furthest(plan, range(first, first + 1500)) < 2
    assert plan.given("wnli", 10**12) == pytest.approx(32 * 10**12 * 635 / sum(GLUE.values()), abs=2)


def test_any_shares_stay_near_their_plan():
    rng = random.Random(0)
    worst: dict[int, float] = {}
    for number in [2, 3, 3, 3, 4, 6, 9, 14]:
        for _ in range(8):
            sizes = {str(task): int(10 ** rng.uniform(0, 6)) for task in range(number)}
            plan = Plan([(0, sampling_shares("proportional", sizes))], number)
            assert plan.paths is not None
            worst[number] = max(worst.get(number, 0), furthest(plan, range(300)))
    assert len(worst) == 6
    assert worst[2] <= 0.5 and worst[3] < 1 and max(worst.values()) < 2


def test_shares_that_change_are_met_as_exactly():
    sampling = Sampling(SIZES, 32, 700, "temperature", temperature=1, final_temperature=20)
    (plan,) = sampling.plans({})
    assert len(plan.starts) == 100
    assert furthest(plan, range(0, 900)) < 1
    # The tasks' exact examples, added up step by step.
    added = dict.fromkeys(SIZES, Fraction(0))
    for step in range(700):
        for task in SIZES:
            added[task] += (
                32 * plan.stretch_shares[min(99, max(i for i in range(100) if plan.starts[i] <= step))][task]
            )
    assert added == {task: plan.planned(task, 700) for task in SIZES}
    begin, end = (sampling_shares("temperature", SIZES, temperature=t) for t in (1, 20))
    for task in SIZES:
        assert float(plan.planned(task, 7) / 7 / 32) == pytest.approx(float(begin[task]))
        assert float((plan.planned(task, 10**9) - plan.planned(task, 700)) / (10**9 - 700) / 32) == pytest.approx(
            float(end[task])
        )


def test_rare_tasks_with_shares_that_change():
    (plan,) = Sampling(GLUE, 32, 2000, "temperature", temperature=1, final_temperature=5).plans({})
    assert plan.paths is not None
    assert furthest(plan, range(0, 2100)) < 2


def test_a_stopped_task_stands_still_and_the_others_take_over():
    sampling = Sampling(SIZES, 32, 1000)
    first, second = sampling.plans({"rte": 331})
    assert second.first_step == 331
    for task in SIZES:
        assert second.given(task, 331) == first.given(task, 331)
        assert second.planned(task, 331) == first.given(task, 331)
    assert furthest(second, range(331, 900)) < 1
    assert second.given("rte", 10**9) == first.given("rte", 331)
    left = {task: second.planned(task, 332) - second.planned(task, 331) for task in ("stsb", "csqa")}
    assert left["stsb"] / left["csqa"] == Fraction(5749, 9741)  # in proportion to what they had
    assert first.planned("csqa", 331) == sampling.plans({})[0].planned("csqa", 331)  # what was stays as it was


def test_two_stops_one_after_the_other_at_once_and_all():
    sampling = Sampling(SIZES, 32, 1000, "temperature", temperature=2, final_temperature=5)
    plans = sampling.plans({"csqa": 500, "rte": 20})
    assert [plan.first_step for plan in plans] == [0, 20, 500] and plans[2].tasks == ["stsb"]
    assert plans[2].given("stsb", 600) - plans[2].given("stsb", 500) == 3200
    assert furthest(plans[1], range(20, 600)) < 1
    assert [plan.first_step for plan in sampling.plans({"csqa": 20, "rte": 20})] == [0, 20]
    assert [plan.first_step for plan in sampling.plans(dict.fromkeys(SIZES, 20))] == [0]
    assert [plan.first_step for plan in sampling.plans({"rte": 1000})] == [0, 1000]


def test_a_count_far_away_costs_no_more_than_one_nearby():
    """At most a few times as much for larger integers; counted through, it would be a hundred million times."""
    plans = [
        Sampling(GLUE, 32, 10**9 + 1000, "temperature", temperature=1, final_temperature=5).plans({})[0],
        Plan([(0, sampling_shares("proportional", SIZES))], 32),
    ]
    for plan in plans:
        near, far = (count_calls(lambda p=plan, s=step: p.given("rte", s)) for step in (10, 10**9))
        assert 0 < far < 3 * near
