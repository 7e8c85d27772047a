"""What evaluations decide: the best model, tasks that stop. First the bookkeeping, then whole runs."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from helpers.runs import assert_same_curve, assert_same_run, damage, numbers, weights
from helpers.tasks import read_jsonl
from safetensors.torch import load_file

import run_multitask
from multitask.checkpoints.manifest import checkpoints_in, step_name
from multitask.checkpoints.remote import delete_checkpoint, upload_checkpoint
from multitask.cli.arguments import read_command
from multitask.errors import UserError
from multitask.tasks.metrics import average
from multitask.training.early_stopping import EarlyStopping, check_stopping, score
from multitask.training.state import SavedState

RESULTS = {"a": {"accuracy": 0.5, "f1": 0.75}, "b": {"mse": 0.25}, "c": {"pearson": 0.5}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("average", (0.625 - 0.25 + 0.5) / 3), ("a", 0.625), ("a/f1", 0.75), ("b", -0.25), ("b/mse", -0.25)],
)
def test_the_greater_the_better(name, expected):
    assert score(RESULTS, name) == pytest.approx(expected)


def test_the_score_of_the_average_is_the_average():
    without_errors = {"a": RESULTS["a"], "c": RESULTS["c"]}
    assert score(without_errors, "average") == average(without_errors)


def accuracies(values: list[float], history: EarlyStopping) -> dict[int, list[str]]:
    """Which tasks are stopped after which evaluation, of a task `a` with these accuracies."""
    stops = {step: history.add(step, {"a": {"accuracy": value}}) for step, value in enumerate(values, 1)}
    return {step: tasks for step, tasks in stops.items() if tasks}


@pytest.mark.parametrize(
    ("patience", "values", "stop"),
    [
        (1, [0.1, 0.2, 0.3, 0.3, 0.9], 4),  # as good is not better
        (2, [0.1, 0.3, 0.2, 0.25, 0.9], 4),  # better than the last, not better than ever
        (2, [0.1, 0.3, 0.2, 0.31, 0.3, 0.3], 6),  # each improvement begins the count anew
        (3, [0.1, 0.3, 0.2, 0.3], None),
        (2, [math.nan, math.nan, 0.5, math.nan, 0.4, 0.3], 6),  # what is not defined is neither better nor worse
    ],
)
def test_patience_counts_evaluations_in_a_row_without_improvement(patience, values, stop):
    history = EarlyStopping(patience={"a": patience})
    assert accuracies(values, history) == ({stop: ["a"]} if stop else {})
    assert history.stopped == ({"a": stop} if stop else {})


def test_it_goes_on_from_what_a_checkpoint_keeps():
    values = [0.1, 0.3, 0.2, 0.25, 0.9]
    whole = EarlyStopping("average", {"a": 2})
    accuracies(values, whole)
    for cut in range(1, 5):
        parts = EarlyStopping("average", {"a": 2})
        accuracies(values[:cut], parts)
        kept, parts = json.loads(json.dumps(parts.state_dict())), EarlyStopping("average", {"a": 2})
        parts.load_state_dict(kept)
        for step, value in enumerate(values[cut:], cut + 1):
            parts.add(step, {"a": {"accuracy": value}})
        assert parts == whole


def test_the_best_is_the_first_of_the_saved_with_the_best_metric():
    history = EarlyStopping("a/f1")
    for step, f1 in enumerate([0.2, 0.4, 0.4, math.nan, 0.3], 1):
        results = {"a": {"f1": f1, "accuracy": -f1}}
        assert history.is_best(results) == (step in (1, 2))
        history.saved(step, results)
    assert not history.is_best(None)
    assert history.best == {"step": 2, "a/f1": 0.4}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("averag", [], False, RESULTS),
            "training.metric_for_best_model: 'averag' is not measured; did you mean 'average'? (valid: a, a/accuracy, a/f1, average, b, b/mse, c, c/pearson)",
        ),
        (
            ("a/accurcy", [], False, RESULTS),
            "training.metric_for_best_model: 'a/accurcy' is not measured; did you mean 'a/accuracy'? (valid: a, a/accuracy, a/f1, average, b, b/mse, c, c/pearson)",
        ),
        (
            ("average", [], True, {}),
            "training.load_best_model_at_end: no task has validation rows, so none is the best",
        ),
        (
            ("average", ["d"], False, RESULTS),
            "tasks.d.patience: it has no validation rows with labels that would tell when to stop",
        ),
    ],
)
def test_what_no_evaluation_can_tell(arguments, said):
    with pytest.raises(UserError) as caught:
        check_stopping(*arguments)
    assert str(caught.value) == said
    check_stopping("average", ["a", "b"], True, RESULTS)
    check_stopping("average", [], False, {})


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(stoppable, mixture_config):
    mixture_config["training"] |= {"max_steps": 10, "eval_steps": 2, "save_steps": 3, "save_total_limit": None}
    return stoppable


def final_state(folder: Path) -> SavedState:
    return SavedState.read(checkpoints_in(folder)[0])


# The tiny model's accuracy on `animal` does not change in ten steps, so patience stops it at the second evaluation.
STOPPED = ["--tasks.animal.patience", "1"]


# Looks for a signal come once a step and before each task of an evaluation: 2 steps and 3 tasks are 5 looks. So 7 is
# the step of the stop, 8 to 10 are in its evaluation, and the signals before and after it come around step 3 and 5.
@pytest.mark.slow
@pytest.mark.parametrize(("stop_at", "adapters"), [(3, 0), (7, 0), (8, 1), (10, 0), (11, 0), (12, 1), (16, 0)])
def test_killed_before_or_after_a_stop_is_never_killed(run, mixture_config, tmp_path, stop_at, adapters):
    if adapters:
        mixture_config["adapters"] = {"rank": 2, "scope": "both", "dropout": 0.1}
    mixture_config["mixture"] = {"sampling": "temperature", "temperature": 1, "final_temperature": 5}
    assert run("whole", *STOPPED) == 0
    assert run("parts", *STOPPED, stop_at=stop_at) == 143
    assert run("parts", *STOPPED) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert final_state(tmp_path / "whole").stopped == final_state(tmp_path / "parts").stopped == {"animal": 4}


def test_a_stopped_task_stands_still_and_the_others_get_its_examples(run, tmp_path, capsys):
    # Without dropout: what it draws decides whether the accuracy changes after all.
    assert run("run", *STOPPED, "--training.save_steps", "1", "--model.dropout", "0.0") == 0
    assert "step 4: stopped, as it does not improve any more: animal" in capsys.readouterr().out
    lines = [line for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    examples = [{name: line[f"train/{name}/examples"] for name in ("similar", "animal", "choice")} for line in lines]
    assert [sum(of_step.values()) for of_step in examples] == [12 * step for step in range(1, 11)]
    assert [of_step["animal"] for of_step in examples] == [4, 8, 12, 16, *[16] * 6]
    gained = [examples[9][name] - examples[3][name] for name in ("similar", "choice")]
    assert gained == [24, 48]  # 72 in the proportion of 60 to 120 rows
    at = {step: load_file(tmp_path / f"run/checkpoints/{step_name(step)}/model.safetensors") for step in (3, 4, 10)}
    head = [name for name in at[4] if name.startswith("tasks.animal.") and ("classifier" in name or "pooler" in name)]
    assert len(head) == 4
    assert all(torch.equal(at[4][name], at[10][name]) for name in head)
    assert not any(torch.equal(at[3][name], at[4][name]) for name in head)
    assert not torch.equal(
        at[4]["encoder.encoder.layer.0.output.dense.weight"], at[10]["encoder.encoder.layer.0.output.dense.weight"]
    )
    assert "eval/animal/accuracy" in read_jsonl(tmp_path / "run" / "metrics.jsonl")[-2]  # it is still measured
    card = (tmp_path / "run" / "export" / "animal" / "README.md").read_text()
    assert "- Steps: 10; on this task up to step 4, as it no longer improved; the encoder went on" in card
    assert "- Steps: 10\n" in (tmp_path / "run" / "export" / "choice" / "README.md").read_text()


@pytest.mark.slow
def test_two_processes_background_workers_and_several_passes_stop_alike(
    run, mixture_config, write_config, program, tmp_path
):
    options = [*STOPPED, "--model.dropout", "0.0"]
    assert run("one", *options) == 0
    assert run("several", *options, "--training.max_tokens_per_pass", "60") == 0
    assert_same_curve(tmp_path / "one", tmp_path / "several")
    assert run("workers", *options, "--training.dataloader_num_workers", "2") == 0
    assert_same_run(tmp_path / "one", tmp_path / "workers")
    config = ["--config", write_config(mixture_config), "--training.output_dir", str(tmp_path / "two")]
    done = program(*config, *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    stopped = [final_state(tmp_path / name).stopped for name in ("one", "several", "workers", "two")]
    assert stopped == [{"animal": 4}] * 4


@pytest.mark.slow
def test_the_last_steps_are_logged_if_all_tasks_stop(run, mixture_config, tmp_path):
    """Also if the run is interrupted in the evaluation that stops them, and goes on."""
    mixture_config["training"]["logging_steps"] = 7
    for task in mixture_config["tasks"].values():
        task |= {"patience": 1, "metrics": []}
    assert run("run") == 0
    last = final_state(tmp_path / "run")
    logged = {line["step"]: line for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line}
    assert last.step < 10 and last.step % 7 and set(logged) == {*range(7, last.step, 7), last.step}
    assert logged[last.step]["train/grad_norm"] > 0 and last.window["steps"] == 0
    looks = last.step + 3 * (last.step // 2 - 1) + 2  # in the last evaluation, before its second task
    assert run("parts", stop_at=looks) == 143
    assert run("parts") == 0
    assert_same_run(tmp_path / "run", tmp_path / "parts")


@pytest.mark.slow
def test_when_the_last_task_stops_the_run_is_done(run, mixture_config, tmp_path, capsys):
    for task in mixture_config["tasks"].values():
        task["patience"] = 1
        task["metrics"] = []
    assert run("run") == 0
    last = final_state(tmp_path / "run")
    assert 4 <= last.step < 10 and set(last.stopped) == {"similar", "animal", "choice"}
    assert max(last.stopped.values()) == last.step
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == last.step
    before = numbers(tmp_path / "run")
    assert run("run") == 0  # it is only exported again
    assert numbers(tmp_path / "run") == before
    assert run("parts", stop_at=4) == 143
    assert run("parts") == 0
    assert_same_run(tmp_path / "run", tmp_path / "parts")


def exported_step(folder: Path) -> int:
    """The checkpoint that the export was made from, by its weights."""
    head = weights(folder)["choice.classifier.weight"]
    found = [
        path
        for path in checkpoints_in(folder)
        if torch.equal(load_file(path / "model.safetensors")["tasks.choice.classifier.weight"], head)
    ]
    assert len(found) == 1
    return SavedState.read(found[0]).step


# By similar/pearson, step 2 is the best of this run (0.80; later ones have 0.71 to 0.75).
BEST = ["--training.load_best_model_at_end", "true", "--training.metric_for_best_model", "similar/pearson"]


@pytest.mark.slow
def test_the_best_model_is_exported(run, tmp_path, capsys):
    assert run("last", "--training.save_steps", "null") == 0
    assert exported_step(tmp_path / "last") == 10
    capsys.readouterr()
    assert run("best", *BEST, "--training.save_steps", "null", "--training.save_total_limit", "1") == 0
    out = capsys.readouterr().out
    lines = [line for line in read_jsonl(tmp_path / "best" / "metrics.jsonl") if "eval/average" in line]
    values = {line["step"]: line["eval/similar/pearson"] for line in lines}
    best = max(values, key=lambda step: values[step])
    assert best == 2 and len(values) == 5  # not the last
    checkpoint = tmp_path / "best" / "checkpoints" / step_name(2)
    assert f"The best by similar/pearson was step 2, which is exported: {checkpoint}" in out
    assert exported_step(tmp_path / "best") == 2
    assert {path.name for path in checkpoints_in(tmp_path / "best")} == {step_name(2), step_name(10)}
    assert json.loads((tmp_path / "best" / "metrics.json").read_text())["step"] == 10
    card = (tmp_path / "best" / "export" / "similar" / "README.md").read_text()
    assert "- Steps: 2, the best by `similar/pearson`\n" in card and f"| pearson | {values[2]:.4f} |" in card
    assert final_state(tmp_path / "best").best == {"step": 2, "similar/pearson": values[2]}


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [6, 13])
def test_a_run_that_goes_on_exports_the_same_best(run, tmp_path, stop_at):
    assert run("whole", *BEST) == 0
    assert run("parts", *BEST, stop_at=stop_at) == 143
    assert run("parts", *BEST) == 0
    assert exported_step(tmp_path / "parts") == 2
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_the_best_comes_from_the_bucket_to_an_empty_disk(run, place, tmp_path, capsys):
    copies = [*BEST, "--checkpoints.remote", place, "--training.save_total_limit", "1", "--training.save_steps", "1"]
    assert run("whole", *BEST) == 0
    assert run("parts", *copies, stop_at=5) == 143  # in the evaluation of step 2, which is repeated
    assert run("parts", *copies, stop_at=9) == 143
    upload_checkpoint(tmp_path / "parts" / "checkpoints" / step_name(2), place)  # if it gave way to a newer one
    shutil.rmtree(tmp_path / "parts")
    assert run("parts", *copies) == 0
    assert "is lost" not in capsys.readouterr().out
    assert exported_step(tmp_path / "parts") == 2
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["damaged", "not copied"])
def test_a_best_that_is_lost_gives_way_to_a_later_one(run, place, tmp_path, capsys, how):
    copies = ["--checkpoints.remote", place, "--training.save_steps", "1"] if how == "not copied" else []
    assert run("parts", *BEST, *copies, stop_at=13) == 143
    if how == "damaged":
        damage("flipped", tmp_path / "parts" / "checkpoints" / step_name(2))
    else:
        delete_checkpoint(place, 2)
        shutil.rmtree(tmp_path / "parts")
    assert run("parts", *BEST, *copies) == 0
    assert (
        f"{step_name(2)} is lost, which was the best; the best is chosen among those to come"
        in capsys.readouterr().out
    )
    assert exported_step(tmp_path / "parts") == final_state(tmp_path / "parts").best["step"] > 4


@pytest.mark.slow
@pytest.mark.parametrize("where", ["a folder", "a place", "a copy"])
def test_the_best_beside_the_checkpoint_of_another_run_is_found(run, place, tmp_path, where):
    assert run("first", *BEST, stop_at=13) == 143
    there = checkpoints_in(tmp_path / "first")
    for checkpoint in there:
        upload_checkpoint(checkpoint, place)
    start = {"a folder": str(tmp_path / "first"), "a place": place, "a copy": f"{place}/{there[0].name}"}[where]
    assert run("other", *BEST, "--training.resume_from_checkpoint", start) == 0
    assert exported_step(tmp_path / "other") == 2


@pytest.mark.slow
def test_a_head_may_learn_at_a_rate_of_its_own(run, mixture_config, tmp_path):
    """How far AdamW's first step moves a weight is proportional to the rate."""
    one_step = ["--training.max_steps", "1", "--training.warmup_ratio", "0", "--training.weight_decay", "0"]
    one_step += ["--training.save_steps", "null"]
    assert run("start", *one_step, "--training.learning_rate", "1e-20") == 0
    assert run("same", *one_step) == 0
    assert run("faster", *one_step, "--tasks.animal.learning_rate", "5e-3") == 0
    start, same, faster = (weights(tmp_path / name) for name in ("start", "same", "faster"))
    checked = 0
    for name in start:
        is_own = name.startswith("animal.") and ("classifier" in name or "pooler" in name)
        if is_own and name.endswith("weight"):
            moved = [(after[name] - start[name]).abs().max().item() for after in (same, faster)]
            # Moves of about 1e-3, of weights of up to 1, which float32 rounds to 6e-8.
            assert moved[0] > 1e-4 and moved[1] == pytest.approx(5 * moved[0], rel=1e-3)
            checked += 1
        if not is_own:
            assert torch.equal(same[name], faster[name])
    assert checked == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--training.metric_for_best_model", "similar/pearsn"],
            "training.metric_for_best_model: 'similar/pearsn' is not measured; did you mean 'similar/pearson'? (valid: animal, animal/accuracy, average, choice, choice/accuracy, similar, similar/pearson, similar/spearmanr)",
        ),
        (
            [*STOPPED, "--tasks.animal.validation_split", "null", "--tasks.animal.data_files.validation", "null"],
            "tasks.animal.patience: it has no validation rows with labels that would tell when to stop",
        ),
        (
            ["--mixture.cap", "120"],
            "mixture.cap: 120 has no effect, as no task has more rows (the largest is choice with 120)",
        ),
        (
            ["--mixture.sampling", "unimax", "--mixture.max_epochs", "0.25"],
            "mixture.max_epochs: 0.25 times the 270 rows of all tasks are fewer than the run's 120 examples; at least 0.45 is needed",
        ),
    ],
)
def test_what_the_data_do_not_allow_is_told_before_training(run, mixture_config, tmp_path, options, said):
    if "null" in options:
        del mixture_config["tasks"]["animal"]["data_files"]["validation"]
        options = options[:4]
    with pytest.raises(UserError) as caught:
        run("run", *options)
    assert str(caught.value) == said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("made", "changed", "said"),
    [
        (STOPPED, ["--training.eval_steps", "3"], "training.eval_steps was 2, is 3"),
        (BEST, ["--training.eval_steps", "3"], "training.eval_steps was 2, is 3"),
        (STOPPED, ["--tasks.animal.patience", "2"], "tasks.animal.patience was 1, is 2"),
        ([], ["--tasks.animal.learning_rate", "1"], "tasks.animal.learning_rate was null, is 1.0"),
        ([], ["--mixture.cap", "100"], "mixture.cap was null, is 100"),
    ],
)
def test_what_changes_the_result_is_refused_by_a_run_that_goes_on(run, tmp_path, made, changed, said):
    assert run("run", *made, stop_at=3) == 143
    with pytest.raises(UserError, match="holds a run of another configuration") as caught:
        run("run", *made, *changed)
    assert said in str(caught.value)


@pytest.mark.slow
def test_the_resolved_configuration_repeats_a_run_with_everything(run, mixture_config, tmp_path):
    mixture_config["mixture"] = {"sampling": "unimax", "max_epochs": 0.6}
    assert run("run", *STOPPED, *BEST, "--tasks.choice.learning_rate", "2e-3") == 0
    command = read_command(
        ["--config", str(tmp_path / "run" / "config.yaml"), "--training.output_dir", str(tmp_path / "again")]
    )
    assert run_multitask.train(command, Accelerator(cpu=True)) == 0
    assert_same_run(tmp_path / "run", tmp_path / "again")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["mixture"]["max_epochs"] == 0.6
