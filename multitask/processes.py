"""How many processes there are and on what; what one of them does for all."""

import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, is_torch_xla_available, parse_flag_from_env

from .errors import UserError


def from_main_process(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """What `work()` gives on the main process, on all; it may look and write where one process must do so for all.

    Raises:
        UserError: on all processes, if it was raised on the main one.
    """
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = work()
        except UserError as error:
            found[1] = str(error)
    result, mistake = broadcast_object_list(found)
    if mistake:
        raise UserError(mistake)
    return result


def start_accelerator() -> Accelerator:
    """Accelerate on what the launch configuration asks for; without one, on what there is.

    Raises:
        UserError: if it asks for an accelerator that is not there.
    """
    there = torch.accelerator.is_available() or is_torch_xla_available()
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and not there and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise UserError(
            "the launch configuration asks for a GPU or a TPU, and PyTorch finds none; accelerate_configs/cpu.yaml "
            "trains on the CPU (as does ACCELERATE_USE_CPU=true in the environment)"
        )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(
            f"num_processes: {processes} on this machine, which has {torch.cuda.device_count()} GPUs; "
            f"--num_processes takes the number of GPUs of all machines"
        )
    # Without `cpu`, Accelerate would take several processes on CPUs for as many runs of one process each.
    return Accelerator(cpu=not there)


def check_share(batch_size: int, num_processes: int) -> None:
    """Whether each process gets an example of a step.

    Raises:
        UserError: if there are too few.
    """
    if batch_size < num_processes:
        raise UserError(
            f"training.batch_size: {batch_size} examples a step cannot be shared by {num_processes} processes"
        )
