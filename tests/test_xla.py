"""On XLA, compiled for the CPU: `make test-xla`, in an environment of its own with torch_xla."""

import pytest

pytest.importorskip("torch_xla", reason="torch_xla is not installed here; make test-xla brings its own")

import torch_xla.debug.metrics as met
from conftest import read_jsonl

import run_multitask
from multitask.command import read_command


def compilations() -> int:
    data = met.metric_data("CompileTime")
    return data[0] if data else 0


def test_few(mixture_config, write_config, tmp_path, monkeypatch):
    command = read_command(["--config", write_config(mixture_config), "--training.max_steps", "12"])
    counts = []
    add = run_multitask.LogWindow.add
    monkeypatch.setattr(
        run_multitask.LogWindow, "add", lambda self, *a: (counts.append(compilations()), add(self, *a))[1]
    )
    run_multitask.train(command, run_multitask.Accelerator())
    print(counts, compilations())
    for line in read_jsonl(tmp_path / "run" / "metrics.jsonl"):
        print({k: v for k, v in line.items() if "loss" in k or "eval" in k})
