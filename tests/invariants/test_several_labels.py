"""Several labels on the same rows: one encoding, and to each head the loss of its own labels."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from helpers.runs import assert_same_curve, assert_same_run, curve
from helpers.tasks import read_jsonl, write_jsonl
from torch.nn import functional as F

from multitask.cli.arguments import read_command
from multitask.config.load import load_config
from multitask.data.loader import StepDataset
from multitask.data.static_shapes import collate
from multitask.errors import UserError
from multitask.inference.predictor import Predictor
from multitask.mixture.sampling import Sampling
from multitask.model.lora import add_adapters
from multitask.model.pretrained import build_model, load_tokenizer
from multitask.tasks.base import streams_of
from multitask.tasks.load import load_tasks

HEADS = ("topic", "urgency", "tags")


def tickets(count, seed=0):
    """Rows of which some lack a label, and some lack all."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        words = [rng.choice(["cat", "dog", "bird", "car"]) for _ in range(rng.randint(1, 9))]
        tags = sorted({word for word in words if word != "car"})
        row = {"a": " ".join(words), "topic": words[0], "urgency": len(words) / 4, "tags": tags}
        for missing in {1: ["topic"], 3: ["urgency", "tags"], 6: list(HEADS)}.get(number % 9, ()):
            row[missing] = None
        rows.append(row)
    return rows


@pytest.fixture
def mixture_config(mixture_config, tmp_path):
    files = {
        "train": str(write_jsonl(tmp_path / "tickets.jsonl", tickets(63))),
        "validation": str(write_jsonl(tmp_path / "tickets_dev.jsonl", tickets(20, seed=1))),
    }
    del mixture_config["tasks"]["animal"]
    mixture_config["tasks"]["tickets"] = {
        **{"dataset": "json", "data_files": files, "inputs": ["a"]},
        "labels": {
            "topic": {"type": "classification", "label": "topic"},
            "urgency": {"type": "regression", "label": "urgency", "weight": 0.5},
            "tags": {"type": "multi_label_classification", "label": "tags"},
        },
    }
    return mixture_config


@pytest.fixture
def load(mixture_config, write_config):
    """The tasks and the steps of a run."""

    def load(*options):
        from accelerate import Accelerator

        config = read_command(["--config", write_config(mixture_config), *options]).config
        tokenizer = load_tokenizer(config.model.encoder, 64)
        tasks = load_tasks(config.tasks, tokenizer, 64, None, None, Accelerator(cpu=True))
        splits, streams = {task.name: task.train for task in tasks}, streams_of(tasks)
        sizes = {stream: len(splits[names[0]]) for stream, names in streams.items()}
        lengths = {stream: splits[names[0]].length for stream, names in streams.items()}
        mixture = Sampling(sizes, 12, 6, **dataclasses.asdict(config.mixture)).mixture(0, lengths)
        return config, tasks, StepDataset(mixture, splits, 0, 10**6, streams=streams)

    return load


def test_rows_are_encoded_once_and_each_head_has_the_loss_of_its_own_labels(load, train, mixture_config):
    weights = {"similar": 0.1, "choice": 0.1, "tickets": 0.8}  # many tickets, so that some lack a label
    mixture_config["mixture"] = {"sampling": "weights", "weights": weights}
    config, tasks, steps = load()
    model = build_model(config.model.encoder, tasks, 0.0, 0)
    step = steps[0]
    (of_pass,) = step.passes
    rows = steps.mixture(0)
    assert sum(map(len, rows.values())) == 12
    assert (
        step.tokens
        == of_pass.inputs.input_ids.numel()
        == sum(int(steps.splits[s].tokens[r].sum()) for s, r in rows.items())
    )
    logits, total = model(of_pass.inputs), 0.0
    for task in tasks:
        of_task = rows[task.stream][::-1]
        inputs, labels = collate(task.train, of_task, 0)
        plain = model({task.name: inputs})[task.name].detach()  # the task's model on a padded batch by itself
        torch.testing.assert_close(logits[task.name].detach(), plain, rtol=1e-4, atol=1e-5)
        has_label = np.ones(len(of_task), bool) if task.train.has_label is None else task.train.has_label[of_task]
        if task.name == "urgency":
            losses = (plain[:, 0] - labels) ** 2
        elif task.name == "tags":
            losses = F.binary_cross_entropy_with_logits(plain, labels, reduction="none").mean(-1)
        elif task.name == "similar":
            losses = (plain[:, 0] - labels) ** 2
        else:
            losses = F.cross_entropy(plain, labels, reduction="none")
        assert step.examples[task.name] == has_label.sum()
        total += task.weight * float(losses[torch.from_numpy(has_label)].sum()) / 12
    for head in ("topic", "tags"):
        assert 0 < step.examples[head] < len(rows["tickets"])
    assert curve(train())[0, 0] == pytest.approx(total, rel=1e-5)


