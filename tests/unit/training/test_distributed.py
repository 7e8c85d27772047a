"""What is told of the processes and their devices, on machines that are not these."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from helpers.paths import ROOT

from multitask.errors import UserError
from multitask.training import distributed as processes
from multitask.training.distributed import check_share, from_main_process, start_accelerator


def test_what_the_main_process_finds_is_everyones():
    assert from_main_process(Accelerator(cpu=True), lambda: 5) == 5

    def fails():
        raise UserError("no")

    with pytest.raises(UserError, match="^no$"):
        from_main_process(Accelerator(cpu=True), fails)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    message = (
        "num_processes: 8 on this machine, which has 2 GPUs; --num_processes takes the number of GPUs of all machines"
    )
    with pytest.raises(UserError, match=f"^{message}$"):
        start_accelerator()


def test_many_processes_on_the_cpu_of_a_machine_with_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert start_accelerator().device.type == "cpu"


def test_the_first_version_of_fsdp(monkeypatch):
    first = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False, num_processes=2)
    monkeypatch.setattr(processes, "Accelerator", lambda cpu: first)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    message = "fsdp_version: 1 is not supported; 2 is, as in accelerate_configs/fsdp.yaml"
    with pytest.raises(UserError, match=f"^{message}$"):
        start_accelerator()


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_on_a_cpu_memory_that_was_freed_is_used_again():
    """Tensors of 40 MB, one after the other: by default the kernel hands their pages out every time.

    Where small blocks come to lie among them, glibc takes new memory for the first few (9 at most, in 12 runs), so the
    first 60 do not count.
    """
    code = """
import resource
import torch
from multitask.training.distributed import start_accelerator

def pages(first, last):
    faults = []
    for _ in range(last):
        torch.ones(10 * 2**20)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return (faults[-1] - faults[first]) * resource.getpagesize() / (40 * 2**20)

given_back = pages(0, 3)
start_accelerator()
print(given_back, pages(60, 80))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    given_back, kept = map(float, done.stdout.split())
    assert given_back > 1 and kept < 0.01, (given_back, kept)


def test_a_step_has_an_example_for_each_process():
    check_share(2, 2)
    with pytest.raises(UserError, match="^training.batch_size: 2 examples a step cannot be shared by 3 processes; "):
        check_share(2, 3)
