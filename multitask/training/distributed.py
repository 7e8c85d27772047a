"""Processes and devices: starting Accelerate, work of the main process, sharded tensors, deterministic kernels."""

import ctypes
import os
import platform
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
    is_torch_xla_available,
    parse_flag_from_env,
)
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import UserError


def from_main_process(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """Calls `work()` on the main process and returns its result on all processes.

    Raises:
        UserError: on all processes, if `work` raised it.
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
    """Starts Accelerate as the launch configuration says; without one, on an accelerator if available.

    Raises:
        UserError: if the requested accelerator is not available.
    """
    wants_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    there = torch.accelerator.is_available() or is_torch_xla_available()
    launched = "ACCELERATE_DYNAMO_BACKEND" in os.environ  # which `accelerate launch` sets always
    if launched and not there and not wants_cpu:
        raise UserError(
            "the launch configuration asks for a GPU or a TPU, and PyTorch finds none; accelerate_configs/cpu.yaml "
            "trains on the CPU (as does ACCELERATE_USE_CPU=true in the environment)"
        )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available() and not wants_cpu and processes > torch.cuda.device_count():
        raise UserError(
            f"num_processes: {processes} on this machine, which has {torch.cuda.device_count()} GPUs; "
            f"--num_processes takes the number of GPUs of all machines"
        )
    # Without `cpu`, Accelerate would take several processes on CPUs for as many runs of one process each.
    accelerator = Accelerator(cpu=wants_cpu or not there)
    if (wants_cpu or not there) and accelerator.num_processes > 1 and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # Accelerate shares weights out among GPUs only; the processes of a CPU can do so too.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        if accelerator.mixed_precision != "no":
            accelerator.state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("fsdp_version: 1 is not supported; 2 is, as in accelerate_configs/fsdp.yaml")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    # It builds an execution plan, 7 ms of the host's time, for every new shape, and every step has new shapes.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return accelerator


def default_device() -> torch.device:
    """The accelerator, if there is one and `ACCELERATE_USE_CPU` does not forbid it; otherwise the CPU."""
    found = None if parse_flag_from_env("ACCELERATE_USE_CPU") else torch.accelerator.current_accelerator(True)
    return found or torch.device("cpu")


def use_deterministic_kernels() -> None:
    """Has PyTorch compute with deterministic kernels only (https://pytorch.org/docs/stable/notes/randomness.html).

    Call it before anything is computed on a GPU: cuBLAS reads its setting when it starts. An operation that has no
    deterministic kernel raises RuntimeError from then on.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory for the tensors of the next step.

    By default glibc returns large blocks to the kernel, which zeroes each page again: thousands of page faults a step,
    about 5 % of the time of a step of MiniLM. Keeping them raises peak memory by 3 %. (PyTorch's performance tuning
    guide recommends other allocators for the same reason.) Other C libraries are not changed.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
    if platform.libc_ver()[0] == "glibc":
        c_library = ctypes.CDLL(None)
        c_library.mallopt(m_mmap_max, 0)
        c_library.mallopt(m_trim_threshold, -1)  # never


def check_share(batch_size: int, num_processes: int) -> None:
    """Checks that each process gets at least one example of a step.

    Raises:
        UserError: if there are fewer examples than processes.
    """
    if batch_size < num_processes:
        raise UserError(
            f"training.batch_size: {batch_size} examples a step cannot be shared by {num_processes} processes; "
            f"it must be at least {num_processes}, or the processes fewer"
        )


def whole(tensor: Tensor) -> Tensor:
    """The full tensor; for a sharded tensor a collective call of all processes."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def reshard(model: nn.Module) -> None:
    """Has each process hold its shards alone again; after a forward without a backward, FSDP leaves whole weights."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def shared_out(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a full tensor, if `like` is sharded; otherwise the tensor on the device of `like`."""
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor
