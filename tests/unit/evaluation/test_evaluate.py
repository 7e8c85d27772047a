import math

import evaluate
import numpy as np
import pytest
from accelerate import Accelerator
from helpers.tasks import TASKS

from multitask.cli.console import results_table
from multitask.config.schema import TaskConfig
from multitask.evaluation.evaluate import evaluate_tasks, predict
from multitask.model.pretrained import build_model, load_tokenizer
from multitask.tasks.base import TASK_TYPES
from multitask.tasks.load import load_task
from multitask.tasks.metrics import average

# Worked by hand: classes [0, 1, 1, 1, 0, 1] predicted as [0, 1, 0, 1, 1, 1]: 3 true and 1 false positives, 1 false
# and 1 true negatives.
REFERENCES, PREDICTIONS = [0, 1, 1, 1, 0, 1], [0, 1, 0, 1, 1, 1]
SETS = [[1, 1], [0, 0], [0, 1]], [[1, 1], [0, 1], [0, 0]]
SPANS = (
    [["B-PER", "I-PER", "O"], ["B-LOC", "I-LOC"], ["O", "B-PER"]],
    [["B-PER", "I-PER", "O"], ["B-LOC", "O"], ["B-LOC", "B-PER"]],
)
BILOU = (
    [["U-PER", "U-PER", "O", "B-LOC", "L-LOC", "U-LOC"]],
    [["U-PER", "O", "O", "B-LOC", "L-LOC", "U-LOC"]],
)
ANSWERS = [["a house", "the cat"], ["red cat"], [""], ["tree"]], ["The Cat.", "cat", "", "river"]


@pytest.mark.parametrize(
    ("task_type", "name", "references", "predictions", "value"),
    [
        ("classification", "accuracy", REFERENCES, PREDICTIONS, 4 / 6),
        ("classification", "f1", REFERENCES, PREDICTIONS, 2 * 3 / (2 * 3 + 1 + 1)),
        (
            "classification",
            "matthews_correlation",
            REFERENCES,
            PREDICTIONS,
            (3 * 1 - 1 * 1) / math.sqrt(4 * 4 * 2 * 2),
        ),
        ("regression", "mse", [1.0, 2.0, 4.0], [1.0, 3.0, 2.0], (0 + 1 + 4) / 3),
        ("regression", "pearson", [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 0.0], -1 / 5),
        ("regression", "spearmanr", [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 900.0, 0.5], -1 / 5),
        # Label a: 1 true positive; label b: 1 true, 1 false positive, 1 missed; a row is right as a whole or not.
        ("multi_label_classification", "f1_micro", *SETS, 2 * 2 / (2 * 2 + 1 + 1)),
        ("multi_label_classification", "f1_macro", *SETS, (1 + 1 / 2) / 2),
        ("multi_label_classification", "accuracy", *SETS, 1 / 3),
        # Spans that are there: PER, LOC, PER; found: PER, a LOC that ends too early, PER, and a LOC that is not there.
        ("token_classification", "precision", *SPANS, 2 / 4),
        ("token_classification", "recall", *SPANS, 2 / 3),
        ("token_classification", "f1", *SPANS, 2 * 2 / (4 + 3)),
        ("token_classification", "accuracy", *SPANS, 5 / 7),
        ("token_classification", "recall", *BILOU, 3 / 4),
        ("token_classification", "precision", *BILOU, 1.0),
        # Case, punctuation and articles do not count; "red cat" and "cat" share one word: F1 2/3; "" is right for "".
        ("question_answering", "exact_match", *ANSWERS, 2 / 4),
        ("question_answering", "f1", *ANSWERS, (1 + 2 / 3 + 1 + 0) / 4),
    ],
)
def test_metrics_by_hand(task_type, name, references, predictions, value):
    metric = TASK_TYPES[task_type].load_metric(name, 2)
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(references=references, predictions=predictions) == {name: pytest.approx(value)}


def test_one_label_that_may_be_there_is_measured_by_itself():
    for name in ("f1_micro", "f1_macro"):
        metric = TASK_TYPES["multi_label_classification"].load_metric(name, 1)
        assert metric.compute(references=[[1], [0], [0], [0]], predictions=[[0]] * 4) == {name: 0.0}
        assert metric.compute(references=[[1], [1], [0]], predictions=[[1], [0], [0]]) == {name: pytest.approx(2 / 3)}


def test_a_label_is_predicted_where_it_is_more_likely_than_not():
    assert TASK_TYPES["multi_label_classification"].predictions(np.array([[-0.1, 0.1, 0.4]]), None, ()).tolist() == [
        [0, 1, 1]
    ]


def test_f1_of_several_classes_is_their_mean():
    result = (
        TASK_TYPES["classification"].load_metric("f1", 3).compute(references=[0, 0, 1, 2], predictions=[0, 1, 1, 1])
    )
    assert result["f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["pearson", "spearmanr"])
def test_a_correlation_that_is_not_defined_is_not_a_number(name):
    metric = TASK_TYPES["regression"].load_metric(name, 0)
    assert math.isnan(metric.compute(references=[1.0, 2.0], predictions=[3.0, 3.0])[name])
    assert math.isnan(metric.compute(references=[1.0], predictions=[3.0])[name])


def test_the_average_is_that_of_glue():
    assert average({"a": {"pearson": 0.8, "spearmanr": 0.6}, "b": {"accuracy": 0.5}}) == pytest.approx(0.6)
    assert math.isnan(average({}))


@pytest.mark.parametrize("max_tokens", [1, 50, 10**6])
def test_predictions_come_in_the_order_of_the_rows(encoders, task_files, max_tokens):
    """Row by row or in batches of like lengths, a row's logits are its own."""
    tokenizer = load_tokenizer(str(encoders("bert")), 64)
    config = TaskConfig(dataset="json", data_files=task_files["choice"], **TASKS["choice"])
    task = load_task("choice", config, tokenizer, 64)
    model = build_model(str(encoders("bert")), [task]).eval()
    together = predict(model, "choice", task.validation, Accelerator(cpu=True), 0, max_tokens)
    assert together.shape == (17, 3) and not np.isnan(together).any()
    for row in range(17):
        texts = [task.validation.sequence(row, n) for n in range(3)]
        one = tokenizer.pad({"input_ids": texts}, return_tensors="pt")
        ids = task.validation.token_type_ids
        types = tokenizer.pad(
            {"input_ids": [ids[np.array([row * 3 + n])].tolist() for n in range(3)]}, return_tensors="pt"
        )
        logits = model.tasks["choice"](
            input_ids=one["input_ids"][None],
            attention_mask=one["attention_mask"][None],
            token_type_ids=types["input_ids"][None],
        ).logits
        np.testing.assert_allclose(together[row], logits[0].detach().numpy(), atol=1e-5)

    results = evaluate_tasks([task], lambda *_: together)
    correct = [
        int(logits.argmax()) == label for logits, label in zip(together, task.validation.row_labels, strict=True)
    ]
    assert results == {"choice": {"accuracy": pytest.approx(sum(correct) / 17)}}
    table = results_table(results, [task]).splitlines()
    assert table[0].split() == ["task", "metric", "value", "rows"]
    assert table[2].split() == ["choice", "accuracy", f"{sum(correct) / 17:.4f}", "17"]
