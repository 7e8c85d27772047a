"""The launch configurations: Accelerate reads each, another one is another file name, and the updates are the same."""

import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from helpers.paths import ROOT
from helpers.runs import curve, free_port

FILES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_accelerate_reads_every_launch_configuration(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == ("no" if path.stem == "cpu" else "bf16")
    assert config.to_dict().keys() >= yaml.safe_load(path.read_text()).keys()  # it knows every key
    kinds = {"cpu": "NO", "single_gpu": "NO", "fsdp": "FSDP", "tpu": "XLA"}
    assert config.distributed_type == kinds.get(path.stem, "MULTI_GPU")
    assert (config.num_machines > 1) == (path.stem == "multi_node")
    assert config.num_processes == {"cpu": 1, "single_gpu": 1, "multi_node": 16}.get(path.stem, 8)


def test_there_are_launch_configurations():
    assert [path.stem for path in FILES] == ["cpu", "fsdp", "multi_gpu", "multi_node", "single_gpu", "tpu"]


@pytest.mark.slow
def test_accelerate_launch_on_the_cpu(train, mixture_config, write_config, tmp_path):
    here = train()
    options = ["--config", write_config(mixture_config), "--training.output_dir", str(tmp_path / "launched")]
    command = [*LAUNCH, "accelerate_configs/cpu.yaml", "run_multitask.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (curve(tmp_path / "launched") == curve(here)).all()


@pytest.mark.slow
def test_two_machines_make_the_update_of_one(train, mixture_config, write_config, tmp_path):
    """The same file on both, here two launchers on one host; without GPUs, each has one process on the CPU."""
    one = train()
    options = ["--config", write_config(mixture_config), "--training.output_dir", str(tmp_path / "two")]
    machines = []
    port = str(free_port())
    for rank in (0, 1):
        words = ["--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", "--main_process_port", port]
        words += ["--num_processes", "2", "--mixed_precision", "no"]
        command = [*LAUNCH, "accelerate_configs/multi_node.yaml", *words, "run_multitask.py", *options]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        machines.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes))
    texts = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], texts
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(one), rtol=1e-4)
    assert "One model per task" in texts[0][0] and "One model per task" not in texts[1][0]


@pytest.mark.slow
def test_an_accelerator_that_is_not_there(mixture_config, write_config, tmp_path):
    command = [
        *LAUNCH,
        "accelerate_configs/single_gpu.yaml",
        "run_multitask.py",
        "--config",
        write_config(mixture_config),
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "false"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment)
    assert (done.returncode, done.stdout) == (1, "")  # Accelerate's launcher knows no other status
    message = "error: the launch configuration asks for a GPU or a TPU, and PyTorch finds none; accelerate_configs/cpu.yaml trains on the CPU (as does ACCELERATE_USE_CPU=true in the environment)\n"
    assert done.stderr == message
    assert not (tmp_path / "run").exists()
