"""What happens to runs on machines that vanish, as often as `make drill` wants it."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import side_by_side
from helpers.paths import ROOT
from helpers.runs import assert_same_run, numbers

from multitask.checkpoints.manifest import checkpoints_in, verify
from multitask.checkpoints.remote import list_checkpoints, verify_checkpoint

pytestmark = pytest.mark.drill


@pytest.fixture
def options(mixture_config, write_config):
    """Of a run that saves often and has dropout."""
    mixture_config["model"]["dropout"] = 0.1
    mixture_config["training"] |= {"eval_steps": 50, "save_steps": 3, "logging_steps": 1, "dataloader_num_workers": 0}
    return ["--config", write_config(mixture_config)]


def start(options, folder, log, processes=1):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, str(ROOT / "run_multitask.py"), *options]
    with log.open("a") as file:
        return subprocess.Popen(
            [*command, "--training.output_dir", str(folder)],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def wait_for_training(folder: Path, process: subprocess.Popen, log: Path) -> None:
    """Until a process has logged a step of its own."""
    path, size = folder / "metrics.jsonl", None
    while process.poll() is None:
        with contextlib.suppress(OSError):
            found = path.stat()
            if found.st_mtime > process.started and size not in (None, found.st_size):
                return
            size = found.st_size if found.st_mtime > process.started else None
        time.sleep(0.005)
    raise AssertionError(f"the run ended by itself, with status {process.returncode}: {log.read_text()[-3000:]}")


@pytest.mark.slow
def test_kills(options, place, bucket, tmp_path, drill):
    """SIGKILL at random moments; the disk of the machine is kept or lost; another one goes on."""
    rng = random.Random(0)
    kills, counted = drill(4, 50), Counter()
    options += ["--training.max_steps", str(60 * kills)]
    log, folder = tmp_path / "log", tmp_path / "parts"
    copies = ["--checkpoints.remote", place]
    for kill in range(kills):
        started = time.time()
        process = start([*options, *copies], folder, log)
        process.started = started
        if kill % 4 == 3:  # also while it starts, fetches and reads
            time.sleep(rng.uniform(2, 8))
        else:
            wait_for_training(folder, process, log)
            time.sleep(rng.uniform(0, 0.8))
        assert process.poll() is None, log.read_text()[-3000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        counted["while saving"] += any(folder.glob("checkpoints/*.partial"))
        whole = list_checkpoints(place)
        there = {int(found[1]) for blob in bucket.list_blobs() if (found := re.search(r"step-(\d+)/", blob.name))}
        counted["while uploading"] += bool(there - {*whole})
        for step in whole:
            verify_checkpoint(place, step)
        for checkpoint in checkpoints_in(folder):
            verify(checkpoint)
        if rng.random() < 0.5:
            counted["disks lost"] += 1
            shutil.rmtree(folder, ignore_errors=True)
    process = start([*options, *copies], folder, log)
    assert process.wait() == 0, log.read_text()[-3000:]
    whole = side_by_side.run((*options, "--training.output_dir", str(tmp_path / "whole")), 1)
    assert whole.returncode == 0, whole.stderr
    assert "damaged" not in log.read_text() + whole.stdout + whole.stderr
    assert log.read_text().count("going on from") >= kills // 3
    assert_same_run(tmp_path / "whole", folder)
    assert all(path.suffix == "" for path in (folder / "checkpoints").iterdir())
    steps = max(line["step"] for line in numbers(folder))
    drill.says(f"{kills} kills of a run of {steps} steps, the result is the same bit for bit: {dict(counted)}")


@pytest.mark.slow
def test_one_of_two_processes_is_killed(options, place, tmp_path, drill):
    """What is left of the run ends, and goes on with two processes as if nothing had been."""
    options += ["--training.max_steps", "40"]
    log = tmp_path / "log"
    whole = side_by_side.run((*options, "--training.output_dir", str(tmp_path / "whole")), 2)
    assert whole.returncode == 0, whole.stderr
    kills = drill(1, 5)
    for kill in range(kills):
        started = time.time()
        process = start([*options, "--checkpoints.remote", place], tmp_path / "parts", log, processes=2)
        process.started = started
        wait_for_training(tmp_path / "parts", process, log)
        time.sleep(0.1)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        assert len(children) == 2
        os.kill(int(children[kill % 2]), signal.SIGKILL)
        assert process.wait() != 0
        if kill % 2:
            shutil.rmtree(tmp_path / "parts")
    process = start([*options, "--checkpoints.remote", place], tmp_path / "parts", log, processes=2)
    assert process.wait() == 0, log.read_text()[-3000:]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    drill.says(f"{kills} kills of one of two processes, the result is the same bit for bit")


@pytest.mark.slow
def test_every_byte_of_a_checkpoint(options, tmp_path, drill):
    """A flipped bit, a cut and a removal anywhere in a real checkpoint are found."""
    made = side_by_side.run((*options, "--training.max_steps", "3", "--training.output_dir", str(tmp_path / "run")), 1)
    assert made.returncode == 0, made.stderr
    (checkpoint,) = checkpoints_in(tmp_path / "run")
    every, tried = drill(997, 1), Counter()
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for kind, damaged in (
            *(
                ("flips", content[:n] + bytes([content[n] ^ 1 << n % 8]) + content[n + 1 :])
                for n in range(0, len(content), every)
            ),
            *(("truncations", content[:n]) for n in range(0, len(content), every)),
            ("removals", None),
        ):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(ValueError, match=path.name):
                verify(checkpoint)
            tried[kind] += 1
        path.write_bytes(content)
    verify(checkpoint)
    assert tried["removals"] >= 7
    drill.says(f"damage to a checkpoint, all found: {dict(tried)}")


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(options, tmp_path):
    """As a quota says it, which comes as another exception than a full disk."""
    few = ["--training.max_steps", "2", "--training.output_dir", str(tmp_path / "run")]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 40 && exec "$@"', "bash", sys.executable, "run_multitask.py", *options, *few],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "does not fit on its disk" in done.stderr and "(File too large)" in done.stderr
    assert "Traceback" not in done.stderr and not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.slow
def test_a_disk_that_is_full(options, tmp_path, drill):
    """On a file system of a few hundred kilobytes, the first checkpoints fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        keep_all = ["--training.max_steps", "200", "--training.save_total_limit", "null"]
        done = side_by_side.run((*options, *keep_all, "--training.output_dir", str(disk / "run")), 1)
        said = done.stdout + done.stderr
        assert done.returncode == 2, said
        assert re.search(
            r"error: training.output_dir: \S+/step-\d+ needs [\d,]+ bytes and does not fit on its disk, which has [\d,]+ left",
            said,
        )
        assert "Traceback" not in said
        found = checkpoints_in(disk / "run")
        assert found and not list(disk.glob("run/checkpoints/*.partial"))
        for checkpoint in found:
            verify(checkpoint)
        drill.says(f"a full disk after {len(found)} checkpoints, which stayed whole")
    finally:
        subprocess.run(["umount", disk], check=True)
