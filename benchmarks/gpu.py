"""On GPUs in bf16, beside the alternatives in turns: tokens a second, the share of the arithmetic, the busy share."""

import sys
from functools import partial
from typing import Any

import torch

from multitask.errors import UserError

from . import clocked, gpu_contenders, growth, isolated, workload
from .figures import middle, ratios, spread, table, verdict
from .results import Results
from .setting import Setting

BATCH_SIZES = (32, 256, 1024)  # examples in a step, and in a pass, for all contenders
MORE_BATCH_SIZES = (64, 128, 512)  # for this project alone
ADAPTERS = (1, 8, 32)  # tasks with a LoRA each
ADAPTER_BATCH_SIZE = 256
WARMUP_STEPS = 10
STEPS = 50
TOKENS_PER_PASS = 2**18  # more than the largest batch has, so that a step is one pass
# Dense bf16 FLOP/s from the manufacturer's data sheets, by prefix of the device name.
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
    """Whether there is a GPU; prints a message if not."""
    if not torch.cuda.is_available():
        print("no GPU on this machine: there is nothing to measure (torch.cuda.is_available() is false)")
    return torch.cuda.is_available()


def measure(setting: Setting) -> None:
    """Every contender once a round on one GPU, LoRA with more and more tasks; this project on all GPUs."""
    if not is_here():
        return
    name = torch.cuda.get_device_name()
    if (before := setting.results.get("gpu_name") or name) != name:
        raise UserError(f"--output_dir holds figures of another GPU ({before}; here {name}); give it a new folder")
    setting.results.put("gpu_name", name)
    cases = [(contender, size) for size in BATCH_SIZES for contender in gpu_contenders.CONTENDERS]
    cases += [("multitask", size) for size in MORE_BATCH_SIZES]
    for number, (contender, size) in setting.turns(cases):
        options = setting.options(**_one_pass(size), training__seed=number)
        setting.results.once(f"gpu/{number}/{contender}x{size}", partial(_contend, setting, contender, options, size))
    for number, count in setting.turns(ADAPTERS):
        tasks = growth.write_tasks(setting, count)
        options = setting.options(tasks, **_one_pass(ADAPTER_BATCH_SIZE), training__seed=number, adapters__rank=8)
        work = partial(_contend, setting, "multitask", options, ADAPTER_BATCH_SIZE)
        setting.results.once(f"gpu_adapters/{number}/{count}", work)
    if (num_devices := torch.cuda.device_count()) > 1:
        for number, size in setting.turns(BATCH_SIZES):
            work = partial(_on_all, setting, num_devices, size)
            setting.results.once(f"gpus/{number}/{num_devices}x{size}", work)


def _one_pass(batch_size: int) -> dict[str, Any]:
    """Settings of runs that are long enough, and whose steps are one pass."""
    return {
        "training__batch_size": batch_size,
        "training__max_steps": 2000,
        "training__max_tokens_per_pass": TOKENS_PER_PASS,
        "training__agreement_steps": 0,
    }


def _contend(setting: Setting, contender: str, options: list[str], batch_size: int) -> dict[str, Any]:
    folder = setting.scratch / "gpu"
    try:
        run = setting.isolated(gpu_contenders.run, contender, options, WARMUP_STEPS, STEPS, folder, batch_size)
    except isolated.Failed as failure:  # most likely for want of memory, which ends no sweep
        print(failure)
        return {"failed": str(failure)}
    work = setting.isolated(flops, options, WARMUP_STEPS, WARMUP_STEPS + STEPS)
    setting.clear_scratch()
    return run | {"flops": work["flops"] * run["tokens"] / work["tokens"]}


def _on_all(setting: Setting, num_processes: int, batch_size: int) -> dict[str, Any]:
    result, folder = setting.folder / "gpu.json", setting.scratch / "gpu"
    options = setting.options(
        training__output_dir=folder, **_one_pass(batch_size) | {"training__batch_size": batch_size * num_processes}
    )
    launch = ["accelerate.commands.launch", "--mixed_precision", "bf16", "--num_processes", str(num_processes)]
    launch += ["--num_machines", "1", "--dynamo_backend", "no"] + ["--multi_gpu"] * (num_processes > 1)
    words = ["--module", "benchmarks.clocked", str(result), str(WARMUP_STEPS + STEPS), *options]
    clocked.read(setting.folder, "gpu.json.*")  # delete the files of a killed run
    setting.clear_scratch()
    try:
        isolated.command(setting.log, [sys.executable, "-m", *launch, *words])
    except isolated.Failed as failure:  # most likely out of memory; the sweep continues
        print(failure)
        return {"failed": str(failure)}
    runs = clocked.read(setting.folder, "gpu.json.*")
    work = setting.isolated(flops, options, WARMUP_STEPS, WARMUP_STEPS + STEPS)
    seconds = clocked.counted_seconds(runs[0], WARMUP_STEPS)
    return work | {"seconds": seconds, "peak_bytes": max(run["peak_gpu_bytes"] for run in runs), "gpus": num_processes}


