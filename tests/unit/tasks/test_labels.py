"""Labels by name in every split, and rows without one."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.tasks import ALL_TASKS, read_jsonl, write_jsonl

from multitask.cli.arguments import read_command
from multitask.cli.commands import predict_rows
from multitask.config.schema import TaskConfig
from multitask.data.columns import is_no_label
from multitask.errors import UserError
from multitask.model.pretrained import load_tokenizer
from multitask.tasks.base import TASK_TYPES
from multitask.tasks.load import load_task
from multitask.tasks.texts import with_num_choices


@pytest.fixture
def load(encoders, tmp_path):
    """A task from rows, or from data sets with types."""
    tokenizer = load_tokenizer(str(encoders("bert")), 64)

    def load(train, validation=None, **options):
        files = {}
        for split, rows in (("train", train), ("validation", validation)):
            if isinstance(rows, datasets.Dataset):
                options["dataset"], files[split] = "parquet", str(tmp_path / f"{split}.parquet")
                rows.to_parquet(files[split])
            elif rows is not None:
                files[split] = str(write_jsonl(tmp_path / f"{split}.jsonl", rows))
        config = TaskConfig(**{"dataset": "json", "data_files": files, "inputs": ["a"], **options})
        return load_task("t", config, tokenizer, 64)

    return load


def named(labels, names, nested=False):
    feature = datasets.ClassLabel(names=names)
    features = datasets.Features(
        {"a": datasets.Value("string"), "label": datasets.List(feature) if nested else feature}
    )
    return datasets.Dataset.from_dict({"a": ["cat"] * len(labels), "label": labels}, features=features)


def test_splits_that_number_the_names_differently_are_matched_by_name(load):
    task = load(named([0, 1, 2], ["x", "y", "z"]), named([0, 1, 2], ["z", "x", "y"]), type="classification")
    assert task.labels == ("x", "y", "z") and task.validation.row_labels.tolist() == [2, 0, 1]
    text = datasets.Dataset.from_dict({"a": ["cat"] * 2, "label": ["z", "x"]})
    assert load(named([0, 1, 2], ["x", "y", "z"]), text, type="classification").validation.row_labels.tolist() == [
        2,
        0,
    ]
    many = load(
        named([[0], [1, 2]], ["x", "y", "z"], True),
        named([[0], [2]], ["z", "x", "y"], True),
        type="multi_label_classification",
    )
    assert many.validation.row_labels.tolist() == [[0, 0, 1], [0, 1, 0]]


def rows_of(*labels):
    return [{"a": "cat", "label": label} for label in labels]


@pytest.mark.parametrize(
    "labels, names, kept",
    [
        ([0, 1, 2, -1], ("0", "1", "2"), 3),
        ([0, 1, -100], ("0", "1"), 2),
        (["x", "y", "", None], ("x", "y"), 2),
        ([-1, 0, 1], ("-1", "0", "1"), 3),  # sentiment
        ([-1, 1], ("-1", "1"), 2),
        (["0", "1", "2", "-1"], ("0", "1", "2"), 3),
    ],
)
def test_rows_without_a_label_are_left_out_and_counted(load, labels, names, kept):
    task = load(rows_of(*labels), rows_of(*labels), type="classification")
    assert task.labels == names and len(task.train) == len(task.validation) == kept
    left_out = len(labels) - kept
    expected = f"{left_out} of {len(labels)} rows of train have no label and are left out"
    assert (expected in task.notes) == bool(left_out) and len(task.notes) == 2 * bool(left_out)
    assert len(task.validation_rows) == kept


def test_rows_keep_their_numbers(load):
    with pytest.raises(UserError, match="tasks.t: train row 4: column 'a' is empty"):
        load([*rows_of("x", None, "y", None), {"a": None, "label": "x"}], type="classification")


def test_multi_hot_rows_need_names(load):
    rows = rows_of([0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0])
    with pytest.raises(UserError) as raised:
        load(rows, type="multi_label_classification")
    assert str(raised.value) == (
        "tasks.t.label: 'label' holds a number for each of 4 labels, without their names; "
        "tasks.t.label_names: [NAME, …] gives them"
    )
    task = load(rows, rows, type="multi_label_classification", label_names=list("wxyz"))
    assert task.labels == tuple("wxyz") and task.train.row_labels.tolist() == [row["label"] for row in rows]
    with pytest.raises(
        UserError, match=r"train row 0: column 'label' holds \[0, 1, 0, 1\], not a number from 0 to 1 for each of 3"
    ):
        load(rows, type="multi_label_classification", label_names=list("xyz"))
    assert load(rows_of(["0"], ["1", "0"], []), type="multi_label_classification").labels == ("0", "1")


def test_numbers_may_have_names(load):
    task = load(rows_of(0, 1, "c"), type="classification", label_names=["a", "b", "c"])
    assert task.labels == ("a", "b", "c") and task.train.row_labels.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="tasks.t.label_names: has no effect with type regression"):
        read_label_names("regression", ["a", "b"])


def read_label_names(kind, names):
    config = TaskConfig(type=kind, dataset="json", inputs=["a"], label_names=names)
    TASK_TYPES[kind].check_config("tasks.t", config)


# -- words without a tag -----------------------------------------------------------------------------------------------


def test_words_without_a_tag_count_neither_in_loss_nor_in_metric(load):
    rows = [
        {"a": ["the", "cat", "runs"], "label": ["O\n", "B-X", -100]},
        {"a": ["dog"], "label": [" O"]},
        {"a": [], "label": []},
        {"a": ["a", "b"], "label": [None, "B-X"]},
    ]
    task = load(rows, rows, type="token_classification")
    assert task.labels == ("B-X", "O") and len(task.train) == 3
    assert task.train.notes["word_labels"] == [[1, 0, -100], [1], [-100, 0]]
    logits = np.zeros((3, int(task.validation.length.max()), 2), np.float32)
    assert task.type.references(task.validation, task.labels) == [["O", "B-X"], ["O"], ["B-X"]]
    assert [len(row) for row in task.type.predictions(logits, task.validation, task.labels)] == [2, 1, 1]
    _, judged = task.type.look(task.validation, logits, task.labels)
    assert [len(row[1].split("\n")) for row in judged] == [3, 1, 2]


# -- choices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, numbers",
    [
        ([0, 1, 2], [0, 1, 2]),
        ([1, 2, 3], [0, 1, 2]),
        (["A", "C", "B"], [0, 2, 1]),
        (["b", "a", "c"], [1, 0, 2]),
        (["dog", "bird", "cat"], [1, 2, 0]),
    ],
)
def test_the_right_choice_is_a_number_a_letter_or_a_text(load, labels, numbers):
    rows = [{"a": "which", "options": ["cat", "dog", "bird"], "label": label} for label in labels]
    task = load(rows, rows[:1], type="multiple_choice", choices="options")
    assert task.train.row_labels.tolist() == numbers and task.validation.row_labels.tolist() == numbers[:1]


def test_validation_is_read_as_train_is(load):
    rows = [{"a": "which", "options": ["cat", "dog"], "label": label} for label in (1, 2)]
    assert load(rows, rows[:1], type="multiple_choice", choices="options").validation.row_labels.tolist() == [0]


def test_choices_that_a_row_lacks_count_in_no_loss():
    logits = torch.tensor([[1.0, 2.0, 9.0], [1.0, 2.0, 9.0]], requires_grad=True)
    labels = torch.tensor([with_num_choices(1, 2), 1])  # the first row has two choices, the second all
    losses = TASK_TYPES["multiple_choice"].loss(logits, labels)
    expected = [torch.nn.functional.cross_entropy(row[None], torch.tensor([1])) for row in (logits[0, :2], logits[1])]
    assert losses.tolist() == pytest.approx([float(loss) for loss in expected])
    losses.sum().backward()
    assert logits.grad[0, 2] == 0 != logits.grad[1, 2]


@pytest.mark.slow
def test_rows_may_have_fewer_choices(mixture_config, train, tmp_path):
    two, three = ({"options": ["river", "dog"], "label": 0}, {"options": ["dog", "river", "bird"], "label": 1})
    rows = [{"q": "the cat"} | (two if number % 2 else three) for number in range(40)]
    files = {split: str(write_jsonl(tmp_path / f"{split}.jsonl", rows)) for split in ("train", "validation")}
    task = {"type": "multiple_choice", "dataset": "json", "inputs": ["q"], "choices": "options", "data_files": files}
    mixture_config["tasks"] = {"pick": task}
    folder = train("--training.max_steps", "30", "--training.learning_rate", "1e-2")
    assert json.loads((folder / "metrics.json").read_text())["tasks"]["pick"]["accuracy"] == 1
    source = write_jsonl(tmp_path / "in.jsonl", [{"q": "the cat", "options": ["river", "dog"]}, rows[0]])
    options = ["--mode", "predict", "--checkpoint", str(folder), "--input", str(source)]
    predict_rows(read_command([*options, "--output", str(tmp_path / "out.jsonl")]), Accelerator(cpu=True))
    first, second = (json.loads(line)["pick"] for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert len(first["probabilities"]) == 2 and len(second["probabilities"]) == 3
    assert sum(first["probabilities"]) == pytest.approx(1) and (first["label"], second["label"]) == ("river", "river")


# -- resuming with other data ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("change", ["labels", "texts", "encoder"])
def test_a_run_does_not_go_on_with_other_data(mixture_config, train, tmp_path, encoders, change, task_files):
    path = tmp_path / "animal.jsonl"
    rows = read_jsonl(Path(task_files["animal"]["train"]))
    write_jsonl(path, rows)
    mixture_config["tasks"]["animal"]["data_files"] = {"train": str(path)}
    mixture_config["training"]["save_steps"] = 2
    train("--training.max_steps", "4")
    if change == "encoder":
        import shutil

        from safetensors.torch import load_file, save_file

        shutil.copytree(encoders("bert"), tmp_path / "other")
        weights = load_file(tmp_path / "other" / "model.safetensors")
        name = next(name for name in weights if name.endswith("word_embeddings.weight"))
        save_file(
            weights | {name: weights[name] + torch.tensor(0.1)},
            tmp_path / "other" / "model.safetensors",
            {"format": "pt"},
        )
        (tmp_path / "link").symlink_to(encoders("bert"))
        mixture_config["model"]["encoder"] = str(tmp_path / "link")
        mixture_config["training"]["output_dir"] = str(tmp_path / "second")
        train("--training.max_steps", "4")
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(tmp_path / "other")
        message = "the weights of model.encoder are others"
    elif change == "labels":
        write_jsonl(path, [row | {"label": {"none": "zero"}.get(row["label"], row["label"])} for row in rows])
        message = "the labels of task animal were animal, none, are animal, zero"
    else:
        write_jsonl(path, [row | {"a": row["b"]} for row in rows])
        message = "the training rows of task animal are others"
    with pytest.raises(UserError, match=message):
        train("--training.max_steps", "6")
    if change != "labels":
        train("--training.max_steps", "6", "--training.allow_changed_data", "true")


# -- metrics that are not defined --------------------------------------------------------------------------------------


def test_what_is_not_defined_is_left_out_of_the_average(mixture_config, train, tmp_path, capsys):
    task = ALL_TASKS["similar"] | {"dataset": "json"}
    rows = [{"a": "the cat", "b": "a dog", "label": 1.0}] * 6
    task["data_files"] = {
        split: str(write_jsonl(tmp_path / f"{split}.jsonl", rows)) for split in ("train", "validation")
    }
    mixture_config["tasks"]["similar"] = task
    mixture_config["training"] |= {"eval_steps": 2, "load_best_model_at_end": True}
    folder = train("--training.max_steps", "4")
    results = json.loads((folder / "metrics.json").read_text())
    others = [results["tasks"][name]["accuracy"] for name in ("animal", "choice")]
    assert results["tasks"]["similar"] == {"pearson": None, "spearmanr": None}
    assert results["average"] == pytest.approx(np.mean(others))
    printed = capsys.readouterr().out
    assert (
        "note: similar/pearson, similar/spearmanr not defined, as all predictions or all labels are the same"
        in printed
    )
    assert "The best by average was step" in printed and "undefined" in printed


def test_many_classes_take_no_time_for_each_pair_of_them():
    """By the number of comparisons, as each class was once compared with all others."""
    compared = 0

    class Counted(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    texts = [Counted(f"c{number}") for number in range(2000)]
    assert not any(is_no_label(text, texts) for text in texts) and compared < 20_000
