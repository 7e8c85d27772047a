"""Stopping a run, keeping others out of it, making it longer, beginning with what another one has learned."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from helpers.paths import ROOT
from helpers.runs import curve, start, wait_for_step
from helpers.tasks import TASKS, read_jsonl
from safetensors.torch import load_file

from multitask.checkpoints.manifest import checkpoints_in
from multitask.cli.arguments import read_command
from multitask.errors import UserError
from multitask.training.signals import caught_signals
from multitask.training.state import SavedState

LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--quiet",
    "--config_file",
    "accelerate_configs/cpu.yaml",
]
ENDLESS = ["--training.max_steps", "100000", "--training.logging_steps", "1", "--training.save_steps", "null"]
COMMANDS = {
    "python": [sys.executable],
    "accelerate": LAUNCH,
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
@pytest.mark.parametrize("launcher", COMMANDS)
def test_a_signal_to_the_command_saves_and_ends_everything(mixture_config, write_config, tmp_path, launcher, number):
    folder = tmp_path / "run"
    command = [*COMMANDS[launcher], str(ROOT / "run_multitask.py"), "--config", write_config(mixture_config), *ENDLESS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with heard(number, signal.SIG_DFL):  # these tests may run under nohup or in the background
        started = subprocess.Popen(command, cwd=ROOT, **pipes)
    wait_for_step(folder, 3, started)
    family = psutil.Process(started.pid).children(recursive=True)
    started.send_signal(number)
    status = started.wait(timeout=120)
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left, f"orphans: {left}"
    said = started.stderr.read()
    if launcher == "python":
        assert status == 128 + number
        assert f"{number.name}: this step is finished and saved; again ends at once" in said
    elif launcher == "accelerate":  # which ends by the signal; a shell calls that 128 + its number
        assert status in (-number, 128 + number, 1 if number == signal.SIGINT else -number), said
    else:
        assert status != 0
    (checkpoint,) = checkpoints_in(folder)
    assert SavedState.read(checkpoint).step >= 3


@contextlib.contextmanager
def heard(number, handler):
    """What a process that is started inside inherits."""
    before = signal.signal(number, handler)
    yield
    signal.signal(number, before)


def test_nohup_keeps_a_run_alive():
    with heard(signal.SIGHUP, signal.SIG_IGN), caught_signals() as stop_signal:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop_signal() == 0
    with heard(signal.SIGHUP, signal.SIG_DFL), caught_signals() as stop_signal:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop_signal() == signal.SIGHUP
    with heard(signal.SIGINT, signal.SIG_IGN), caught_signals() as stop_signal:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_signal() == signal.SIGINT


@pytest.mark.slow
def test_a_second_process_is_kept_out_until_the_first_is_gone(mixture_config, write_config, program, tmp_path):
    folder, path = tmp_path / "run", write_config(mixture_config)
    first = start(path, folder, *ENDLESS)
    wait_for_step(folder, 2, first)
    second = program("--config", path, *ENDLESS)
    assert second.returncode == 2
    expected = f"error: training.output_dir: {folder} is in use by process {first.pid} on "
    assert second.stderr.startswith(expected) and "give this run another folder" in second.stderr, second.stderr
    first.kill()
    first.wait()
    assert (folder / ".lock").exists()  # left behind, and no lock any more
    third = program("--config", path, "--training.max_steps", "4")
    assert third.returncode == 0, third.stderr


def test_a_folder_that_was_made_for_a_run_that_cannot_begin_is_removed(
    mixture_config, write_config, program, tmp_path
):
    mixture_config["tasks"]["animal"]["inputs"] = ["nothing"]
    folder = tmp_path / "deep" / "run"
    done = program("--config", write_config(mixture_config), "--training.output_dir", str(folder))
    assert done.returncode == 2 and not (tmp_path / "deep").exists(), done.stderr


def test_a_finished_run_can_become_longer(train, tmp_path, capsys):
    folder = train("--training.max_steps", "3")
    capsys.readouterr()
    assert train("--training.max_steps", "5") == folder
    said = capsys.readouterr().out
    assert "step 3: the run has 5 steps now (it had 3); the learning rate follows the new length" in said
    rates = {
        line["step"]: line["train/learning_rate"]
        for line in read_jsonl(folder / "metrics.jsonl")
        if "train/learning_rate" in line
    }
    assert list(rates) == [1, 2, 3, 4, 5] and rates[3] == 0 < rates[4] > rates[5] == 0
    assert {"step": 3, "run/max_steps": 5}.items() <= {
        key: value
        for line in read_jsonl(folder / "metrics.jsonl")
        if "run/max_steps" in line
        for key, value in line.items()
    }.items()
    assert json.loads((folder / "metrics.json").read_text())["step"] == 5
    with pytest.raises(
        UserError, match=r"training.max_steps: 4 steps, but .* has done 5 already; a run can become longer, not"
    ):
        train("--training.max_steps", "4")


def test_a_finished_run_goes_on_in_another_folder(train, tmp_path):
    folder = train("--training.max_steps", "3")
    (checkpoint,) = checkpoints_in(folder)
    options = ["--training.max_steps", "3", "--training.resume_from_checkpoint", str(checkpoint)]
    other = train(*options, "--training.output_dir", str(tmp_path / "other"))
    for task in TASKS:
        name = f"export/{task}/model.safetensors"
        assert (other / name).read_bytes() == (folder / name).read_bytes()
    assert SavedState.read(checkpoints_in(other)[0]).step == 3


def test_a_new_run_begins_with_what_another_has_learned(train, mixture_config, tmp_path, capsys):
    earlier = train("--training.max_steps", "3")
    learned = load_file(checkpoints_in(earlier)[0] / "model.safetensors")
    del mixture_config["tasks"]["choice"]
    mixture_config["tasks"]["animal"]["label"] = "b"  # other labels
    mixture_config["tasks"]["animal"]["max_train_examples"] = 5
    del mixture_config["tasks"]["animal"]["data_files"]["validation"]
    mixture_config["tasks"]["animal"]["validation_split"] = None
    mixture_config["tasks"]["again"] = mixture_config["tasks"]["similar"]
    options = ["--training.init_from_checkpoint", str(earlier), "--training.learning_rate", "1e-12"]
    folder = train(*options, "--training.max_steps", "1", "--training.output_dir", str(tmp_path / "new"))
    said = capsys.readouterr().out
    assert "and with the heads of similar; new heads: animal (other labels there), again (not in that run)" in said
    weights = load_file(checkpoints_in(folder)[0] / "model.safetensors")
    for name, weight in weights.items():
        if name.startswith(("encoder.", "tasks.similar.")):
            torch.testing.assert_close(weight, learned[name], rtol=0, atol=1e-6)
    assert not torch.allclose(weights["tasks.again.classifier.weight"], learned["tasks.similar.classifier.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.init_from_checkpoint", "nowhere"], "training.init_from_checkpoint: nowhere is no folder"),
        (
            ["--training.init_from_checkpoint", "EARLIER", "--adapters.rank", "2"],
            "has trained its encoder, which this run leaves frozen and would not save; to put adapters or heads on it, "
            "use an exported model: --model.encoder EARLIER/export/TASK",
        ),
    ],
)
def test_what_a_run_cannot_begin_with(train, tmp_path, options, message):
    earlier = str(train("--training.max_steps", "1"))
    options = [option.replace("EARLIER", earlier) for option in options]
    with pytest.raises(UserError) as found:
        train(*options, "--training.output_dir", str(tmp_path / "new"))
    assert message.replace("EARLIER", earlier) in str(found.value)


def test_advice_about_adapters_on_a_trained_encoder_works(train, tmp_path):
    earlier = train("--training.max_steps", "1")
    options = ["--model.encoder", f"{earlier}/export/animal", "--adapters.rank", "2", "--training.max_steps", "1"]
    assert len(curve(train(*options, "--training.output_dir", str(tmp_path / "new")))) == 1


def test_a_run_is_removed_where_that_is_asked_for(train, mixture_config, tmp_path):
    folder = train("--training.max_steps", "2")
    with pytest.raises(UserError, match="remove that run with --training.overwrite_output_dir true"):
        train("--training.max_steps", "2", "--training.seed", "5")
    train("--training.max_steps", "2", "--training.seed", "5", "--training.overwrite_output_dir", "true")
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"]["seed"] == 5
    assert len(curve(folder)) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    options = ["--training.output_dir", str(tmp_path / "mine"), "--training.overwrite_output_dir", "true"]
    with pytest.raises(
        UserError, match="holds no run but thesis.txt, which is not removed; give the run a new folder"
    ):
        train(*options)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_some_of_the_tasks_alone(train, mixture_config, write_config):
    mixture_config["mixture"] = {"sampling": "weights", "weights": {"similar": 1, "animal": 2, "choice": 3}}
    folder = train("--only", "animal, choice", "--training.max_steps", "1")
    content = yaml.safe_load((folder / "config.yaml").read_text())
    assert list(content["tasks"]) == ["animal", "choice"] and content["mixture"]["weights"] == {
        "animal": 2,
        "choice": 3,
    }
    assert {path.name for path in (folder / "export").iterdir()} == {"animal", "choice"}
    for words, message in (
        (["--only", "animl"], "--only: there is no task 'animl'; did you mean 'animal'?"),
        (["--only", ","], "--only: names no task"),
        (
            ["--only", "animal", "--mode", "evaluate", "--checkpoint", str(folder)],
            "--only: has no effect with --mode evaluate",
        ),
    ):
        with pytest.raises(UserError) as found:
            read_command(["--config", write_config(mixture_config), *words])
        assert str(found.value).startswith(message)


def test_a_dry_run_does_not_mind_what_is_in_the_folder(train, mixture_config, write_config, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    train("--dry_run")
    said = capsys.readouterr().out
    assert "run: 6 steps, evaluated once, saved once; the time that is left stands beside the progress" in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["something"]


@pytest.mark.slow
def test_a_log_gets_whole_lines(mixture_config, write_config, program, tmp_path):
    """`kubectl logs` and Slurm show nothing of a line before it ends; a run of seconds needs no lines of progress."""
    done = program("--config", write_config(mixture_config), fresh=True, HF_HOME=str(tmp_path / "cache"))
    assert "\r" not in done.stderr and "\x1b" not in done.stderr
    assert "step 6: evaluated in " in done.stdout and "  animal   accuracy 0." in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_launcher_is_known_by_its_command(tmp_path):
    from multitask.training.signals import is_launcher

    def answer(*words: str) -> bool:
        process = subprocess.Popen(list(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.1)
            return is_launcher(psutil.Process(process.pid))
        finally:
            process.kill()
            process.wait()

    script = tmp_path / "accelerate"
    script.write_text("import time\ntime.sleep(60)\n")
    assert answer(sys.executable, str(script), "launch", "run_multitask.py")
    assert not answer(sys.executable, str(script), "config")
    assert not answer("sleep", "60") and not is_launcher(None)
    assert not is_launcher(psutil.Process(os.getpid()))


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_have_the_mode_that_the_umask_gives(train, umask):
    before = os.umask(umask)
    try:
        folder = train("--training.max_steps", "1")
    finally:
        os.umask(before)
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock")]
    assert sum(path.suffix == ".safetensors" for path in files) == 5
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~umask)}
