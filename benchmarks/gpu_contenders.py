"""The contenders on one GPU in bf16, each in its loop as on the CPU; and how much of a step the GPU is busy."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from multitask.tasks.base import example_losses
from multitask.training.distributed import default_device
from multitask.training.optimizer import build_optimizer

from . import clocked, workload
from .contenders import Measured, train_with_trainer

NUM_PROFILED = 8  # steps after those that are counted


class Busy:
    """Profiles the steps after the counted ones: the share of their time in which the GPU computes.

    Called after each step with its number, 0 for the last that counts, and how many count; true when all are done.
    """

    def __init__(self) -> None:
        self.share, self.started = 0.0, 0.0
        self.profile = torch.profiler.profile(activities=list(torch.profiler.supported_activities()))

    def __call__(self, step: int, counted: int) -> bool:
        if step in (-counted, 0, NUM_PROFILED):
            synchronize()  # so that what was asked for is done when the clock is read
        if step == 0:
            self.profile.__enter__()
            self.started = time.perf_counter()
        if step == NUM_PROFILED:
            seconds = time.perf_counter() - self.started
            self.profile.__exit__(None, None, None)
            kernels = [e for e in self.profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
            self.share = sum(e.self_device_time_total for e in kernels) / 1e6 / seconds
        return step >= NUM_PROFILED


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _measured(seconds: float, tokens: float, busy: Busy) -> Measured:
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"seconds": seconds, "tokens": tokens, "busy": busy.share, "peak_bytes": peak}


def multitask(options: list[str], warmup_steps: int, steps: int, folder: Path, batch_size: int) -> Measured:
    """This project: its real loop, with everything that it logs."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    busy, total = Busy(), warmup_steps + steps
    marks = clocked.train_anew(options, folder, after_step=lambda step: busy(step - total, steps))["marks"]
    tokens = workload.tokens(options, warmup_steps, total)
    return _measured(marks[total - 1] - marks[warmup_steps - 1], tokens, busy)


def trainer(options: list[str], warmup_steps: int, steps: int, folder: Path, batch_size: int) -> Measured:
    """The Trainer of `transformers` as it comes: batches of one task, padded to their longest, attention as it is."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    return _trainer(options, warmup_steps, steps, folder, batch_size, is_grouped=False)


def tuned_trainer(options: list[str], warmup_steps: int, steps: int, folder: Path, batch_size: int) -> Measured:
    """The same with what one would try: cuDNN's attention off, rows grouped by length."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    return _trainer(options, warmup_steps, steps, folder, batch_size, is_grouped=True)


def _trainer(
    options: list[str], warmup_steps: int, steps: int, folder: Path, batch_size: int, is_grouped: bool
) -> Measured:
    busy = Busy()
    run = train_with_trainer(
        options, warmup_steps, steps, folder, batch_size, is_grouped, torch.cuda.is_available(), NUM_PROFILED + 1, busy
    )
    return _measured(run["seconds"], run["tokens"], busy)


def limit(options: list[str], warmup_steps: int, steps: int, folder: Path, batch_size: int) -> Measured:
    """What the model itself takes: the packed passes of the same rows, made before and on the GPU; nothing is read."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    load = workload.load(options)
    device = default_device()
    model, tasks = load.build_model().train().to(device), load.tasks
    optimizer = build_optimizer(model, 1e-5, 0.01)
    total = warmup_steps + steps
    passes = [send_to_device(load.steps[step].passes[0], device) for step in range(total + NUM_PROFILED)]
    busy, marks = Busy(), []
    for step, (inputs, labels, *_) in enumerate(passes):
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(inputs)
            sums = [t.weight * example_losses(t.type, logits[t.name], labels[t.name]).sum() for t in tasks]
        (sum(sums) / load.config.training.batch_size).backward()
        nn.utils.clip_grad_norm_(model.parameters(), load.config.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        busy(step + 1 - total, steps)
        marks.append(time.perf_counter())
    tokens = sum(int(of_pass.inputs.lengths.sum()) for of_pass in passes[warmup_steps:total])
    return _measured(marks[total - 1] - marks[warmup_steps - 1], tokens, busy)


CONTENDERS: dict[str, tuple[str, Callable[..., Measured], dict[int, float]]] = {
    "multitask": ("this project: the real loop", multitask, {}),
    "trainer": ("Hugging Face Trainer as it comes", trainer, {32: 2.2, 256: 2.4, 1024: 2.4}),
    "tuned_trainer": (
        "Trainer, cuDNN attention off, rows grouped by length",
        tuned_trainer,
        {32: 1.4, 256: 1.4, 1024: 1.3},
    ),
    "limit": ("the limit: packed passes made before, nothing else", limit, {32: 0.9, 256: 0.95, 1024: 0.95}),
}


def run(name: str, *args: Any) -> Measured:
    """One of the contenders, for a process of its own."""
    return CONTENDERS[name][1](*args)
