"""On XLA, compiled for the CPU: `make test-xla`, in an environment of its own with torch_xla."""

import numpy as np
import pytest

pytest.importorskip("torch_xla", reason="torch_xla is not installed here; make test-xla brings its own")

import torch_xla.debug.metrics as met
from test_script import curve

import run_multitask
from multitask.command import read_command
from multitask.processes import start_accelerator


def test_graphs_are_few(mixture_config, write_config, tmp_path, monkeypatch, capsys):
    mixture_config["training"]["max_steps"] = 10
    config = ["--config", write_config(mixture_config)]
    # Compilations so far, at the end of each step.
    compilations: list[int] = []
    add = run_multitask.LogWindow.add

    def count(window, *values) -> None:
        compilations.append(met.metric_data("CompileTime")[0])
        add(window, *values)

    monkeypatch.setattr(run_multitask.LogWindow, "add", count)
    accelerator = start_accelerator()
    assert accelerator.device.type == "xla"
    run_multitask.train(read_command(config), accelerator)
    assert "note: static shapes: 5 graphs of training passes" in capsys.readouterr().out
    print(f"compilations so far, step by step: {compilations}")
    assert np.isfinite(curve(tmp_path / "run")).all()
    # All that there are, early: 5 of passes, at most twice (a step's first pass begins the sums of gradients, the others
    # go on with them), and what a step does besides: its update with and without an idle task, norms, reductions.
    assert compilations[-1] == compilations[5] <= 2 * 5 + 12
