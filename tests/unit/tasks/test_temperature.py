"""A temperature and thresholds, beside scikit-learn and formulas written out."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import f1_score

from multitask.tasks.calibration import NONE, Calibration, calibrate, decided, fit, read_calibration


def classes(count, sharpness, seed=0):
    """Logits of three classes, and classes drawn with the probabilities that a lower sharpness would give."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 3))
    drawn = [rng.choice(3, p=row) for row in softmax(logits, axis=-1)]
    return (sharpness * logits).astype(np.float32), np.array(drawn)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_is_how_much_too_sure_a_model_is(sharpness):
    logits, right = classes(4000, sharpness)
    found = calibrate(logits, right, {})
    assert found.calibration.temperature == pytest.approx(sharpness, rel=0.1)
    assert found.calibration.thresholds is None and found.metrics == {}
    assert found.errors["after"] < 0.03 and found.errors["crossfitted"] < 0.03
    if sharpness != 1:
        assert found.errors["before"] > 3 * found.errors["after"]


def test_no_other_temperature_is_better():
    logits, right = classes(300, 2.0)

    def cross_entropy(temperature):
        return -log_softmax(logits / temperature, axis=-1)[np.arange(300), right].mean()

    best = cross_entropy(fit(logits, right).temperature)
    assert best <= min(cross_entropy(t) for t in np.geomspace(0.06, 19, 500)) + 1e-7


def test_the_error_is_that_of_guo_et_al():
    logits, right = classes(200, 2.0)
    found = calibrate(logits, right, {})
    sure, hit = softmax(logits.astype(float), -1).max(-1), logits.argmax(-1) == right
    edges, expected = np.linspace(0, 1, 16), 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        of_bin = (sure >= low) & (sure < high)
        expected += of_bin.sum() / 200 * abs(sure[of_bin].mean() - hit[of_bin].mean()) if of_bin.any() else 0
    assert found.errors["before"] == pytest.approx(expected)
    assert sum(count for *_, count in found.bins["before"]) == 200


def test_each_label_has_the_threshold_with_its_best_f1():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 3)).astype(np.float32) - np.array([0, 1.5, 3], np.float32)
    there = (rng.random((400, 3)) < expit(logits + np.array([0, 1.5, 2.0]))).astype(int)
    metrics = {"f1_macro": lambda r, p: f1_score(r, p, average="macro", zero_division=0)}
    found = calibrate(logits, there, metrics)
    probabilities = expit(found.calibration.applied(logits))
    for label, threshold in enumerate(found.calibration.thresholds):
        scores = [f1_score(there[:, label], probabilities[:, label] > t) for t in np.unique(probabilities[:, label])]
        assert f1_score(there[:, label], probabilities[:, label] > threshold) == pytest.approx(max(scores))
    assert found.metrics["after"]["f1_macro"] > found.metrics["before"]["f1_macro"]
    assert found.metrics["crossfitted"]["f1_macro"] <= found.metrics["after"]["f1_macro"]
    assert found.metrics["before"]["f1_macro"] == metrics["f1_macro"](there, decided(logits, None))


def test_crossfitted_rows_take_no_part_in_their_own_calibration():
    """Where labels are drawn at random, what fits the rows themselves does not hold on others."""
    rng = np.random.default_rng(1)
    logits, there = rng.normal(size=(60, 8)).astype(np.float32), (rng.random((60, 8)) < 0.2).astype(int)
    f1 = {"f1_macro": lambda r, p: f1_score(r, p, average="macro", zero_division=0)}
    found = calibrate(logits, there, f1).metrics
    assert found["crossfitted"]["f1_macro"] < found["after"]["f1_macro"] - 0.05


def test_a_label_that_no_row_has_keeps_its_threshold():
    logits = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    there = np.stack([np.zeros(20, int), (logits[:, 1] > 0).astype(int)], 1)
    assert fit(logits, there).thresholds[0] == 0.5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rows(count):
    logits, right = classes(count, 1.0)
    found = calibrate(logits, right, {})
    assert np.isfinite([*found.errors.values(), found.calibration.temperature]).all()


def test_it_is_written_and_read():
    logits = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    found = calibrate(logits, (logits > 0.3).astype(int), {})
    written = found.to_json(["a", "b"])
    assert read_calibration(written) == found.calibration and list(written["thresholds"]) == ["a", "b"]
    assert read_calibration(None) == NONE == Calibration()
    assert read_calibration(calibrate(logits, np.zeros(20, int), {}).to_json(["a", "b"])).thresholds is None
