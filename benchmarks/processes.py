"""Two processes on two cores beside one process with two threads: what keeping them in step costs, who works more."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multitask.batches import StepDataset

from . import clocked, workload
from .figures import ratios, spread, table, verdict
from .isolated import ROOT, Failed
from .results import Results
from .setting import Setting

WARMUP_STEPS = 2
BALANCE_STEPS = 200


def measure(setting: Setting) -> None:
    """Three ways to compute the same steps, in turns; and how many tokens each of two devices is given."""
    measured = {"one": _one_process, "two": _two_processes, "apart": _two_runs}
    for number, name in setting.turns(list(measured)):
        run = measured[name]
        setting.results.once(f"processes/{number}/{name}", lambda r=run: {"seconds": r(setting)})
    steps = 20 if setting.smoke else BALANCE_STEPS
    setting.results.once("balance", lambda: setting.isolated(device_tokens, setting.options(), steps))


def _num_steps(setting: Setting) -> int:
    return WARMUP_STEPS + setting.steps // 2


def _one_process(setting: Setting) -> float:
    run = setting.isolated(clocked.train_anew, setting.options(), setting.scratch / "one", _num_steps(setting), 2)
    return clocked.step_seconds(run, WARMUP_STEPS)


def _two_processes(setting: Setting) -> float:
    """The same batch shared by two processes of one thread, which exchange gradients."""
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    runs = _clocked(setting, [(torchrun, setting.options(training__output_dir=setting.scratch / "two"))])
    return max(clocked.step_seconds(run, WARMUP_STEPS) for run in runs)


def _two_runs(setting: Setting) -> float:
    """Two runs of one thread and half the batch side by side, which know nothing of each other: the limit of two."""
    batch = workload.read_command(setting.options()).config.training.batch_size // 2
    started = [
        ([], setting.options(training__output_dir=setting.scratch / f"apart_{i}", training__batch_size=batch))
        for i in range(2)
    ]
    return float(np.mean([clocked.step_seconds(run, WARMUP_STEPS) for run in _clocked(setting, started)]))


def _clocked(setting: Setting, commands: Sequence[tuple[list[str], list[str]]]) -> list[dict[str, Any]]:
    """What clocked programs, started together with one thread each, have measured in all of their processes."""
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
    files = [Path(file) for file in sorted(setting.folder.glob("clocked_*"))]
    runs = [json.loads(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    setting.clear_scratch()
    return runs


def device_tokens(options: list[str], steps: int) -> dict[str, list[int]]:
    """Of each step, the tokens that the first and the second of two devices compute on, padding included."""
    load = workload.load(options)
    splits, training = load.steps.splits, load.config.training
    tokens: dict[str, list[int]] = {}
    for device in range(2):
        share = StepDataset(load.mixture, splits, load.tokenizer.pad_token_id, training.max_tokens_per_pass, 2, device)
        tokens[str(device)] = [
            sum(of_task["inputs"]["input_ids"].numel() for part in share[step].passes for of_task in part.values())
            for step in range(steps)
        ]
    return tokens


# -- what is written about it -----------------------------------------------------------------------------------------


def section(results: Results) -> str:
    """The page's part about two processes."""
    rounds, balance = results.rounds("processes", ("one", "two", "apart")), results.get("balance")
    if not rounds and not balance:
        return ""
    text = ["## Two processes"]
    if rounds:
        seconds = {name: [r["seconds"] for r in of] for name, of in rounds.items()}
        against_one = spread(ratios(seconds["two"], seconds["one"]))
        overhead = [100 * (ratio - 1) for ratio in ratios(seconds["two"], seconds["apart"])]
        rows = [
            ["two processes of one thread, one process with two threads", against_one],
            ["two processes, two runs of half the batch that exchange nothing", spread(overhead, 1, " % more")],
        ]
        text += [
            "On two cores, the same examples a step. The second row is what exchanging gradients and waiting for "
            "each other costs.",
            table(["time a step of …, beside that of …", "ratio"], rows),
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
