"""Two processes on two cores compared with one process of two threads: synchronisation cost and load balance."""

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from multitask.data.loader import StepDataset

from . import clocked, workload
from .contenders import Measured
from .figures import ratios, spread, table, verdict
from .isolated import ROOT, Failed
from .results import Results
from .setting import Setting

WARMUP_STEPS = 2
BALANCE_STEPS = 200


def measure(setting: Setting) -> None:
    """Measures three ways to compute the same steps, in turns, and the number of tokens on each of two devices."""
    measured = {"one": _one_process, "two": _two_processes, "apart": _two_runs}
    for number, name in setting.turns(list(measured)):
        setting.results.once(f"processes/{number}/{name}", partial(measured[name], setting, number))
    steps = 20 if setting.smoke else BALANCE_STEPS
    setting.results.once("balance", lambda: setting.isolated(device_tokens, setting.options(), steps))


def _num_steps(setting: Setting) -> int:
    return WARMUP_STEPS + setting.steps // 2


def _measured(setting: Setting, options: list[str], runs: Sequence[dict[str, Any]], times: int = 1) -> Measured:
    """The mean time of some runs, and `times` the non-padding tokens of the run that `options` describe."""
    tokens = setting.isolated(workload.tokens, options, WARMUP_STEPS, _num_steps(setting))
    seconds = [clocked.counted_seconds(run, WARMUP_STEPS) for run in runs]
    return {"seconds": float(np.mean(seconds)), "tokens": times * tokens}


def _one_process(setting: Setting, seed: int) -> Measured:
    options = setting.options(training__seed=seed)
    run = setting.isolated(clocked.train_anew, options, setting.scratch / "one", _num_steps(setting), 2)
    return _measured(setting, options, [run])


def _two_processes(setting: Setting, seed: int) -> Measured:
    """The same batch split over two processes of one thread, which exchange gradients."""
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    options = setting.options(training__seed=seed, training__output_dir=setting.scratch / "two")
    return _measured(setting, options, _clocked(setting, [(torchrun, options)]))


def _two_runs(setting: Setting, seed: int) -> Measured:
    """Two independent runs of one thread and half the batch side by side: the upper limit for two processes."""
    batch = workload.read_command(setting.options()).config.training.batch_size // 2
    options = setting.options(training__seed=seed, training__batch_size=batch)
    folders = [str(setting.scratch / f"apart_{i}") for i in range(2)]
    runs = _clocked(setting, [([], [*options, "--training.output_dir", folder]) for folder in folders])
    return _measured(setting, options, runs, times=len(runs))


def _clocked(setting: Setting, commands: Sequence[tuple[list[str], list[str]]]) -> list[dict[str, Any]]:
    """Starts clocked programs together, with one thread each; returns the measurements of all their processes."""
    clocked.read(setting.folder, "clocked_*")  # delete the files of a killed run
    result, environment = setting.folder / "clocked", os.environ | {"OMP_NUM_THREADS": "1"}
    with setting.log.open("a") as log:
        started = []
        for number, (launcher, options) in enumerate(commands):
            words = ["-m", "benchmarks.clocked", f"{result}_{number}", str(_num_steps(setting)), *options]
            launched = [sys.executable, *launcher, *words]
            started.append(subprocess.Popen(launched, stdout=log, stderr=log, cwd=ROOT, env=environment))
        try:
            statuses = [process.wait() for process in started]
        finally:
            for process in started:
                process.terminate()
    if any(statuses):
        raise Failed(f"a run on two processes ended with status {max(statuses)} (see {setting.log})")
    runs = clocked.read(setting.folder, "clocked_*")
    setting.clear_scratch()
    return runs


def device_tokens(options: list[str], steps: int) -> dict[str, list[int]]:
    """Of each step, the tokens of the first and of the second of two devices."""
    load = workload.load(options)
    splits, training = load.steps.splits, load.config.training
    tokens: dict[str, list[int]] = {}
    for device in range(2):
        share = StepDataset(load.mixture, splits, load.tokenizer.pad_token_id, training.max_tokens_per_pass, 2, device)
        tokens[str(device)] = [
            sum(int(part.inputs.lengths.sum()) for part in share[step].passes) for step in range(steps)
        ]
    return tokens


# -- page section -----------------------------------------------------------------------------------------------------


def section(results: Results) -> str:
    """The page's section on two processes."""
    rounds, balance = results.rounds("processes", ("one", "two", "apart")), results.get("balance")
    if not rounds and not balance:
        return ""
    text = ["## Two processes"]
    if rounds:
        seconds = {name: [r["seconds"] / r["tokens"] for r in of] for name, of in rounds.items()}
        against_one = spread(ratios(seconds["two"], seconds["one"]))
        overhead = [100 * (ratio - 1) for ratio in ratios(seconds["two"], seconds["apart"])]
        rows = [
            ["two processes of one thread, one process with two threads", against_one],
            ["two processes, two runs of half the batch that exchange nothing", spread(overhead, 1, " % more")],
        ]
        text += [
            "On two cores, as many examples a step. The second row is what exchanging gradients and waiting for each "
            "other costs.",
            table(["time a real token of …, beside that of …", "ratio"], rows),
        ]
    if balance:
        first, second = (np.array(balance[device], float) for device in ("0", "1"))
        apart = 100 * abs(first.sum() / second.sum() - 1)
        each = 100 * np.abs(first - second) / np.maximum(first, second)
        text.append(
            f"**Balance**, tokens computed on in {len(first)} steps: in all, the two are {apart:.1f} % apart; goal "
            f"≤ 3 %: {verdict(apart, 3, True)}. In a single step the one with less has {each.mean():.1f} % fewer "
            f"on average, {each.max():.1f} % at most."
        )
    return "\n\n".join(text)