def test_a_missing_label_counts_for_its_head_alone(load):
    _, tasks, _ = load()
    topic, urgency, tags = (next(task for task in tasks if task.name == name) for name in HEADS)
    rows = tickets(63)
    kept = [row for row in rows if any(row[head] is not None for head in HEADS)]
    assert len(topic.train) == len(urgency.train) == len(tags.train) == len(kept) == 56
    assert topic.train.has_label.tolist() == [row["topic"] is not None for row in kept]
    assert urgency.train.row_labels.tolist() == [r["urgency"] for r in kept if r["urgency"] is not None]
    assert urgency.mean == pytest.approx(np.mean([r["urgency"] for r in kept if r["urgency"] is not None]))
    assert [labels.sum() for labels in tags.train.row_labels] == [
        len(r["tags"]) for r in kept if r["tags"] is not None
    ]
    assert "7 of 63 rows of train have no label and are left out" in topic.notes
    assert "7 of 56 rows of train have no label and count for others alone" in topic.notes
    assert len(topic.validation) == sum(row["topic"] is not None for row in tickets(20, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--training.max_tokens_per_pass", "40"], ["--training.static_shapes", "true"]])
def test_other_passes_make_the_same_update(train, tmp_path, options):
    assert_same_curve(train(), train("--training.output_dir", str(tmp_path / "other"), *options))


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True])
def test_two_processes_make_the_update_of_one(mixture_config, write_config, train, program, tmp_path, adapters):
    """In some passes a process has no row of the tickets, and still reaches their heads and their adapter."""
    mixture_config["mixture"] = {"sampling": "weights", "weights": {"similar": 0.1, "choice": 0.7, "tickets": 0.2}}
    options = ["--training.batch_size", "7", "--training.max_tokens_per_pass", "60"]
    options += ["--adapters.rank", "2", "--training.learning_rate", "1e-2"] if adapters else []
    one = train(*options)
    two = tmp_path / "two"
    done = program("--config", write_config(mixture_config), *options, "--training.output_dir", str(two), processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_curve(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("balancing", ["static", "uncertainty"])
def test_stopped_and_resumed_is_never_stopped(stoppable, mixture_config, tmp_path, balancing):
    mixture_config["training"] |= {"max_steps": 8, "eval_steps": 3, "save_steps": 3, "loss_balancing": balancing}
    mixture_config["tasks"]["tickets"]["labels"]["topic"]["patience"] = 1
    assert stoppable("whole") == 0
    assert stoppable("parts", stop_at=5) == 143
    assert stoppable("parts") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_stopped_head_stands_still_and_the_others_go_on(load):
    config, tasks, steps = load()
    model = build_model(config.model.encoder, tasks, 0.0, 0)
    before = steps[0]
    steps.leave_out(["topic"])
    after = steps[0]
    assert before.examples["topic"] > 0 == after.examples["topic"]
    assert {t: n for t, n in after.examples.items() if t != "topic"} == {
        t: n for t, n in before.examples.items() if t != "topic"
    }
    assert not after.passes[0].is_row["topic"].any() and after.passes[0].num_rows["topic"] == 0
    assert torch.equal(before.passes[0].inputs.input_ids, after.passes[0].inputs.input_ids)
    heads = set(model.head_parameters("topic"))
    assert heads and set(model.parameters_only_of(["topic"])) == heads


def test_one_adapter_for_the_rows(load):
    config, tasks, _ = load()
    model = build_model(config.model.encoder, tasks, 0.0, 0)
    add_adapters(model, 2, 4.0, scope="per_task")
    assert {name: model.adapters[name] for name in HEADS} == {name: ["tickets"] for name in HEADS}
    of_rows = set(model.adapter_parameters("tickets"))
    assert of_rows and not of_rows & set(model.parameters_only_of(["topic", "tags"]))
    assert of_rows <= set(model.parameters_only_of(HEADS))


def test_a_run_of_all_of_it_is_exported_and_predicted_in_one_pass(train, mixture_config, monkeypatch):
    folder = train("--adapters.rank", "2", "--training.eval_steps", "3", "--training.agreement_steps", "2")
    assert {path.name for path in (folder / "export").iterdir()} == {"similar", "choice", *HEADS}
    results = json.loads((folder / "metrics.json").read_text())["tasks"]
    assert set(results) == {"similar", "choice", *HEADS}
    lines = read_jsonl(folder / "metrics.jsonl")
    assert any("agreement/topic/tags" in line for line in lines)
    predictor = Predictor(str(folder))
    calls = []
    hook = predictor.model.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    answers = predictor([{"a": "cat dog"}, {"a": "bird"}], list(HEADS))
    hook.remove()
    assert len(calls) == 1
    assert set(answers[0]["topic"]) == {"label", "score", "probabilities"} and "score" in answers[1]["urgency"]
    # The configuration that the run leaves is one of the same run.
    assert curve(train("--config", str(folder / "config.yaml"), "--training.output_dir", str(folder) + "2")).shape == (
        6,
        2,
    )


def test_options_of_the_rows_and_of_a_label(mixture_config, write_config):
    path = ["--config", write_config(mixture_config)]
    options = [
        "--tasks.tickets.labels.topic.weight",
        "2",
        "--tasks.tickets.max_train_examples=9",
        "--tasks.tags.patience=3",
    ]
    config = read_command([*path, *options, "--training.eval_steps", "2"]).config
    assert config.tasks["topic"].weight == 2 and config.tasks["tags"].patience == 3
    assert [config.tasks[head].max_train_examples for head in HEADS] == [9, 9, 9]
    assert [config.tasks[head].rows for head in HEADS] == ["tickets"] * 3
    config = load_config(path[1], {"tasks.tickets.labels.topic.weight": 2.0, "tasks.tickets.max_eval_examples": 5})
    assert config.tasks["topic"].weight == 2 and config.tasks["tags"].max_eval_examples == 5
    assert list(read_command([*path, "--only", "topic,similar"]).config.tasks) == ["similar", "topic"]


def change(**changes):
    return lambda tasks: tasks["tickets"].update(changes)


def of_label(name, **changes):
    return lambda tasks: tasks["tickets"]["labels"].setdefault(name, {}).update(changes)


MISTAKES = {
    "tasks.tickets.type: belongs to one of the labels, {0}tasks.tickets.labels.LABEL.type; labels stand instead of type and "
    "label": change(type="classification"),
    "tasks.tickets.labels: found [], expected {{NAME: {{type: …, label: COLUMN}}}}": change(labels=[]),
    "tasks.tickets.labels.topic.inputs: all labels of tickets read the same rows; it belongs to {0}tasks.tickets": of_label(
        "topic", inputs=["a", "b"]
    ),
    "tasks.tickets.labels.similar: similar is a task already; a label is a task too and needs another name": of_label(
        "similar", type="regression", label="urgency"
    ),
    "tasks.topic.typ: unknown key; did you mean 'type'?": of_label("topic", typ="regression"),
    "tasks.topic.label: train has no column 'topik'; did you mean 'topic'?": of_label("topic", label="topik"),
    "tasks.words.type: token_classification reads a row otherwise than classification (topic) does; give one of them "
    "rows of its own": of_label("words", type="token_classification", label="tags"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(mixture_config, write_config, load, message):
    MISTAKES[message](mixture_config["tasks"])
    with pytest.raises(UserError) as caught:
        load()
    prefix = f"{write_config(mixture_config)}: "
    assert str(caught.value).removeprefix(prefix).startswith(message.format(prefix))


def test_the_same_head_of_two_rows(mixture_config, load):
    other = {**mixture_config["tasks"]["tickets"], "labels": {"topic": {"type": "regression", "label": "urgency"}}}
    mixture_config["tasks"]["more"] = other
    with pytest.raises(
        UserError, match="tasks.more.labels.topic: there is a label topic already, of tickets; one needs"
    ):
        load()


def test_rows_that_differ(mixture_config, load):
    tasks = mixture_config["tasks"]
    of_rows = tasks.pop("tickets")
    common = {key: value for key, value in of_rows.items() if key != "labels"}
    for name in ("topic", "urgency"):
        tasks[name] = {**common, **of_rows["labels"][name], "rows": "tickets"}
    tasks["urgency"]["max_train_examples"] = 5
    with pytest.raises(
        UserError,
        match=r"tasks.urgency.max_train_examples: 5, but tasks.topic has None; tasks with the same rows \(tickets\)",
    ):
        load()


def test_rows_end_when_all_their_heads_are_stopped(load):
    """Then their share goes to the others; before, only the stopped head stands still."""
    _, tasks, steps = load()
    streams = streams_of(tasks)
    sampling = Sampling({stream: len(split) for stream, split in steps.splits.items()}, 12, 30)

    def given(stopped, step):
        mixture = sampling.mixture(0, steps.mixture.lengths, stopped, streams)
        return {stream: mixture.given(stream, step) for stream in streams}

    assert given({"topic": 5, "tags": 9}, 30) == given({}, 30)
    ended = given({"topic": 5, "tags": 9, "urgency": 7}, 30)
    assert ended["tickets"] == given({}, 9)["tickets"] < given({}, 30)["tickets"]  # after the last of them
    assert sum(ended.values()) == 12 * 30
