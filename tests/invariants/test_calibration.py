"""`calibrate: true`: fitted when a run is evaluated, saved and exported with it, used wherever it predicts."""

import json
from pathlib import Path

import pytest
import torch
from helpers.runs import assert_same_run, weights
from helpers.tasks import read_jsonl, write_jsonl
from scipy.special import expit, softmax
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import run_multitask
from multitask.errors import UserError
from multitask.inference.predictor import Predictor

TASKS = ("animal", "choice", "topics")


@pytest.fixture
def mixture_config(mixture_config, task_files):
    tasks = mixture_config["tasks"]
    del tasks["similar"]
    topics = {"type": "multi_label_classification", "inputs": ["a"], "label": "topics", "dataset": "json"}
    tasks["topics"] = topics | {"data_files": dict(task_files["topics"])}
    for task in tasks.values():
        task["calibrate"] = True
    return mixture_config


def calibrations(folder):
    return json.loads((folder / "metrics.json").read_text())["calibrations"]


def test_it_is_exported_and_used(train, mixture_config, tmp_path, capsys):
    folder = train()
    found = calibrations(folder)
    printed = capsys.readouterr().out
    for task in TASKS:
        assert f"calibration of {task}: temperature {found[task]['temperature']:.3g}, calibration error" in printed
        assert found[task]["num_rows"] == 17 and found[task]["temperature"] != 1
        config = json.loads((folder / "export" / task / "config.json").read_text())
        assert config["calibration"] == {key: found[task][key] for key in ("temperature", "thresholds")}
        card = (folder / "export" / task / "README.md").read_text()
        assert f"Divide the logits by {found[task]['temperature']:.4g} before" in card
        assert f"on rows that it was not fitted on, the error is {found[task]['errors']['crossfitted']:.3f}" in card
    predictor = Predictor(str(folder))
    for task in ("animal", "topics"):
        of_task = mixture_config["tasks"][task]
        rows = read_jsonl(Path(of_task["data_files"]["validation"]))
        export = folder / "export" / task
        model, tokenizer = (
            AutoModelForSequenceClassification.from_pretrained(export),
            AutoTokenizer.from_pretrained(export),
        )
        for row in rows:
            with torch.no_grad():
                texts = [row[column] for column in of_task["inputs"]]
                logits = model(**tokenizer(*texts, return_tensors="pt")).logits[0].numpy()
            scaled = logits / model.config.calibration["temperature"]
            probabilities = softmax(scaled) if task == "animal" else expit(scaled)
            answer = predictor(row, task)[task]
            assert list(answer["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)
            if task == "topics":
                thresholds = model.config.calibration["thresholds"]
                there = [n for n, p in zip(thresholds, probabilities, strict=True) if p > thresholds[n]]
                assert answer["labels"] == there


def test_evaluate_uses_it(train, write_config, mixture_config, monkeypatch, capsys, tmp_path):
    folder = train()
    found = calibrations(folder)["topics"]
    output = tmp_path / "again.json"
    argv = ["run_multitask.py", "--mode", "evaluate", "--checkpoint", str(folder), "--output", str(output)]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as ended:
        run_multitask.main()
    assert not ended.value.code
    results = json.loads(output.read_text())["tasks"]["topics"]
    assert results == pytest.approx(found["metrics"]["after"])
    assert "Calibrated as its run found best on its validation rows: animal, choice, topics" in capsys.readouterr().out


def test_weights_and_results_are_those_without_it(train, mixture_config, tmp_path):
    with_it = train()
    for task in mixture_config["tasks"].values():
        task["calibrate"] = False
    without = train("--training.output_dir", str(tmp_path / "without"))
    first, second = weights(with_it), weights(without)
    assert all(torch.equal(first[name], second[name]) for name in first)
    results = [json.loads((folder / "metrics.json").read_text()) for folder in (with_it, without)]
    assert results[0]["tasks"] == results[1]["tasks"] and "calibrations" not in results[1]


def test_a_resumed_run_has_the_same(stoppable, tmp_path):
    assert stoppable("whole") == 0
    assert stoppable("parts", stop_at=3) == 143
    assert stoppable("parts") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert calibrations(tmp_path / "whole") == calibrations(tmp_path / "parts")


def test_a_finished_run_says_it_again(train, capsys):
    train()
    first = [line for line in capsys.readouterr().out.splitlines() if line.startswith("calibration of")]
    train()
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("calibration of")]
    assert len(first) == 3 and first == again


@pytest.mark.pictures
def test_the_report_shows_it_and_the_classes(train):
    folder = train()
    page = (folder / "report" / "index.html").read_text()
    found = calibrations(folder)["topics"]
    before, after = found["errors"]["before"], found["errors"]["after"]
    assert (
        f"expected calibration error {before:.3f}, with a temperature of {found['temperature']:.3g} {after:.3f}"
        in page
    )
    assert f"on rows that it was not fitted on the error is {found['errors']['crossfitted']:.3f}" in page
    assert 'aria-label="topics: calibration"' in page
    assert '<td>animal</td><td class="number">37</td>' in page


def test_best_checkpoint_is_exported_with_its_own(train, mixture_config):
    mixture_config["training"] |= {"eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "topics"}
    folder = train()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    by_step = {line["step"]: line["eval/topics/f1_micro"] for line in lines if "eval/topics/f1_micro" in line}
    assert len(by_step) == 6
    temperatures = {}
    for checkpoint in sorted((folder / "checkpoints").iterdir()):
        state = json.loads((checkpoint / "state.json").read_text())
        temperatures[state["step"]] = state["calibrations"]["topics"]["temperature"]
    best = json.loads((sorted((folder / "checkpoints").iterdir())[-1] / "state.json").read_text())["best"]["step"]
    config = json.loads((folder / "export" / "topics" / "config.json").read_text())
    assert config["calibration"]["temperature"] == temperatures[best]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"type": "regression"},
            "tasks.animal.calibrate: has no effect with type regression; it belongs to classification, "
            "multiple_choice, multi_label_classification",
        ),
        (
            {"validation_split": None},
            "tasks.animal.calibrate: needs validation rows, and tasks.animal.validation_split is null",
        ),
    ],
)
def test_mistakes(train, mixture_config, settings, message):
    mixture_config["tasks"]["animal"] |= settings
    with pytest.raises(UserError) as raised:
        train()
    assert str(raised.value) == message


def test_validation_rows_without_labels(train, mixture_config, tmp_path):
    files = mixture_config["tasks"]["animal"]["data_files"]
    hidden = [row | {"label": None} for row in read_jsonl(Path(files["validation"]))]
    files["validation"] = str(write_jsonl(tmp_path / "hidden.jsonl", hidden))
    with pytest.raises(UserError) as raised:
        train()
    assert str(raised.value) == "tasks.animal.calibrate: no row of validation has a label to fit it on"