def flops(options: list[str], start: int, stop: int) -> dict[str, float]:
    """Non-padding tokens in some steps and the model FLOPs for them (Chowdhery et al. 2022, appendix B).

    Per token, 6 FLOPs for each weight except embeddings, which are looked up, and 12 x layers x width x length for
    attention; padding is not counted.
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


# -- page section -----------------------------------------------------------------------------------------------------


def section(results: Results) -> str:
    """The page's section on GPUs."""
    rounds, name = results.rounds("gpu"), results.get("gpu_name")
    if not rounds:
        return ""
    peak = next((peak for beginning, peak in PEAK_FLOPS.items() if name.startswith(beginning)), None)
    text = [
        f"## One GPU\n\n{name}, bf16. {WARMUP_STEPS} steps not counted, then {STEPS}, each one pass; the busy share "
        f"is that of {gpu_contenders.NUM_PROFILED} steps after them. The ratio is how many times a contender's real "
        "tokens a second this project reaches in the same round."
    ]
    header = ["contender", "real tokens/s", "this project is … times it", "goal", "flops used", "busy", "peak memory"]
    for size in sorted((*BATCH_SIZES, *MORE_BATCH_SIZES)):
        own = _of(rounds, "multitask", size)
        rows = []
        for contender, (title, _, goals) in gpu_contenders.CONTENDERS.items():
            if runs := _of(rounds, contender, size):
                ratio = ratios(_rates(own), _rates(runs)) if contender != "multitask" and own else []
                goal = goals.get(size)
                reached = f"≥ {goal}: {verdict(middle(ratio), goal)}" if goal and ratio else ""
                rows.append(
                    [title, spread(_rates(runs), 0), spread(ratio) if ratio else "1", reached, *_use(runs, peak)]
                )
            elif f"{contender}x{size}" in rounds:
                rows.append([title, "it failed (see log.txt)", "–", "", "–", "–", "–"])
        if rows:
            text.append(f"### {size} examples a step\n\n{table(header, rows)}")
    if adapters := results.rounds("gpu_adapters"):
        times = {int(n): [r["seconds"] / r["tokens"] for r in of if "seconds" in r] for n, of in adapters.items()}
        base = times[min(times)]
        rows = [[n, spread(ratios(of, base))] for n, of in sorted(times.items())]
        text.append(
            f"### A LoRA of its own for each task\n\nRank 8, {ADAPTER_BATCH_SIZE} examples a step.\n\n"
            + table(["tasks", f"time of a token, times that of {min(times)}"], rows)
        )
    if gpus := results.rounds("gpus"):
        rows = [
            [case.replace("x", " GPUs, ") + " examples each", spread(_rates(runs), 0)] for case, runs in gpus.items()
        ]
        text.append("## Several GPUs\n\n" + table(["this project", "real tokens/s"], rows))
    return "\n\n".join(text)


def _of(rounds: dict[str, list[dict[str, Any]]], contender: str, size: int) -> list[dict[str, Any]]:
    """The rounds of a case, unless one failed."""
    runs = rounds.get(f"{contender}x{size}", [])
    return [] if any("failed" in run for run in runs) else runs


def _rates(runs: list[dict[str, Any]]) -> list[float]:
    return [run["tokens"] / run["seconds"] for run in runs]


def _use(runs: list[dict[str, Any]], peak: float | None) -> list[str]:
    """Model flops utilisation, the busy share and the peak memory."""
    of_peak = [100 * run["flops"] / run["seconds"] / peak for run in runs] if peak else []
    busy = spread([100 * run["busy"] for run in runs], 0, " %")
    return [spread(of_peak, 1, " %"), busy, f"{max(run['peak_bytes'] for run in runs) / 2**30:.1f} GiB"]
