"""A run that is stopped and goes on is the run that was never stopped, bit for bit."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers.runs import (
    assert_same_curve,
    assert_same_run,
    assert_same_weight,
    damage,
    numbers,
    start,
    wait_for_step,
    weights,
)
from helpers.tasks import make_rows, read_jsonl, write_jsonl
from safetensors.torch import load_file

import run_multitask
from multitask.checkpoints.format import LAST_WEIGHTS
from multitask.checkpoints.manager import prune
from multitask.checkpoints.manifest import checkpoints_in, step_name, verify, write_manifest
from multitask.checkpoints.remote import list_checkpoints
from multitask.errors import UserError
from multitask.tasks.metrics import average
from multitask.training.state import SavedState


@pytest.fixture
def run(stoppable, mixture_config):
    mixture_config["training"] |= {"max_steps": 8, "eval_steps": 3, "save_steps": 3, "logging_steps": 2}
    return stoppable


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", range(1, 12))
def test_stopped_anywhere_and_resumed_is_never_stopped(run, tmp_path, stop_at, capsys):
    """Looks for a signal come once a step and before each task of an evaluation, so some fall into one."""
    assert run("whole") == 0
    assert run("parts", stop_at=stop_at) == 143
    assert "stopped by a signal; step" in capsys.readouterr().out
    step = SavedState.read(checkpoints_in(tmp_path / "parts")[0]).step
    assert 1 <= step < 8
    assert run("parts") == 0
    assert f"going on from {tmp_path / 'parts' / 'checkpoints' / f'step-{step:08}'}" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_stopped_at_every_step(run, tmp_path):
    assert run("whole") == 0
    statuses = []
    while not statuses or statuses[-1]:
        statuses.append(run("parts", stop_at=4))  # the evaluation of a step takes three looks, and comes again
    assert 3 <= len(statuses) <= 8
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("adapters", ["per_task", "both"])
def test_adapters_and_idle_heads_go_on_too(run, mixture_config, tmp_path, adapters):
    mixture_config["adapters"] = {"rank": 2, "scope": adapters, "dropout": 0.1}
    mixture_config["mixture"] = {"sampling": "weights", "weights": {"similar": 0.04, "animal": 0.3, "choice": 0.66}}
    assert run("whole") == 0
    assert run("parts", stop_at=4) == 143
    assert run("parts") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("stop_at", "step"), [(4, 3), (11, 6)])  # before the average begins, and within it
def test_an_average_of_the_weights_goes_on_too(run, mixture_config, tmp_path, stop_at, step):
    mixture_config["training"] |= {"weight_averaging": 0.5, "save_steps": 1, "save_total_limit": None}
    assert run("whole") == 0
    assert run("parts", stop_at=stop_at) == 143
    assert SavedState.read(checkpoints_in(tmp_path / "parts")[0]).step == step
    assert run("parts") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    folders = checkpoints_in(tmp_path / "whole")[::-1]
    is_average = [(folder / LAST_WEIGHTS).exists() for folder in folders]
    assert is_average == [False] * 4 + [True] * 4
    last = [load_file(folder / LAST_WEIGHTS) for folder in folders[4:]]
    found = load_file(folders[-1] / "model.safetensors")
    for name, tensor in found.items():
        expected = torch.stack([of[name].double() for of in last]).mean(0)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7)
    name = next(name for name in found if "similar" in name)
    exported = load_file(tmp_path / "whole" / "export" / "similar" / "model.safetensors")
    own = name.removeprefix("tasks.similar.")
    assert torch.equal(exported[own], found[name]) and not torch.equal(found[name], last[-1][name])

    del mixture_config["training"]["weight_averaging"]  # training itself is the same without
    assert run("plain") == 0
    without = load_file(checkpoints_in(tmp_path / "plain")[0] / "model.safetensors")
    assert without.keys() == last[-1].keys() and all(torch.equal(without[of], last[-1][of]) for of in without)


def test_the_average_is_what_is_evaluated(run, mixture_config, tmp_path, monkeypatch, capsys):
    """As `--mode evaluate` finds with the exported weights; the last ones, put in their place, give other losses."""
    mixture_config["training"] |= {"weight_averaging": 0.9, "learning_rate": 1e-2}
    assert run("whole") == 0
    losses = {"run": json.loads((tmp_path / "whole" / "metrics.json").read_text())["losses"]}
    checkpoint = checkpoints_in(tmp_path / "whole")[0]
    for name in ("average", "last"):
        if name == "last":
            shutil.copy(checkpoint / LAST_WEIGHTS, checkpoint / "model.safetensors")
            digest = hashlib.sha256(SavedState.read(checkpoint).to_json().encode()).hexdigest()
            write_manifest(checkpoint, step=8, config_digest=digest, versions={})
        output = tmp_path / f"{name}.json"
        argv = ["run_multitask.py", "--mode", "evaluate", "--checkpoint", str(checkpoint), "--output", str(output)]
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit):
            run_multitask.main()
        losses[name] = json.loads(output.read_text())["losses"]
    assert losses["run"] == pytest.approx(losses["average"], rel=1e-5)
    assert losses["run"] != pytest.approx(losses["last"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_average_the_same(run, mixture_config, write_config, program, tmp_path, sharded):
    """Also where each holds a part of the weights; halfway, one goes on with what two have saved."""
    mixture_config["training"] |= {
        "weight_averaging": 0.5,
        "layerwise_lr_decay": 0.7,
        "logging_steps": 1,
        "save_steps": 6,
    }
    mixture_config["training"]["save_total_limit"] = None
    plain = ["--model.dropout", "0.0"]
    assert run("one", *plain) == 0
    options = ["--config", write_config(mixture_config), "--training.output_dir", str(tmp_path / "two"), *plain]
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharded else {}
    done = program(*options, processes=2, **environment)
    assert done.returncode == 0, done.stderr
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in first:
        assert_same_weight(name, first[name], second[name])
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-00000008")
    assert run("two", *plain) == 0
    for name, weight in weights(tmp_path / "two").items():
        assert_same_weight(name, first[name], weight)


def test_a_finished_run_is_only_exported_again(run, tmp_path, capsys):
    assert run("whole") == 0
    before, lines = (tmp_path / "whole" / "metrics.json").read_text(), numbers(tmp_path / "whole")
    capsys.readouterr()
    assert run("whole") == 0
    assert (tmp_path / "whole" / "metrics.json").read_text() == before and numbers(tmp_path / "whole") == lines
    assert "step-00000008" in capsys.readouterr().out


@pytest.mark.slow
def test_another_number_of_processes_goes_on(run, mixture_config, write_config, program, tmp_path):
    mixture_config["training"]["logging_steps"] = 1
    plain = ["--model.dropout", "0.0"]  # masks are drawn by each process
    assert run("whole", *plain) == 0
    assert run("parts", *plain, stop_at=3) == 143
    options = ["--config", write_config(mixture_config), "--training.output_dir", str(tmp_path / "parts"), *plain]
    done = program(*options, processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_curve(tmp_path / "whole", tmp_path / "parts")

    # And back: what two processes have saved, one goes on from.
    last, before, *_ = checkpoints_in(tmp_path / "parts")
    assert SavedState.read(before).step == 6
    shutil.rmtree(last)
    assert run("parts", *plain) == 0
    assert_same_curve(tmp_path / "whole", tmp_path / "parts")


# -- as a user's machine ends it ---------------------------------------------------------------------------------------


LONG = ["--training.max_steps", "400", "--training.eval_steps", "null", "--training.logging_steps", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_with_its_status(mixture_config, write_config, tmp_path, number, status):
    config = write_config(mixture_config)
    process = start(config, tmp_path / "run", *LONG, "--training.dataloader_num_workers", "1")
    wait_for_step(tmp_path / "run", 5, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    (checkpoint,) = checkpoints_in(tmp_path / "run")
    verify(checkpoint)
    step = SavedState.read(checkpoint).step
    assert 5 <= step < 400 and f"stopped by a signal; step {step} of 400 is saved in" in out
    assert "Traceback" not in err
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-2]["step"] == step  # the step was finished, and no other


@pytest.mark.slow
def test_two_processes_end_together_and_go_on(mixture_config, write_config, program, tmp_path):
    mixture_config["model"]["dropout"] = 0.1
    config = write_config(mixture_config)
    few = [*LONG, "--training.max_steps", "40"]
    whole = program("--config", config, *few, "--training.output_dir", str(tmp_path / "whole"), processes=2)
    assert whole.returncode == 0, whole.stderr
    process = start(config, tmp_path / "parts", *few, processes=2)
    wait_for_step(tmp_path / "parts", 4, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert 4 <= SavedState.read(checkpoints_in(tmp_path / "parts")[0]).step < 40
    rest = program("--config", config, *few, "--training.output_dir", str(tmp_path / "parts"), processes=2)
    assert rest.returncode == 0, rest.stderr
    assert "going on from" in rest.stdout
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


# -- what a checkpoint is worth ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flipped", "short", "missing", "manifest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, tmp_path, kind, capsys):
    assert run("whole") == 0
    assert run("parts", stop_at=13) == 143  # after step 6, of which the evaluation was done
    newest, before, *_ = checkpoints_in(tmp_path / "parts")
    reason = damage(kind, newest)
    assert run("parts") == 0
    out = capsys.readouterr().out
    assert f"{newest} is damaged and set aside as {newest.name}.damaged: {reason.replace(f'{newest}/', '')}" in out
    assert f"going on from {before}" in out
    assert newest.with_name(newest.name + ".damaged").is_dir()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(UserError, match=f"training.resume_from_checkpoint: .*{newest.name}.damaged is damaged: "):
        run("other", "--training.resume_from_checkpoint", str(newest.with_name(newest.name + ".damaged")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--training.seed", "1", "training.seed was 0, is 1"),
        ("--training.batch_size", "6", "training.batch_size was 12, is 6"),
        ("--training.warmup_ratio", "0.5", "training.warmup_ratio was 0.06, is 0.5"),
        ("--model.dropout", "0.2", "model.dropout was 0.1, is 0.2"),
        ("--tasks.animal.weight", "2", "tasks.animal.weight was 1.0, is 2.0"),
    ],
)
def test_settings_that_change_the_result_are_refused(run, tmp_path, option, value, said):
    assert run("run", stop_at=3) == 143
    for chosen in (str(tmp_path / "run"), str(checkpoints_in(tmp_path / "run")[0])):
        with pytest.raises(UserError) as caught:
            run("other", option, value, "--training.resume_from_checkpoint", chosen)
        assert f"was made with other settings ({said}); make them as they were" in str(caught.value)
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="holds a run of another configuration"):
        run("run", option, value)


@pytest.mark.slow
def test_other_settings_are_accepted(run, tmp_path):
    assert run("run", stop_at=3) == 143
    harmless = ["--training.logging_steps", "5", "--training.save_steps", "4", "--training.save_total_limit", "null"]
    assert run("run", *harmless, "--training.dataloader_num_workers", "1", "--training.eval_steps", "null") == 0


def test_data_that_have_changed_are_refused(run, mixture_config, tmp_path):
    assert run("run", stop_at=3) == 143
    path = write_jsonl(tmp_path / "fewer.jsonl", make_rows("regression", 59))
    Path(mixture_config["tasks"]["similar"]["data_files"]["train"]).rename(tmp_path / "kept")
    try:
        os.link(path, mixture_config["tasks"]["similar"]["data_files"]["train"])
        with pytest.raises(
            UserError, match=r"the train rows of task similar were 60, are 59\); make them as they were"
        ):
            run("run")
    finally:
        (tmp_path / "kept").rename(mixture_config["tasks"]["similar"]["data_files"]["train"])


@pytest.mark.slow
def test_a_run_may_begin_anew(run, tmp_path, capsys):
    assert run("run", stop_at=3) == 143
    (old,) = checkpoints_in(tmp_path / "run")
    assert run("run", "--training.resume_from_checkpoint", "never") == 0
    assert f"{old} is removed, as this run begins anew" in capsys.readouterr().out
    assert run("whole") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_another_run_goes_on_in_a_folder_of_its_own(run, tmp_path):
    assert run("run", stop_at=3) == 143
    assert run("other", "--training.resume_from_checkpoint", str(tmp_path / "run")) == 0
    assert run("whole") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "other")


@pytest.mark.slow
def test_the_newest_and_the_best_are_kept(run, tmp_path):
    often = ["--training.save_steps", "1", "--training.eval_steps", "2"]
    assert run("all", *often, "--training.save_total_limit", "null") == 0
    states = [SavedState.read(path) for path in checkpoints_in(tmp_path / "all")]
    assert [state.step for state in states] == [8, 7, 6, 5, 4, 3, 2, 1]
    averages = {state.step: average(state.results) for state in reversed(states) if state.results}
    assert sorted(averages) == [2, 4, 6, 8]
    best = max(averages, key=lambda step: averages[step])
    assert states[0].best == {"step": best, "average": averages[best]}
    assert run("few", *often, "--training.save_total_limit", "2") == 0
    assert {SavedState.read(path).step for path in checkpoints_in(tmp_path / "few")} == {7, 8} | {best}


def test_what_is_deleted(tmp_path):
    def left(limit, best, busy=frozenset()):
        for step in range(1, 6):
            (tmp_path / "checkpoints" / step_name(step)).mkdir(parents=True, exist_ok=True)
            (tmp_path / "checkpoints" / step_name(step) / "manifest.json").touch()
        prune(tmp_path, limit, best, {tmp_path / "checkpoints" / step_name(step) for step in busy})
        return sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir())

    assert left(2, 2) == [2, 4, 5] and left(2, 5) == [4, 5] and left(1, None) == [5]
    assert left(1, 3, busy={1}) == [1, 3, 5]
    assert left(None, None) == [1, 2, 3, 4, 5]


def test_a_checkpoint_is_read_without_pickle(run, tmp_path):
    assert run("run") == 0
    files = {
        p.relative_to(tmp_path / "run" / "checkpoints").as_posix()
        for p in (tmp_path / "run" / "checkpoints").rglob("*")
        if p.is_file()
    }
    best = SavedState.read(checkpoints_in(tmp_path / "run")[0]).best["step"]
    assert {name.split("/")[0] for name in files} == {step_name(step) for step in {6, 8, best}}
    assert {Path(name).suffix for name in files} == {".safetensors", ".json", ".jsonl", ".yaml", ".parquet"}
    checkpoint = checkpoints_in(tmp_path / "run")[0]
    weights, memory = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "optimizer"))
    assert {name.rpartition("/")[0] for name in memory} == weights.keys()
    # Each weight once, and twice as much for AdamW's two moments, with a step number for each.
    sizes = [sum(t.numel() for t in tensors.values()) for tensors in (weights, memory)]
    assert sizes[1] == 2 * sizes[0] + len(weights)


# -- copies in a bucket ------------------------------------------------------------------------------------------------


def after_the_check(fault):
    """What happens to uploads, but for the first one, with which a run tries whether it may write."""
    uploads = itertools.count()
    return lambda method, path: fault if method == "POST" and "/upload/" in path and next(uploads) else None


@pytest.mark.slow
def test_on_an_empty_disk_it_goes_on_from_the_bucket(run, bucket, place, tmp_path, capsys):
    copies = ["--checkpoints.remote", place]
    assert run("whole") == 0
    for stop_at in (2, 5, 2):
        assert run("parts", *copies, stop_at=stop_at) == 143
        shutil.rmtree(tmp_path / "parts")
    capsys.readouterr()
    assert run("parts", *copies) == 0
    out = capsys.readouterr().out
    assert f"is fetched from {place}" in out and "going on from" in out
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    steps = list_checkpoints(place)
    assert steps[-1] == 8 and 2 <= len(steps) <= 3  # the newest two, and the best
    names = {blob.name.removeprefix("runs/a/") for blob in bucket.list_blobs()}
    for path in (p for p in (tmp_path / "parts" / "export").rglob("*") if p.is_file()):
        assert path.relative_to(tmp_path / "parts").as_posix() in names
    lines = [line for line in read_jsonl(tmp_path / "parts" / "metrics.jsonl") if "checkpoint/upload_seconds" in line]
    assert lines and all(line["checkpoint/upload_seconds"] > 0 for line in lines)


@pytest.mark.slow
def test_killed_as_it_had_fetched_a_checkpoint(run, place, tmp_path):
    """Its folder holds checkpoints and nothing that says what run it is."""
    copies = ["--checkpoints.remote", place]
    assert run("whole") == 0
    assert run("parts", *copies, stop_at=5) == 143
    for path in (tmp_path / "parts").iterdir():
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "parts" / "config.yaml.partial").write_text("mod")
    for others in ([], [*copies, "--training.resume_from_checkpoint", "never"]):
        with pytest.raises(UserError, match="parts holds no run but checkpoints; give the run a new folder"):
            run("parts", *others)
    with pytest.raises(UserError, match="training.seed was 0, is 1"):
        run("parts", *copies, "--training.seed", "1")
    assert run("parts", *copies) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_what_is_damaged_here_comes_from_the_bucket(run, place, tmp_path, capsys):
    assert run("whole") == 0
    assert run("parts", "--checkpoints.remote", place, stop_at=6) == 143
    newest = checkpoints_in(tmp_path / "parts")[0]
    damage("flipped", newest)
    assert run("parts", "--checkpoints.remote", place) == 0
    out = capsys.readouterr().out
    assert f"{newest} is damaged and set aside" in out and f"{newest} is fetched from {place}" in out
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_damaged_copy_gives_way_to_the_one_before(run, bucket, place, tmp_path, capsys):
    assert run("whole") == 0
    assert run("parts", "--checkpoints.remote", place, stop_at=12) == 143
    shutil.rmtree(tmp_path / "parts")
    step = list_checkpoints(place)[-1]
    bucket.blob(f"runs/a/{step_name(step)}/model.safetensors").upload_from_string(b"something else")
    assert run("parts", "--checkpoints.remote", place) == 0
    assert f"{place}/{step_name(step)} is damaged: " in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["the newest", "that one"])
def test_a_run_goes_on_from_a_url(run, place, tmp_path, which):
    assert run("whole") == 0
    assert run("first", "--checkpoints.remote", place, stop_at=6) == 143
    url = place if which == "the newest" else f"{place}/{step_name(list_checkpoints(place)[0])}"
    assert run("parts", "--training.resume_from_checkpoint", url) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(UserError, match="there is no whole checkpoint in gs://.*/nowhere"):
        run("other", "--training.resume_from_checkpoint", f"{place}/nowhere")


@pytest.mark.slow
def test_other_settings_than_those_of_the_copy_are_refused(run, place, tmp_path):
    assert run("first", "--checkpoints.remote", place, stop_at=6) == 143
    with pytest.raises(UserError, match=r"was made with other settings \(training.seed was 0, is 1\)"):
        run("second", "--checkpoints.remote", place, "--training.seed", "1")


@pytest.mark.slow
def test_what_could_not_be_uploaded_stays_and_is_said(run, proxy, place, tmp_path, capsys):
    assert run("whole") == 0
    proxy.fault = after_the_check("403")
    assert run("parts", "--checkpoints.remote", place) == 1
    printed = capsys.readouterr()
    assert f"{place}: the last checkpoint is not there; it stays on this machine" in printed.out
    assert "copying" in printed.out + printed.err and list_checkpoints(place) == []
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    proxy.fault = after_the_check("403")
    assert run("stopped", "--checkpoints.remote", place, stop_at=3) == 1  # and not 143: a copy was wanted
    assert checkpoints_in(tmp_path / "stopped") and proxy.injected["403"] > 2


@pytest.mark.slow
def test_a_run_that_begins_anew_needs_a_place_of_its_own(run, place, tmp_path):
    """The steps of the earlier run would be the newest of it for ever."""
    assert run("first", "--checkpoints.remote", place, stop_at=6) == 143
    before = list_checkpoints(place)
    with pytest.raises(
        UserError,
        match=f"checkpoints.remote: {place} holds checkpoints of an earlier run, up to step 3; a run that begins",
    ):
        run("first", "--checkpoints.remote", place, "--training.resume_from_checkpoint", "never")
    assert list_checkpoints(place) == before and checkpoints_in(tmp_path / "first")  # nothing is lost


def test_a_bucket_without_access_is_told_before_training(run, proxy, place, tmp_path):
    proxy.fault = lambda method, path: "403" if method == "POST" else None
    with pytest.raises(UserError, match="the permission storage.objects.create on the bucket .* is missing"):
        run("run", "--checkpoints.remote", place)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_upload_does_not_hold_the_training_up(run, proxy, place, tmp_path):
    """All of the training's steps are done while the bucket takes nothing at all."""
    gate = threading.Event()
    steps_then: list[int] = []

    proxy.fault = after_the_check(lambda: gate.wait(60))

    def watch() -> None:
        path = tmp_path / "run" / "metrics.jsonl"
        while not (path.exists() and '"step": 8,' in path.read_text()):
            time.sleep(0.01)
        steps_then.append(8)
        gate.set()

    thread = threading.Thread(target=watch)
    thread.start()
    assert run("run", "--checkpoints.remote", place, "--training.save_steps", "1") == 0
    thread.join()
    assert steps_then == [8] and list_checkpoints(place)[-1] == 8
