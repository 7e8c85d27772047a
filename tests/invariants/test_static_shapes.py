"""Batches of few shapes: the numbers are those of any other batches, and the shapes are as few as is said."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from helpers.paths import ROOT
from helpers.runs import losses_and_norms
from helpers.splits import SPLITS, make_mixture
from helpers.tasks import ALL_TASKS

import run_multitask
from multitask.cli.arguments import read_command
from multitask.data.loader import StepDataset
from multitask.data.static_shapes import collate, num_graphs, static_lengths
from multitask.errors import UserError
from multitask.evaluation.evaluate import predict
from multitask.training.xla import uses_static_shapes

STATIC = ("--training.static_shapes", "true")


@pytest.fixture
def all_types(mixture_config, task_files):
    mixture_config["tasks"] = {
        name: task | {"dataset": "json", "data_files": dict(task_files[name])} for name, task in ALL_TASKS.items()
    }
    mixture_config["training"] |= {"max_steps": 4, "max_tokens_per_pass": 200}
    return mixture_config


@pytest.mark.slow
def test_losses_are_the_same(train, all_types, tmp_path):
    usual = train()
    static = train(*STATIC, "--training.output_dir", str(tmp_path / "static"))
    assert len(losses_and_norms(usual)) > 4 * 6
    np.testing.assert_allclose(losses_and_norms(static), losses_and_norms(usual), rtol=1e-4)


@pytest.mark.parametrize("max_tokens", [1, 300, 10**6])
def test_predictions_are_the_same(make, max_tokens):
    """Rows that fill up come into no metric."""
    model, tasks, _ = make("bert", list(ALL_TASKS))
    model.eval()
    for task in tasks:
        usual, static = (
            predict(model, task.name, task.validation, Accelerator(cpu=True), 0, max_tokens, static)
            for static in (False, True)
        )
        assert len(usual) == len(task.validation)
        for row, tokens in enumerate(task.validation.length if usual.ndim == 3 else [None] * len(usual)):
            np.testing.assert_allclose(static[row][:tokens], usual[row][:tokens], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_on_two_processes_too(train, program, mixture_config, write_config, tmp_path):
    usual = train()
    folder = tmp_path / "two"
    options = [*STATIC, "--training.output_dir", str(folder)]
    done = program("--config", write_config(mixture_config), *options, processes=2)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses_and_norms(folder), losses_and_norms(usual), rtol=1e-4)


@pytest.mark.parametrize("num_devices", [1, 3])
@pytest.mark.parametrize("max_tokens", [1, 130, 2000])
def test_a_task_has_one_shape_for_each_length(max_tokens, num_devices):
    mixture = make_mixture(24)
    seen: dict[str, set] = {task: set() for task in SPLITS}
    for step in range(30):
        items = [
            StepDataset(mixture, SPLITS, 0, max_tokens, num_devices, device, static_shapes=True)[step]
            for device in range(num_devices)
        ]
        expected = mixture(step)
        tasks_of_passes = []
        for item in items:
            tasks_of_passes.append([])
            for part in item.passes:
                (task,) = [task for task, labels in part.labels.items() if len(labels)]
                tasks_of_passes[-1].append(task)
                ids = part.inputs[task]["input_ids"]
                seen[task].add(tuple(ids.shape))
        assert tasks_of_passes == [tasks_of_passes[0]] * num_devices  # the same modules in the same order
        assert set(tasks_of_passes[0]) == set(SPLITS)  # also where a task has no row in the step
        for task in SPLITS:
            passes = [part for item in items for part in item.passes]
            labels = torch.cat([part.labels[task][part.is_row[task]] for part in passes])
            assert len(labels) == sum(part.num_rows[task] for part in passes)
            assert sorted(labels.tolist()) == sorted(expected[task].tolist())
    for task, shapes in seen.items():
        lengths = {shape[-1] for shape in shapes}
        assert len(lengths) == len(shapes) and lengths <= set(static_lengths(SPLITS[task]))
    assert sum(map(len, seen.values())) <= num_graphs(SPLITS) == 3 + 3 + 3


def test_lengths_are_powers_of_two_and_the_longest():
    lengths = {task: (int(split.length.max()), static_lengths(split)) for task, split in SPLITS.items()}
    assert lengths == {"single": (38, [16, 32, 38]), "choice": (39, [16, 32, 39]), "rare": (33, [16, 32, 33])}


def test_labels_of_tokens_are_as_long_as_the_tokens(make):
    _, tasks, tokenizer = make("bert", ["topics", "tags", "find"])
    for task in tasks:
        inputs, labels = collate(task.train, [0, 1], tokenizer.pad_token_id, (5, 64))
        assert inputs["input_ids"].shape == (5, 64)
        assert labels.shape == (5, 3 if task.name == "topics" else 64)
        assert (inputs["attention_mask"].sum(1) > 0).all()


def test_they_are_on_by_themselves_on_xla_and_with_fsdp_alone():
    def found(device, is_fsdp2, setting):
        return uses_static_shapes(setting, SimpleNamespace(device=torch.device(device), is_fsdp2=is_fsdp2))

    assert [found("xla", False, setting) for setting in (None, True, False)] == [True, True, False]
    assert [found("cpu", False, setting) for setting in (None, True, False)] == [False, True, False]
    assert [found("cuda", True, setting) for setting in (None, True)] == [True, True]
    with pytest.raises(UserError, match="training.static_shapes: false is not possible with FSDP; leave it out"):
        found("cuda", True, False)


def test_a_dry_run_says_how_many_graphs_there_will_be(mixture_config, write_config, capsys):
    for options, note in (((), False), (STATIC, True)):
        run_multitask.train(
            read_command(["--config", write_config(mixture_config), "--dry_run", *options]),
            run_multitask.Accelerator(cpu=True),
        )
        out = capsys.readouterr().out
        assert ("note: static shapes: 5 graphs of training passes, lengths by task: similar [16, " in out) is note, out


@pytest.fixture
def fsdp():
    """What Accelerate's launcher tells the processes of the launch configuration."""
    words = ["--config_file", str(ROOT / "accelerate_configs" / "fsdp.yaml"), "run_multitask.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    names = ("FSDP_", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION")
    return {name: value for name, value in prepare_multi_gpu_env(args).items() if name.startswith(names)}


