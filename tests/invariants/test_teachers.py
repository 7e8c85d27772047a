"""Distillation: a teacher's predictions give way to the labels step by step, and nothing else changes."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.runs import assert_same_curve, assert_same_run, curve
from helpers.tasks import TASKS
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification

from multitask.config.load import load_config
from multitask.data.loader import StepDataset
from multitask.data.static_shapes import collate
from multitask.errors import UserError
from multitask.evaluation.teachers import with_teachers
from multitask.mixture.sampling import Sampling
from multitask.model.pretrained import load_tokenizer
from multitask.tasks.base import TASK_TYPES


@pytest.fixture
def taught(mixture_config, train, tmp_path):
    """Every task has a teacher, its export of a run of its own."""
    folder = train("--training.output_dir", str(tmp_path / "teachers"), "--training.max_steps", "12")
    for name, task in mixture_config["tasks"].items():
        task["teacher"] = str(folder / "export" / name)
    return mixture_config


def test_targets_go_from_the_teacher_to_the_labels(taught, write_config, tokenised, tmp_path):
    """As `transformers` computes the teacher on padded rows."""
    config = load_config(write_config(taught))
    tokenizer = load_tokenizer(config.model.encoder, 64)
    plain = [tokenised("bert", name) for name in TASKS]
    tasks = with_teachers(plain, config.tasks, tokenizer, Accelerator(cpu=True), 10**4)
    splits = {task.name: task.train for task in tasks}
    lengths = {name: split.length for name, split in splits.items()}
    mixture = Sampling({name: len(split) for name, split in splits.items()}, 12, 4).mixture(0, lengths)
    steps = StepDataset(mixture, splits, 0, 10**6, num_steps=4)
    for step in range(4):
        (of_pass,) = steps[step].passes
        for task in plain:
            rows = mixture(step)[task.name][::-1]
            inputs, labels = collate(task.train, rows, 0)
            auto = AutoModelForMultipleChoice if task.name == "choice" else AutoModelForSequenceClassification
            teacher = auto.from_pretrained(tmp_path / "teachers" / "export" / task.name).eval()
            with torch.no_grad():
                logits = teacher(**inputs).logits
            if task.name == "similar":
                said, own = logits[:, 0], labels
            else:
                said, own = logits.softmax(-1), F.one_hot(labels & 0xFFFF, logits.shape[1])
            expected = step / 4 * own + (1 - step / 4) * said
            torch.testing.assert_close(of_pass.labels[task.name], expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--training.max_tokens_per_pass", "60"], ["--training.static_shapes", "true"]])
def test_other_passes_make_the_same_update(taught, train, tmp_path, options):
    plain = train()
    assert_same_curve(plain, train("--training.output_dir", str(tmp_path / "other"), *options))
    for task in taught["tasks"].values():
        task.pop("teacher")
    alone = train("--training.output_dir", str(tmp_path / "alone"))
    assert not np.allclose(curve(plain), curve(alone), rtol=1e-3)


@pytest.mark.slow
def test_two_processes_make_the_same_update(taught, write_config, program, train, tmp_path):
    options = ["--config", write_config(taught), "--training.output_dir", str(tmp_path / "two")]
    done = program(*options, processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_curve(train(), tmp_path / "two")


def test_a_stopped_run_goes_on_with_its_teachers(taught, stoppable, tmp_path):
    assert stoppable("whole") == 0
    assert stoppable("parts", stop_at=3) == 143
    assert stoppable("parts") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_another_teacher_is_noticed(taught, stoppable, tmp_path):
    assert stoppable("parts", stop_at=3) == 143
    weights = tmp_path / "teachers" / "export" / "animal" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: 1.1 * tensor for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="the weights of the teacher of animal are others than those that"):
        stoppable("parts")
    assert stoppable("parts", "--training.allow_changed_data", "true") == 0


def test_a_row_with_fewer_choices_keeps_them_apart():
    choice = TASK_TYPES["multiple_choice"]
    logits = torch.tensor([[1.0, 2.0, 5.0], [0.5, 0.0, 1.0]])
    targets = torch.tensor([[0.25, 0.75, -1.0], [0.0, 0.0, 1.0]])
    expected = [-(0.25 * logits[0, :2].log_softmax(0)[0] + 0.75 * logits[0, :2].log_softmax(0)[1])]
    expected.append(-logits[1].log_softmax(0)[2])
    torch.testing.assert_close(choice.loss(logits, targets), torch.stack(expected))


def test_labels_in_another_order_are_found_by_name(taught, train, tmp_path):
    before = curve(train())
    export = tmp_path / "teachers" / "export" / "animal"
    model = AutoModelForSequenceClassification.from_pretrained(export)
    names = [model.config.id2label[number] for number in range(2)]
    model.config.id2label, model.config.label2id = (
        dict(enumerate(names[::-1])),
        {n: i for i, n in enumerate(names[::-1])},
    )
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter.flip(0))
    model.save_pretrained(export)
    np.testing.assert_allclose(curve(train("--training.output_dir", str(tmp_path / "other"))), before, rtol=1e-5)


def test_what_cannot_teach_is_refused_before_the_training(taught, train, encoders, tmp_path):
    animal, export = taught["tasks"]["animal"], tmp_path / "teachers" / "export"

    def said(*options):
        with pytest.raises(UserError) as raised:
            train("--dry_run", *options)
        return str(raised.value)

    animal["teacher"] = "./nowhere"
    assert said().startswith("tasks.animal.teacher: there is no folder ./nowhere (seen from ")
    animal["teacher"] = str(export / "choice")
    (tmp_path / "no_tokenizer").mkdir()
    animal["teacher"] = str(tmp_path / "no_tokenizer")
    assert said().startswith(f"tasks.animal.teacher: '{tmp_path}/no_tokenizer' cannot be loaded: ")
    copy = shutil.copytree(export / "animal", tmp_path / "renamed")
    config = json.loads((copy / "config.json").read_text())
    config["id2label"] = {"0": "beast", "1": "none"}
    (copy / "config.json").write_text(json.dumps(config | {"label2id": {"beast": 0, "none": 1}}))
    animal["teacher"] = str(copy)
    assert said() == f"tasks.animal.teacher: '{copy}' knows beast, none; the task has animal, none"
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second, *_ = (word for word in vocabulary if not word.startswith("["))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert said() == (
        f"tasks.animal.teacher: '{copy}' has another tokenizer than model.encoder; a teacher reads the same tokens"
    )
