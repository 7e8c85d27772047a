"""Class weights, label smoothing and the focal loss, against their formulas written out."""

import math

import numpy as np
import pytest
import torch

from multitask.data.split import NO_LABEL
from multitask.errors import UserError
from multitask.tasks.base import TASK_TYPES, example_losses
from multitask.tasks.losses import LossOptions, balanced

ALL = [
    LossOptions(),
    LossOptions(class_weights=(0.5, 2.0, 3.0)),
    LossOptions(label_smoothing=0.1),
    LossOptions(focal_gamma=2.0),
    LossOptions((0.5, 2.0, 3.0), 0.2, 1.5),
]


def of_class(logits, label, options):
    """The formula of the module, number by number."""
    exponentials = [math.exp(value) for value in logits.tolist()]
    logs = [math.log(value / sum(exponentials)) for value in exponentials]
    weights, s = options.class_weights or [1.0] * len(logs), options.label_smoothing
    loss = -(1 - s) * weights[label] * logs[label]
    loss += -s / len(logs) * sum(w * log for w, log in zip(weights, logs, strict=True))
    return (1 - math.exp(logs[label])) ** options.focal_gamma * loss


@pytest.mark.parametrize("options", ALL)
def test_classes(options):
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    found = example_losses(TASK_TYPES["classification"], logits, labels, options=options)
    expected = [of_class(row, int(label), options) for row, label in zip(logits, labels, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", ALL)
def test_words(options):
    """The mean over the words that have a tag; whether a gradient is finite too, where one has none."""
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, requires_grad=True)
    labels = torch.tensor([[NO_LABEL, 2, 1, NO_LABEL], [NO_LABEL] * 4])
    found = example_losses(TASK_TYPES["token_classification"], logits, labels, options=options)
    words = [of_class(logits[0, place].detach(), label, options) for place, label in ((1, 2), (2, 1))]
    assert found.tolist() == pytest.approx([sum(words) / 2, 0], rel=1e-5)
    found.sum().backward()
    assert torch.isfinite(logits.grad).all() and not logits.grad[1].any()


@pytest.mark.parametrize("options", ALL)
def test_labels(options):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    found = example_losses(TASK_TYPES["multi_label_classification"], logits, labels, options=options)
    weights, s = options.class_weights or [1.0] * 3, options.label_smoothing
    for row, of_row, loss in zip(logits.tolist(), labels.tolist(), found.tolist(), strict=True):
        parts = []
        for value, label, weight in zip(row, of_row, weights, strict=True):
            p = 1 / (1 + math.exp(-value))
            target = label * (1 - s) + s / 2
            entropy = -target * math.log(p) - (1 - target) * math.log(1 - p)
            parts.append(weight * (1 - p if label else p) ** options.focal_gamma * entropy)
        assert loss == pytest.approx(sum(parts) / 3, rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 7 + [1] * 2 + [2] * 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced(np.bincount(labels)) == pytest.approx(expected)
    assert balanced(np.array([6, 0, 2])) == pytest.approx([8 / 12, 1.0, 2.0])  # of a class that train lacks


def test_options_reach_the_loss_of_a_run_and_stand_in_its_configuration(train, mixture_config, tmp_path):
    from helpers.runs import curve

    plain = train()
    options = ["--tasks.animal.class_weights", "{animal: 3.0}", "--tasks.animal.label_smoothing_factor", "0.1"]
    other = train(*options, "--training.output_dir", str(tmp_path / "other"))
    assert curve(plain)[0, 0] < curve(other)[0, 0]
    again = train("--config", str(other / "config.yaml"), "--training.output_dir", str(tmp_path / "again"))
    assert (curve(other) == curve(again)).all()
    one_by_one = ["--tasks.animal.class_weights.animal", "3", *options[2:]]
    assert (curve(other) == curve(train(*one_by_one, "--training.output_dir", str(tmp_path / "third")))).all()


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["balanced", "{none: 2}"])
def test_passes_change_nothing(train, tmp_path, weights):
    from helpers.runs import assert_same_curve

    options = ["--tasks.animal.class_weights", weights, "--tasks.animal.focal_gamma", "2"]
    several = ["--training.max_tokens_per_pass", "40", "--training.output_dir", str(tmp_path / "several")]
    assert_same_curve(train(*options), train(*options, *several))


MISTAKES = {
    "tasks.animal.class_weights: there is no class 'animals'; did you mean 'animal'?": [
        "animal.class_weights",
        "{animals: 2}",
    ],
    "tasks.animal.class_weights.animal: -1.0 is not a number from 0 up": ["animal.class_weights", "{animal: -1}"],
    "tasks.animal.focal_gamma: -1.0 is not a number from 0 up": ["animal.focal_gamma", "-1"],
    "tasks.animal.label_smoothing_factor: 1.5 is not in the range 0 <= label_smoothing_factor < 1": [
        *["animal.label_smoothing_factor", "1.5"]
    ],
    "tasks.similar.class_weights: has no effect with type regression; it belongs to classification, "
    "multi_label_classification, token_classification": ["similar.class_weights", "balanced"],
    "tasks.choice.focal_gamma: has no effect with type multiple_choice": ["choice.focal_gamma", "1"],
    "--tasks.animal.class_weights: found 'balance', expected": ["animal.class_weights", "balance"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(train, message):
    option, value = MISTAKES[message]
    with pytest.raises(UserError) as caught:
        train(f"--tasks.{option}", value)
    assert str(caught.value).startswith(message)
