"""The quick start with the pretrained MiniLM, cut to a few steps; what it reaches in full is in the README."""

import json

import pytest
import torch
from helpers.paths import ROOT

from multitask.cli.arguments import read_command
from multitask.model.pretrained import build_model, find_encoder, load_tokenizer
from multitask.tasks.load import load_task


@pytest.fixture
def config(monkeypatch):
    monkeypatch.chdir(ROOT)
    return read_command(["--config", "configs/quickstart.yaml"]).config


@pytest.mark.slow
def test_a_short_real_run_changes_every_parameter(config, program, tmp_path):
    run = ["--training.output_dir", str(tmp_path / "run"), "--training.max_steps", "3", "--model.dropout", "0"]
    few = [part for task in config.tasks for part in (f"--tasks.{task}.max_eval_examples", "20")]
    done = program("--config", "configs/quickstart.yaml", *run, *few)
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "run" / "metrics.json").read_text())["tasks"]) == set(config.tasks)

    encoder = find_encoder(config.model.encoder)
    tokenizer = load_tokenizer(encoder, config.model.max_length)
    tasks = [load_task(name, task, tokenizer, config.model.max_length) for name, task in config.tasks.items()]
    before = build_model(encoder, tasks, seed=config.training.seed)
    compared = 0
    for task in tasks:
        exported = task.type.auto_class.from_pretrained(tmp_path / "run" / "export" / task.name)
        after = dict(exported.named_parameters())
        whole = {f"bert.{name}": p for name, p in before.encoder.named_parameters()}
        whole |= dict(before.tasks[task.name].named_parameters())
        assert whole.keys() == after.keys()
        for name, parameter in whole.items():
            assert not torch.equal(parameter, after[name]), f"{task.name}: {name} did not change"
            compared += 1
    assert compared == 3 * 105  # of each task: 6 layers of 16, embeddings 5, pooler 2, classifier 2
