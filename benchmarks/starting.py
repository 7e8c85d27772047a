"""The time to start and to resume a run, and to compute the rows of a step."""

import json
import shutil
import sys
import time

import numpy as np

from multitask.checkpoints.manifest import checkpoints_in, write_manifest
from multitask.mixture.mixture import Mixture
from multitask.mixture.sampling import sampling_shares

from . import clocked, isolated
from .figures import middle, ratios, spread, table, verdict
from .results import Results
from .setting import Setting

RESUMED_AT = (10, 10_000)
MIXTURE_ROWS = (10**3, 10**9)
MIXTURE_STEPS = (10, 10**9)
# Reason for a missed goal, for the page.
REASON = "the encoder is loaded once for every task"


def measure(setting: Setting) -> None:
    """Measures the time to the first step of a new and of a resumed run, and `mixture(step)` alone."""
    _mixture(setting)
    _startup(setting)
    _resume(setting)


def from_command(setting: Setting, options: list[str], steps: int) -> dict[str, float]:
    """Seconds from the command until its libraries are imported, and from there to the first step; peak memory."""
    result = setting.folder / "clocked.json"
    command = [sys.executable, "-m", "benchmarks.clocked", str(result), str(steps), *options]
    isolated.command(setting.log, command, BENCH_STARTED=str(time.time()))
    (run,) = clocked.read(setting.folder, f"{result.name}.*")
    return {"import": run["imported"] - run["started"], "start": run["first_step"] - run["imported"]} | {
        "peak_bytes": run["peak_bytes"]
    }


def _startup(setting: Setting) -> None:
    folder = setting.scratch / "startup"
    for number in range(setting.rounds):
        options = setting.options(training__output_dir=folder.resolve())
        setting.results.once(f"startup/{number}/run", lambda o=options: from_command(setting, o, 1))
        shutil.rmtree(folder, ignore_errors=True)


def _resume(setting: Setting) -> None:
    """Stops a run after 10 steps; a copy of its checkpoint with step 10,000 stands for that of a longer run."""
    folder = setting.scratch.resolve() / "resume"
    names = [f"resume/{number}/{step}" for number in range(setting.rounds) for step in RESUMED_AT]
    if all(setting.results.get(name) for name in names):
        return
    shutil.rmtree(folder, ignore_errors=True)
    options = setting.options(training__output_dir=folder, training__max_steps=2 * RESUMED_AT[-1])
    setting.isolated(clocked.train, options, RESUMED_AT[0])
    (made,) = checkpoints_in(folder)
    for step in RESUMED_AT:
        copy = folder.with_name(f"resume_{step}") / f"step-{step:08d}"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(made, copy)
        state = json.loads((copy / "state.json").read_text())
        (copy / "state.json").write_text(json.dumps(state | {"step": step}))
        write_manifest(copy, step=step, versions=state["versions"])
    for number, step in setting.turns(RESUMED_AT):
        shutil.rmtree(folder, ignore_errors=True)
        checkpoint = folder.with_name(f"resume_{step}") / f"step-{step:08d}"
        going_on = [*options, "--training.resume_from_checkpoint", str(checkpoint)]
        setting.results.once(f"resume/{number}/{step}", lambda o=going_on: from_command(setting, o, 1))
    for path in setting.scratch.glob("resume*"):
        shutil.rmtree(path)


def _mixture(setting: Setting) -> None:
    setting.results.once("mixture", lambda: setting.isolated(mixture_seconds, setting.rounds))


def mixture_seconds(rounds: int) -> dict[str, list[float]]:
    """Seconds of `mixture(step)` by "ROWS/STEP/first" (the first call) and "ROWS/STEP/mean" (mean of 257 calls)."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for num_rows in MIXTURE_ROWS:
            sizes = {"a": num_rows, "b": num_rows // 2, "c": num_rows // 4}
            # A broadcast scalar takes no memory; the lengths do not matter here.
            lengths = {task: np.broadcast_to(np.int32(20), size) for task, size in sizes.items()}
            for step in MIXTURE_STEPS:
                mixture = Mixture(sizes, sampling_shares("proportional", sizes), 32, 0, lengths)
                started = time.perf_counter()
                mixture(step)
                first = time.perf_counter() - started
                for later in range(step, step + 256):
                    mixture(later)
                mean = (time.perf_counter() - started) / 257
                seconds.setdefault(f"{num_rows}/{step}/first", []).append(first)
                seconds.setdefault(f"{num_rows}/{step}/mean", []).append(mean)
    return seconds


# -- page section -----------------------------------------------------------------------------------------------------


def about_starting(results: Results) -> str:
    text = []
    if startup := results.rounds("startup").get("run"):
        start = [r["start"] for r in startup]
        text.append(
            f"**Start-up** with a warm cache: {spread([r['import'] for r in startup], 1, ' s')} for importing the "
            f"libraries, then {spread(start, 1, ' s')} to the first step; goal ≤ 3 s: "
            f"{verdict(middle(start), 3, True, REASON)}."
        )
    if resume := results.rounds("resume", map(str, RESUMED_AT)):
        early, late = ([r["start"] for r in resume[str(step)]] for step in RESUMED_AT)
        text.append(
            f"**Going on** from a checkpoint takes {spread(early, 1, ' s')} to the first step at step "
            f"{RESUMED_AT[0]}, and at step {RESUMED_AT[1]:,} {spread(ratios(late, early))} times that."
        )
    return "\n\n".join(text)


def about_mixture(results: Results) -> str:
    if not (seconds := results.get("mixture")):
        return ""
    rows = []
    for num_rows in MIXTURE_ROWS:
        for step in MIXTURE_STEPS:
            first, mean = (
                spread([1e3 * s for s in seconds[f"{num_rows}/{step}/{what}"]]) for what in ("first", "mean")
            )
            rows.append([f"{num_rows:,} rows, step {step:,}", first, mean])
    text = "**`mixture(step)`**, three tasks: the first call, which lays out a window of steps, and the mean of 257."
    return f"{text}\n\n{table(['', 'first call, ms', 'mean, ms'], rows)}"
