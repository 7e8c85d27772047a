"""On XLA, compiled for the CPU: `make test-xla`, in an environment of its own with torch_xla."""

import json

import numpy as np
import pytest

pytest.importorskip("torch_xla", reason="torch_xla is not installed here; make test-xla brings its own")

import torch_xla.debug.metrics as met
from conftest import read_jsonl

import run_multitask
from multitask.command import read_command


def compilations() -> int:
    data = met.metric_data("CompileTime")
    return data[0] if data else 0


def test_graphs_are_few_and_losses_those_of_the_cpu(mixture_config, write_config, tmp_path, monkeypatch):
    counts: list[int] = []
    add = run_multitask.LogWindow.add
    monkeypatch.setattr(run_multitask.LogWindow, "add", lambda *a: (counts.append(compilations()), add(*a))[1])
    begin, passes = run_multitask.begin_pass, []
    monkeypatch.setattr(run_multitask, "begin_pass", lambda seed: (passes.append(compilations()), begin(seed))[1])

    mixture_config["training"] |= {"max_steps": 10}
    run_multitask.train(read_command(["--config", write_config(mixture_config)]), run_multitask.Accelerator())
    print("COUNTS", counts, passes, compilations())
    lines = [line for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    for line in lines:
        print("LINE", json.dumps({k: v for k, v in line.items() if k.endswith(("loss", "grad_norm"))}))
    np.array(1)
