"""The same on GPUs in bf16: real tokens a second and the share of the arithmetic that the GPU could do."""

import sys
from typing import Any

import torch

from multitask.errors import UserError

from . import clocked, isolated, workload
from .figures import spread, table
from .results import Results
from .setting import Setting

BATCH_SIZES = (32, 64, 128, 256, 512)  # examples of one device in a step, and in a pass
WARMUP_STEPS = 10
STEPS = 50
TOKENS_PER_PASS = 2**18  # more than the largest has, so that a step is one pass
# Dense bf16 operations a second, from the manufacturer's data sheets, by how the device's name begins.
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}


def is_here() -> bool:
    """Whether there is a GPU; says so where there is none."""
    if not torch.cuda.is_available():
        print("no GPU on this machine: there is nothing to measure (torch.cuda.is_available() is false)")
    return torch.cuda.is_available()


def measure(setting: Setting) -> None:
    """Batch sizes on one GPU, then each on all of them; nothing where there is none."""
    if not is_here():
        return
    name = torch.cuda.get_device_name()
    if (before := setting.results.get("gpu_name") or name) != name:
        raise UserError(f"--output_dir holds figures of another GPU ({before}; here {name}); give it a new folder")
    setting.results.put("gpu_name", name)
    num_devices = torch.cuda.device_count()
    cases = [(count, size) for count in sorted({1, num_devices}) for size in BATCH_SIZES]
    for number, (count, size) in setting.turns(cases):
        name = f"gpu/{number}/{count}x{size}"
        setting.results.once(name, lambda c=count, s=size: _run(setting, c, s))


def _run(setting: Setting, num_processes: int, batch_size: int) -> dict[str, Any]:
    result, folder = setting.folder / "gpu.json", setting.scratch / "gpu"
    options = setting.options(
        training__output_dir=folder,
        training__batch_size=batch_size * num_processes,
        training__max_steps=10 * (WARMUP_STEPS + STEPS),
        training__max_tokens_per_pass=TOKENS_PER_PASS,
    )
    launch = ["accelerate.commands.launch", "--mixed_precision", "bf16", "--num_processes", str(num_processes)]
    launch += ["--num_machines", "1", "--dynamo_backend", "no"] + ["--multi_gpu"] * (num_processes > 1)
    words = ["--module", "benchmarks.clocked", str(result), str(WARMUP_STEPS + STEPS), *options]
    clocked.read(setting.folder, "gpu.json.*")  # what a run that was killed has left
    setting.clear_scratch()
    try:
        isolated.command(setting.log, [sys.executable, "-m", *launch, *words])
    except isolated.Failed as failure:  # most likely for want of memory, which ends no sweep
        print(failure)
        return {"failed": str(failure)}
    runs = clocked.read(setting.folder, "gpu.json.*")
    work = setting.isolated(flops, options, WARMUP_STEPS, WARMUP_STEPS + STEPS)
    seconds = clocked.counted_seconds(runs[0], WARMUP_STEPS)
    return work | {"seconds": seconds, "peak_bytes": max(run["peak_gpu_bytes"] for run in runs), "gpus": num_processes}


def flops(options: list[str], start: int, stop: int) -> dict[str, float]:
    """Real tokens in some steps, and the operations that a model needs for them (Chowdhery et al. 2022, appendix B).

    6 for each weight that a token is multiplied with and 12 x layers x width x length for its attention; embeddings
    are looked up, padding is not counted.
    """
    load = workload.load(options)
    model = load.build_model()
    config: Any = next(iter(model.tasks.values())).config
    weights = sum(p.numel() for name, p in model.encoder.named_parameters() if "embeddings" not in name)
    tokens, squares, rows = 0, 0.0, load.rows(start, stop)
    for task in load.tasks:
        of_task = task.train.tokens[rows[task.name]].astype(float)
        tokens += int(of_task.sum())
        squares += float((of_task**2).sum()) / task.train.sequences
    attention = 12 * config.num_hidden_layers * config.hidden_size * squares
    return {"tokens": tokens, "flops": 6 * weights * tokens + attention}


# -- what is written about it -----------------------------------------------------------------------------------------


def section(results: Results) -> str:
    """The page's part about GPUs."""
    rounds, name = results.rounds("gpu"), results.get("gpu_name")
    if not rounds:
        return ""
    peak = next((peak for beginning, peak in PEAK_FLOPS.items() if name.startswith(beginning)), None)
    rows = []
    for case, runs in rounds.items():
        count, size = map(int, case.split("x"))
        if any("failed" in run for run in runs):
            rows.append([f"{count} GPU, {size} examples each", "it failed (see log.txt)", "–", "–"])
            continue
        rate = spread([run["tokens"] / run["seconds"] for run in runs], 0)
        of_peak = [100 * run["flops"] / run["seconds"] / (peak * count) for run in runs] if peak else []
        memory = max(run["peak_bytes"] for run in runs) / 2**30
        rows.append([f"{count} GPU, {size} examples each", rate, spread(of_peak, 1, " %"), f"{memory:.1f} GiB"])
    header = ["bf16", "real tokens/s", "model flops utilisation", "peak memory"]
    return f"## GPUs\n\n{name}, {WARMUP_STEPS} steps not counted, then {STEPS}.\n\n{table(header, rows)}"
