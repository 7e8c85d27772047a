import pytest

from multitask.data.packing import Step
from multitask.evaluation.evaluate import Evaluation
from multitask.tracking.window import LogWindow, evaluation_values


def test_a_window_averages_over_its_steps():
    window = LogWindow()
    window.add(Step([], {"a": 3, "b": 1, "c": 0}, 80), 2.0, {"a": 6.0, "b": 5.0, "c": 0.0}, 100.0, 1.25, 0.5)
    window.add(Step([], {"a": 2, "b": 2, "c": 0}, 100), 1.0, {"a": 4.0, "b": 1.0, "c": 0.0}, 100.0, 0.75, 0.25)
    assert window.values() == {
        "train/loss": pytest.approx(1.5),
        "train/a/loss": pytest.approx(2.0),  # 10 over 5 examples
        "train/b/loss": pytest.approx(2.0),  # 6 over 3; c had no example and has no loss
        "train/grad_norm": 0.75,  # of the last step
        "train/tokens_per_second": pytest.approx(180 / 0.75),
        "train/padding_share": pytest.approx(0.1),
    }


def test_results_are_logged_by_name():
    results = {"a": {"pearson": 0.5, "spearmanr": 0.7}, "b": {"accuracy": 1.0}}
    values = evaluation_values(Evaluation(results, {"a": 0.25, "b": 0.125}, 3.5))
    assert values == {
        "eval/a/pearson": 0.5,
        "eval/a/spearmanr": 0.7,
        "eval/b/accuracy": 1.0,
        "eval/a/loss": 0.25,
        "eval/b/loss": 0.125,
        "eval/average": pytest.approx(0.8),
        "eval/seconds": 3.5,
    }
