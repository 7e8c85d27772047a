"""Probabilities in place of one right class, and a column for each label."""

import numpy as np
import pytest
import torch
from helpers.tasks import write_jsonl
from torch.nn import functional as F

from multitask.config.load import load_config
from multitask.errors import UserError
from multitask.tasks.base import TASK_TYPES
from multitask.tasks.load import load_task
from multitask.tasks.losses import LossOptions, class_loss


@pytest.fixture
def load(mixture_config, write_config, tmp_path, encoders):
    """A task of classes whose rows are given, with settings."""
    from multitask.model.pretrained import load_tokenizer

    def load(rows, text=None, **settings):
        if text is None:
            files = {"train": str(write_jsonl(tmp_path / "soft.jsonl", rows))}
            dataset = "json"
        else:
            (tmp_path / "soft.csv").write_text(text)
            files, dataset = {"train": str(tmp_path / "soft.csv")}, "csv"
        task = {"type": "classification", "dataset": dataset, "data_files": files, "inputs": ["a"]} | settings
        mixture_config["tasks"] = {"mood": task | {"validation_split": None}}
        config = load_config(write_config(mixture_config))
        return load_task("mood", config.tasks["mood"], load_tokenizer(str(encoders("bert")), 64), 64)

    return load


def test_one_column_of_probabilities(load):
    rows = [{"a": "the cat", "label": [0.25, 0.75]}, {"a": "a dog", "label": None}, {"a": "a dog", "label": [1, 0]}]
    task = load(rows, label_names=["bad", "good"])
    assert task.labels == ("bad", "good")
    assert task.train.row_labels.tolist() == [[0.25, 0.75], [1.0, 0.0]] and task.train.label_dtype == torch.float32
    assert task.notes == ("1 of 3 rows of train have no label and are left out",)
    assert task.type.references(task.train, task.labels).tolist() == [1, 0]
    assert task.type.class_counts(task.train, task.labels).tolist() == [1, 1]


def test_one_column_a_class_in_a_file_of_texts(load):
    task = load(None, "a,bad,good\nthe cat,0.2,0.8\na dog,1,0\na bird,,\n", label=["bad", "good"])
    assert task.labels == ("bad", "good")
    np.testing.assert_allclose(task.train.row_labels, [[0.2, 0.8], [1, 0]], rtol=1e-6)


def test_one_column_a_label(load):
    of = {"type": "multi_label_classification", "label": ["loud", "rude"]}
    task = load(None, "a,loud,rude\nthe cat,1,0\na dog,0,0\na bird,0.5,True\n", **of)
    assert task.labels == ("loud", "rude") and task.train.row_labels.tolist() == [[1, 0], [0, 0], [0.5, 1]]
    assert task.type.references(task.train, task.labels).tolist() == [[1, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"label": ["bad", "good"]},
            "tasks.mood: train row 1: column 'bad, good' holds ['0.5', '0.6'], which sums to 1.1; the probabilities "
            "of a row's classes sum to 1",
        ),
        ({"label": ["bad", "goud"]}, "tasks.mood.label: train has no column 'goud'; did you mean 'good'?"),
        ({"label": ["bad", "bad"]}, "tasks.mood.label: ['bad', 'bad'] must be two or more different columns"),
        (
            {"label": ["bad", "a"]},
            "tasks.mood: train row 0: column 'bad, a' holds ['0.2', 'the cat'], not a number from 0",
        ),
        (
            {"label": ["bad", "good"], "label_names": ["x", "y", "z"]},
            "tasks.mood.label_names: 3 names for 2 columns (tasks.mood.label)",
        ),
        (
            {"label": ["bad", "good"], "type": "regression"},
            "tasks.mood.label: type regression reads one column; classification, multi_label_classification take several",
        ),
        (
            {"label": ["bad", "good"], "focal_gamma": 2.0},
            "tasks.mood.focal_gamma: needs one right class, and 'bad, good' has probabilities",
        ),
    ],
)
def test_mistakes(load, settings, message):
    text = "a,bad,good\nthe cat,0.2,0.8\na dog,0.5,0.6\n" if "focal_gamma" not in settings else "a,bad,good\nb,0,1\n"
    with pytest.raises(UserError) as raised:
        load(None, text, **settings)
    assert str(raised.value).startswith(message)


def test_a_list_without_names(load):
    with pytest.raises(UserError) as raised:
        load([{"a": "the cat", "label": [0.5, 0.5]}])
    assert str(raised.value) == (
        "tasks.mood.label: 'label' holds a number for each of 2 labels, without their names; "
        "tasks.mood.label_names: [NAME, …] gives them"
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5)])
def test_the_loss_is_that_of_plain_pytorch(smoothing, weights):
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3), torch.rand(5, 3).softmax(-1)
    found = class_loss(logits, targets, LossOptions(weights, smoothing))
    smooth = (1 - smoothing) * targets + smoothing / 3
    expected = -(torch.tensor(weights or (1.0, 1.0, 1.0)) * smooth * F.log_softmax(logits, -1)).sum(-1)
    torch.testing.assert_close(found, expected)
    hard = torch.tensor([0, 2, 1, 1, 0])
    options = LossOptions(weights, smoothing)
    torch.testing.assert_close(
        TASK_TYPES["classification"].loss(logits, F.one_hot(hard, 3).float(), options),
        TASK_TYPES["classification"].loss(logits, hard, options),
    )
