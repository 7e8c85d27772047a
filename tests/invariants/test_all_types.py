"""All six types of tasks in one run: what the step promises holds for each, and each can be learned."""

import json

import pytest
from helpers.runs import assert_same_curve
from helpers.tasks import ALL_TASKS, read_jsonl


@pytest.fixture
def mixture_config(mixture_config, task_files):
    mixture_config["tasks"] = {
        name: task | {"dataset": "json", "data_files": dict(task_files[name])} for name, task in ALL_TASKS.items()
    }
    mixture_config["training"] |= {"batch_size": 23, "max_tokens_per_pass": 10**6}
    return mixture_config


def task_losses(folder):
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if "train/loss" in line]
    return {task: [line[f"train/{task}/loss"] for line in lines] for task in ALL_TASKS}


def assert_same_numbers(first, second):
    assert_same_curve(first, second)
    # By now the models differ by the rounding of six steps, which may turn an answer where two are about as likely.
    one, two = (json.loads((folder / "metrics.json").read_text())["tasks"] for folder in (first, second))
    assert one.keys() == two.keys() == ALL_TASKS.keys()
    for task, metrics in one.items():
        assert metrics == pytest.approx(two[task], abs=0.07), task
    of_one, of_two = task_losses(first), task_losses(second)
    assert all(of_one[task] == pytest.approx(of_two[task], rel=1e-4) for task in ALL_TASKS)


@pytest.mark.slow
def test_several_passes_make_the_update_of_one(train, tmp_path):
    one = train()
    several = train("--training.output_dir", str(tmp_path / "s"), "--training.max_tokens_per_pass", "130")
    assert_same_numbers(one, several)


@pytest.mark.slow
def test_two_processes_make_the_update_of_one(mixture_config, write_config, train, program, tmp_path):
    one, two = train(), tmp_path / "two"
    options = ["--training.output_dir", str(two), "--training.max_tokens_per_pass", "200"]
    done = program("--config", write_config(mixture_config), *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_numbers(one, two)


@pytest.mark.slow
def test_every_type_is_learned_and_reported(train, capsys):
    few = [part for task in ALL_TASKS for part in (f"--tasks.{task}.max_train_examples", "4")]
    long = ["--training.learning_rate", "1e-2", "--training.max_steps", "250", "--training.warmup_ratio", "0.1"]
    folder = train(*few, *long, "--mixture.sampling", "uniform")
    for task, losses in task_losses(folder).items():
        assert sum(losses[-10:]) < 0.1 * sum(losses[:10]), task
    results = json.loads((folder / "metrics.json").read_text())["tasks"]
    assert {task: list(metrics) for task, metrics in results.items()} == {
        "similar": ["pearson", "spearmanr"],
        "animal": ["accuracy"],
        "choice": ["accuracy"],
        "topics": ["f1_micro", "f1_macro"],
        "tags": ["f1"],
        "find": ["exact_match", "f1"],
    }
    printed = capsys.readouterr().out
    assert "find: 4 rows of train make" in printed
    assert {path.name for path in (folder / "export").iterdir()} == ALL_TASKS.keys()
