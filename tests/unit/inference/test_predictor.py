"""Answers in short: of a run's model to rows, here and from a file. What they must be is in test_modes.py."""

import pytest
from accelerate import Accelerator
from helpers.tasks import read_jsonl, write_jsonl

from multitask import Predictor
from multitask.cli.arguments import read_command
from multitask.cli.commands import predict_rows

ROWS = [{"text": "the cat runs"}, {"text": "a bird"}, {"txt": "a dog"}]


def test_a_file_gets_the_answers_that_its_rows_get(train, tmp_path):
    folder = train("--training.max_steps", "1")
    source, target = write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "answers.jsonl"
    options = ["--mode", "predict", "--checkpoint", str(folder), "--tasks", "animal", "--skip_bad_rows"]
    command = read_command([*options, "--input", str(source), "--output", str(target)])
    predict_rows(command, Accelerator(cpu=True))
    expected = Predictor(str(folder))(ROWS[:2], ["animal"])
    lines = read_jsonl(target)
    assert [line["row"] for line in lines] == [0, 1]
    for line, answer in zip(lines, expected, strict=True):
        assert line["animal"]["label"] == answer["animal"]["label"]
        probabilities = answer["animal"]["probabilities"]
        assert line["animal"]["probabilities"] == pytest.approx(probabilities, abs=1e-5)
        assert sum(probabilities.values()) == pytest.approx(1)
    (bad,) = read_jsonl(tmp_path / "answers.jsonl.bad.jsonl")
    assert bad["row"] == 2
