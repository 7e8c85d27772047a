"""Class weights, smoothing, focal loss and soft labels: the same on any number of passes and processes, and resumed."""

import json

import pytest
from helpers.runs import assert_same_curve, assert_same_run, curve
from helpers.tasks import read_jsonl, write_jsonl


@pytest.fixture
def mixture_config(mixture_config, task_files, tmp_path):
    """One task for each loss; `soft` has a column for each class."""
    tasks = mixture_config["tasks"]
    files = {}
    for split, path in tasks["animal"]["data_files"].items():
        rows = read_jsonl(tmp_path / path)
        for number, row in enumerate(rows):
            yes = (number % 5 + 3) / 10 if row["label"] == "animal" else (number % 3) / 10
            row |= {"yes": yes, "no": 1 - yes}
        files[split] = str(write_jsonl(tmp_path / f"soft_{split}.jsonl", rows))
    tasks["animal"] |= {"class_weights": "balanced", "label_smoothing_factor": 0.2}
    soft = {"type": "classification", "dataset": "json", "inputs": ["a", "b"], "label": ["no", "yes"]}
    tasks["soft"] = soft | {"data_files": files, "label_smoothing_factor": 0.1, "class_weights": {"yes": 3.0}}
    topics = {"type": "multi_label_classification", "inputs": ["a"], "label": "topics", "dataset": "json"}
    tasks["topics"] = topics | {"data_files": dict(task_files["topics"]), "focal_gamma": 2.0}
    return mixture_config


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--training.max_tokens_per_pass", "60"], ["--training.static_shapes", "true"]])
def test_other_passes_make_the_same_update(train, tmp_path, options):
    assert_same_curve(train(), train("--training.output_dir", str(tmp_path / "other"), *options))


@pytest.mark.slow
def test_two_processes_make_the_same_update(mixture_config, write_config, program, train, tmp_path):
    done = program(
        "--config", write_config(mixture_config), "--training.output_dir", str(tmp_path / "two"), processes=2
    )
    assert done.returncode == 0, done.stderr
    assert_same_curve(train(), tmp_path / "two")
    results = [json.loads((tmp_path / name / "metrics.json").read_text())["losses"] for name in ("run", "two")]
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_a_stopped_run_goes_on(stoppable, tmp_path):
    assert stoppable("whole") == 0
    assert stoppable("parts", stop_at=3) == 143
    assert stoppable("parts") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("task", ["animal", "soft", "topics"])
def test_each_setting_changes_the_update(train, mixture_config, tmp_path, task):
    first = curve(train())
    for option in ("class_weights", "label_smoothing_factor", "focal_gamma"):
        mixture_config["tasks"][task].pop(option, None)
    assert abs(curve(train("--training.output_dir", str(tmp_path / "plain")))[0, 0] / first[0, 0] - 1) > 1e-3