@pytest.mark.slow
def test_fsdp_in_bf16(train, fsdp, program, mixture_config, write_config, tmp_path):
    mixture_config["training"]["max_steps"] = 2
    usual, folder = train(), tmp_path / "fsdp"
    options = ["--config", write_config(mixture_config), "--training.output_dir", str(folder)]
    done = program(*options, processes=2, **fsdp)
    assert done.returncode == 0, done.stderr
    assert (losses_and_norms(folder) != losses_and_norms(usual)).all()  # else nothing was rounded
    np.testing.assert_allclose(losses_and_norms(folder), losses_and_norms(usual), rtol=2e-2)


@pytest.mark.slow
def test_fsdp_shares_out_what_is_a_tasks_own(train, fsdp, program, mixture_config, write_config, tmp_path):
    """Adapters within layers that are shared out, and a number for each task, too small to be cut in two."""
    options = ["--adapters.rank", "4", "--training.loss_balancing", "uncertainty"]
    usual, folder = train(*options), tmp_path / "fsdp"
    options += ["--config", write_config(mixture_config), "--training.output_dir", str(folder)]
    fsdp["ACCELERATE_MIXED_PRECISION"] = "no"  # rounding hides faults
    done = program(*options, processes=2, **fsdp)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses_and_norms(folder), losses_and_norms(usual), rtol=1e-4)


@pytest.mark.slow
def test_fsdp_makes_the_update_of_one_process(train, fsdp, program, mixture_config, write_config, tmp_path):
    """Each of two processes keeps a half of the weights; stopped half-way, one process alone can go on, and they can."""
    mixture_config["training"] |= {"save_steps": 3, "save_total_limit": None}
    usual, folder = train(), tmp_path / "fsdp"
    options = ["--config", write_config(mixture_config), "--training.output_dir", str(folder)]
    fsdp["ACCELERATE_MIXED_PRECISION"] = "no"  # rounding hides faults
    done = program(*options, processes=2, **fsdp)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses_and_norms(folder), losses_and_norms(usual), rtol=1e-4)
    assert "note: static shapes: " in done.stdout  # by themselves, as weights are shared out
    whole = losses_and_norms(folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    again = program(*options, processes=2, **fsdp)
    assert again.returncode == 0 and "going on from" in again.stdout, again.stderr
    assert (losses_and_norms(folder) == whole).all()
