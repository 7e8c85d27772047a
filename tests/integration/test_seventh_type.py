"""A type of task that only this file defines: trained, evaluated, reported, predicted and exported like the others."""

import json

import pytest
import torch
import transformers
from accelerate import Accelerator
from datasets import Value
from helpers.tasks import make_rows, read_jsonl, write_jsonl
from scipy.special import expit

from multitask.cli.arguments import read_command
from multitask.cli.commands import evaluate, export, predict_rows
from multitask.config.schema import TASK_RULES
from multitask.errors import UserError
from multitask.tasks.base import TASK_TYPES, TaskType, model_usage, register
from multitask.tasks.labels import column_labels
from multitask.tasks.metrics import of_classes
from multitask.tasks.pictures import confusion, judged_classes
from multitask.tasks.texts import sequence_columns

MARGIN = 1.0


class Ranking(TaskType):
    """Which of two texts ranks higher, with a margin between their scores (Burges et al. 2005's pairs)."""

    name = "ranking"
    auto_class = transformers.AutoModelForMultipleChoice  # one score for each of a row's sequences
    hub_name = "text-ranking"
    columns = {"label": Value("int64")}
    metrics = ("accuracy",)
    num_inputs = (2, 2)
    inputs_wanted = "those of the two texts are needed"
    input_names = (("first", "text"), ("second", "text_pair"))
    several_sequences = True

    def num_sequences(self, layout):
        return 2

    def encode(self, rows, numbers, *, where, layout, tokenizer, max_length):
        first, second = (rows[column] for column in layout.inputs)
        texts = [text for pair in zip(first, second, strict=True) for text in pair]
        encoded = tokenizer(texts, truncation=True, max_length=max_length)
        cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
        columns = sequence_columns(encoded, tokenizer, cut, 2)
        if layout.label is not None:
            columns["label"] = [layout.label_numbers[value] for value in rows[layout.label]]
        return columns

    def label_names(self, name, config, train):
        return column_labels(name, config, train)

    def loss(self, logits, labels):
        right = logits.gather(1, labels[:, None]).squeeze(1)
        wrong = logits.gather(1, 1 - labels[:, None]).squeeze(1)
        return torch.relu(MARGIN - right + wrong)

    def predictions(self, logits, split, names):
        return logits.argmax(axis=-1)

    def answers(self, logits, split, names):
        return [{"label": names[row.argmax()], "score": float(expit(abs(row[0] - row[1])))} for row in logits]

    def metric(self, name, num_labels):
        return of_classes(name, num_labels)

    def look(self, split, logits, labels):
        true, predicted = split.row_labels, logits.argmax(axis=-1)
        return confusion(true, predicted, labels), judged_classes(true, predicted, logits, labels)

    def usage(self, name, num_inputs):
        return model_usage(self.auto_class, name, "# the text with the higher score ranks higher")


@pytest.fixture
def ranking(mixture_config, tmp_path):
    """The mixture with a task of the seventh type: the text with more words ranks higher."""
    register(Ranking())
    for split, count in (("train", 60), ("validation", 20)):
        rows = [
            row | {"better": "a" if len(row["a"]) >= len(row["b"]) else "b"} for row in make_rows("regression", count)
        ]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    mixture_config["tasks"]["rank"] = {
        "type": "ranking",
        "dataset": "json",
        "data_files": {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")},
        "inputs": ["a", "b"],
        "label": "better",
    }
    yield mixture_config
    del TASK_TYPES["ranking"], TASK_RULES["ranking"]


def run_mode(mode, *options):
    modes = {"evaluate": evaluate, "export": export, "predict": predict_rows}
    modes[mode](read_command(["--mode", mode, *options]), Accelerator(cpu=True))


@pytest.mark.slow
@pytest.mark.pictures
def test_it_does_all_that_the_others_do(ranking, train, tmp_path, capsys):
    folder = train(
        "--training.max_steps", "60", "--training.learning_rate", "3e-3", "--training.agreement_steps", "20"
    )
    losses = [line["train/rank/loss"] for line in read_jsonl(folder / "metrics.jsonl") if "train/rank/loss" in line]
    assert len(losses) == 60 and 0.5 < losses[0] < 1.5 and sum(losses[-10:]) < 0.5 * sum(losses[:10])
    results = json.loads((folder / "metrics.json").read_text())["tasks"]
    assert results["rank"]["accuracy"] > 0.8 and len(results) == 4
    assert "rank" in (folder / "report" / "index.html").read_text()
    assert "agreement/similar/rank" in {name for line in read_jsonl(folder / "metrics.jsonl") for name in line}

    run_mode("evaluate", "--checkpoint", str(folder), "--output", str(tmp_path / "again.json"))
    of_run = json.loads((folder / "metrics.json").read_text())
    assert of_run.pop("run_seconds") > 0
    assert json.loads((tmp_path / "again.json").read_text()) == of_run

    rows = [
        {"first": "the cat", "second": "the cat runs under the house in the river"},
        {"text": "a", "text_pair": "b"},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    for output in ("answers.jsonl", "answers.parquet"):
        paths = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / output)]
        run_mode("predict", "--checkpoint", str(folder), "--tasks", "rank", *paths)
    answer, _ = read_jsonl(tmp_path / "answers.jsonl")
    assert answer["rank"]["label"] == "b" and answer["rank"]["score"] > 0.5

    run_mode("export", "--checkpoint", str(folder), "--output", str(tmp_path / "models"))
    for models in (folder / "export", tmp_path / "models"):
        model = transformers.AutoModelForMultipleChoice.from_pretrained(models / "rank").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(models / "rank")
        inputs = tokenizer(list(rows[0].values()), return_tensors="pt", padding=True)
        with torch.no_grad():
            first, second = model(**{name: tensor[None] for name, tensor in inputs.items()}).logits[0].tolist()
        assert second > first
        assert "the text with the higher score" in (models / "rank" / "README.md").read_text()


def test_its_mistakes_are_named_like_the_others(ranking, write_config):
    with pytest.raises(UserError, match=r"tasks.rank.inputs: 1 columns given, those of the two texts are needed"):
        read_command(["--config", write_config(ranking), "--tasks.rank.inputs", "[a]"])
    with pytest.raises(UserError, match=r"unknown value 'rankin'; did you mean 'ranking'\?"):
        read_command(["--config", write_config(ranking), "--tasks.rank.type", "rankin"])


def test_what_is_cached_follows_from_its_own_code():
    assert "class Ranking" in Ranking().source() and "def value_at" in Ranking().source()
    assert "class Ranking" not in TASK_TYPES["classification"].source()
    assert "class TextTask" in TASK_TYPES["classification"].source()
