"""How cost grows with tasks and adapters, and the cost of starting, checkpoints and evaluations."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from . import clocked, contenders, rows, starting, upkeep, workload
from .figures import middle, ratios, spread, table, verdict
from .results import Results
from .setting import Setting

NUM_TASKS = (3, 10, 30, 100)
NUM_ADAPTERS = (1, 8, 32)
EXAMPLES_A_STEP = 300  # three of each of 100 tasks
# Until batches of all sizes have occurred, steps allocate memory from the kernel and can take twice as long.
WARMUP_STEPS, STEPS = 6, 6
TASK_GOALS = {30: 1.04, 100: 1.08}  # times the time of the fewest
ADAPTER_GOALS = {8: 1.05, 32: 1.15}
GROWS = (
    "In a profile on two cores of an Intel Xeon (676c471), 100 tasks add to a step of 3, which takes about 2.4 s: "
    "40 ms for the heads, both ways, and 30 ms for update, clipping and batch. Their rows also have more lengths, as "
    "rows are grouped by length within a task, so that attention is computed in 14.5 groups instead of 6.8."
)


def measure(setting: Setting) -> None:
    """Runs all measurements in sequence; each alternates between the variants that it compares."""
    for question in (starting.measure, rows.measure, _tasks, _adapters, _memory, upkeep.measure):
        question(setting)


def write_tasks(setting: Setting, num_tasks: int) -> Path:
    """Writes a mixture of `num_tasks` tasks, among which the rows of the first task are divided evenly."""
    folder = setting.folder.resolve() / "configs"
    name = setting.tasks()[0]
    path = folder / f"{num_tasks}_tasks.yaml"
    if path.exists():
        return path
    rows, kind = setting.isolated(workload.raw_rows, setting.options(), name)
    tasks = {}
    for number in range(num_tasks):
        file = folder / f"{num_tasks}_tasks" / f"{number}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[number::num_tasks]))
        tasks[f"t{number}"] = {
            "type": kind,
            "dataset": "json",
            "data_files": {"train": str(file)},
            "validation_split": None,
            "inputs": ["a", "b"],
        }
    # By default, gradient similarity is measured in ten steps, and only with few tasks; it must not be timed here.
    training = {"output_dir": "runs/unused", "batch_size": 100 if setting.smoke else EXAMPLES_A_STEP}
    training |= {"agreement_steps": 0}
    content = {"model": {"encoder": setting.encoder}, "tasks": tasks, "training": training}
    path.write_text(yaml.safe_dump(content | {"mixture": {"sampling": "uniform"}}, sort_keys=False))
    return path


def _tasks(setting: Setting) -> None:
    counts = NUM_TASKS[:2] if setting.smoke else NUM_TASKS
    for number, count in setting.turns(counts):
        options = setting.options(write_tasks(setting, count), training__seed=number)
        setting.results.once(f"tasks/{number}/{count}", partial(_trained, setting, options))


def _adapters(setting: Setting) -> None:
    counts = NUM_ADAPTERS[:2] if setting.smoke else NUM_ADAPTERS
    for number, count in setting.turns(counts):
        options = setting.options(write_tasks(setting, count), training__seed=number, adapters__rank=8)
        setting.results.once(f"adapters/{number}/{count}", partial(_trained, setting, options))


def _trained(setting: Setting, options: list[str]) -> contenders.Measured:
    return setting.isolated(contenders.multitask, options, WARMUP_STEPS, STEPS, setting.scratch / "growth")


def _memory(setting: Setting) -> None:
    alone = setting.tasks()[: 1 if setting.smoke else None]
    for names in (setting.tasks(), *([name] for name in alone)):
        path = setting.config if len(names) > 1 else setting.config_of(names)
        options = setting.options(path, training__max_tokens_per_pass=2048)
        run = partial(setting.isolated, clocked.train_anew, options, setting.scratch / "memory", 4)
        setting.results.once(f"memory/{'+'.join(names)}", lambda r=run: {"peak_bytes": r()["peak_bytes"]})


# -- page section -----------------------------------------------------------------------------------------------------


def _at_most(of_rounds: list[float], goal: float | None) -> str:
    return f"≤ {goal}: {verdict(middle(of_rounds), goal, at_most=True)}" if goal else ""


def seconds_by_count(results: Results, name: str) -> dict[int, list[float]]:
    """Seconds per non-padding token by number of tasks, in the complete rounds."""
    rounds = sorted(results.rounds(name).items(), key=_number)
    return {int(count): [r["seconds"] / r["tokens"] for r in of] for count, of in rounds}


def _number(item: tuple[str, Any]) -> int:
    return int(item[0])


def section(results: Results) -> str:
    """The page's section on growth."""
    parts = (_about_tasks, starting.about_starting, rows.about_rows, starting.about_mixture, upkeep.about_upkeep)
    written = [part(results) for part in parts]
    return "\n\n".join(["## How cost grows", *filter(None, written)]) if any(written) else ""


def _about_tasks(results: Results) -> str:
    text = []
    if by_count := seconds_by_count(results, "tasks"):
        base = by_count[min(by_count)]
        rows = [
            [n, spread(ratios(of, base)), _at_most(ratios(of, base), TASK_GOALS.get(n))] for n, of in by_count.items()
        ]
        text += [
            f"**Tasks.** The rows of one task are dealt out to several; a step has {EXAMPLES_A_STEP} examples, "
            f"whatever their number. Times are those of a real token, over {STEPS} steps after {WARMUP_STEPS}.",
            table(["tasks", f"time, times that of {min(by_count)} tasks", "goal"], rows),
            *([GROWS] if 100 in by_count else []),
        ]
    if by_count := seconds_by_count(results, "adapters"):
        base = by_count[min(by_count)]
        peaks = {int(n): [r["peak_bytes"] / 2**20 for r in of] for n, of in results.rounds("adapters").items()}
        rows = [
            [
                n,
                spread(ratios(of, base)),
                _at_most(ratios(of, base), ADAPTER_GOALS.get(n)),
                f"{middle(peaks[n]):,.0f} MiB",
            ]
            for n, of in by_count.items()
        ]
        text += [
            "**A LoRA of its own for each task** (rank 8, all linear layers), the same way.",
            table(["tasks", f"time, times that of {min(by_count)}", "goal", "peak memory"], rows),
        ]
    if memory := {name: run["peak_bytes"] / 2**20 for name, run in results.under("memory").items()}:
        rows = [[name.replace("+", ", "), f"{peak:,.0f} MiB"] for name, peak in memory.items()]
        all_tasks = max(memory, key=lambda name: name.count("+"))
        singles = [peak for name, peak in memory.items() if name != all_tasks]
        text += ["**Peak memory** of a run, at most 2,048 tokens a pass.", table(["tasks", "peak"], rows)]
        if singles:
            text.append(
                f"All tasks together take {memory[all_tasks] / max(singles):.2f} times what the largest takes alone."
            )
    return "\n\n".join(text)
