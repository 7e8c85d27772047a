"""Model quality: one multi-task model compared with single-task models, with the same script and budget."""

import json
import math
import shutil
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

from multitask.tasks.metrics import average

from . import clocked, workload
from .figures import mean_and_deviation, table, verdict
from .results import Results
from .setting import Setting

LEARNING_RATE = 1e-4  # of all runs with full fine-tuning
LORA = {"adapters__rank": 8, "training__learning_rate": 1e-3}  # LoRA needs ten times the learning rate
SINGLES = "single-task models, one each"
MULTI = "one multi-task model"
LORA_MULTI = "one encoder, a LoRA for each task"
BALANCINGS = ("uncertainty", "famo")


def variants() -> dict[str, dict[str, Any]]:
    """The variants that train on all tasks together, and their options."""
    balanced = {f"{MULTI}, {name}": {"training__loss_balancing": name} for name in BALANCINGS}
    return {MULTI: {}, LORA_MULTI: LORA, **balanced}


def measure(setting: Setting) -> None:
    """Trains all variants seed by seed, so that a short budget gives fewer but complete seeds.

    An interrupted run is resumed from its last checkpoint.
    """
    setting.results.put("quality_epochs", setting.num_train_epochs)
    setting.results.once("validation_rows", lambda: setting.isolated(validation_rows, setting.options()))
    for seed in setting.seeds:
        for task in setting.tasks():
            _run(setting, seed, SINGLES, setting.config_of([task]), {}, f"/{task}")
        for variant, options in variants().items():
            _run(setting, seed, variant, setting.config, options)
    setting.results.once("parameters", lambda: _parameters(setting))


def _run(setting: Setting, seed: int, variant: str, config: Path, options: dict[str, Any], part: str = "") -> None:
    name = f"quality/{seed}/{variant}{part}"
    if setting.results.get(name) is None and time.monotonic() > setting.deadline:
        print(f"{name}: left out, the budget is used up")
        return
    folder = setting.folder / "quality" / f"{seed} {variant}{part}".replace("/", " ").replace(", ", " ")
    budget = {"training__num_train_epochs": setting.num_train_epochs}
    if setting.smoke:
        budget = {"training__max_steps": 2}
    command = setting.options(
        config,
        **{"training__learning_rate": LEARNING_RATE, "training__seed": seed} | budget | options,
        training__output_dir=folder,
        training__resume_from_checkpoint="auto",
        training__save_steps=100,
        training__save_total_limit=1,
    )

    def train() -> dict[str, dict[str, float]]:
        setting.isolated(clocked.train, command)
        return json.loads((folder / "metrics.json").read_text())["tasks"]

    setting.results.once(name, train)
    shutil.rmtree(folder, ignore_errors=True)


def _parameters(setting: Setting) -> dict[str, int]:
    singles = (setting.options(setting.config_of([task])) for task in setting.tasks())
    return {
        MULTI: setting.isolated(num_parameters, setting.options()),
        SINGLES: sum(setting.isolated(num_parameters, options) for options in singles),
    }


def num_parameters(options: list[str]) -> int:
    """Number of parameters of the model that a run trains."""
    return sum(parameter.numel() for parameter in workload.load(options).build_model().parameters())


def validation_rows(options: list[str]) -> dict[str, int]:
    """Number of validation rows of each task."""
    return {task.name: len(task.validation) for task in workload.load(options).tasks if task.validation is not None}


# -- page section -----------------------------------------------------------------------------------------------------


def by_variant(results: Results) -> dict[str, dict[int, dict[str, dict[str, float]]]]:
    """The metrics of each task, by variant and seed; only seeds with results for all tasks are included."""
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for name, of_tasks in results.under("quality").items():
        seed, variant = name.split("/")[:2]
        found.setdefault(variant, {}).setdefault(int(seed), {}).update(of_tasks)
    num_tasks = max((len(of_tasks) for seeds in found.values() for of_tasks in seeds.values()), default=0)
    return {
        variant: {seed: of_tasks for seed, of_tasks in sorted(seeds.items()) if len(of_tasks) == num_tasks}
        for variant, seeds in found.items()
    }


def section(results: Results) -> str:
    """The page's section on quality."""
    found = {variant: seeds for variant, seeds in by_variant(results).items() if seeds}
    if not found:
        return ""
    tasks = {task: list(of) for task, of in next(iter(next(iter(found.values())).values())).items()}
    columns = [(task, metric) for task, metrics in tasks.items() for metric in metrics]
    rows = []
    for variant, seeds in found.items():
        cells = [mean_and_deviation([100 * of[task][metric] for of in seeds.values()]) for task, metric in columns]
        averages = [100 * average(of) for of in seeds.values()]
        rows.append([variant, *cells, f"**{mean_and_deviation(averages)}**", len(seeds)])
    epochs = results.get("quality_epochs")
    text = [
        "## Quality",
        f"{epochs:g} pass{'es' * (epochs != 1)} over the data for every model: the single-task models together see "
        "what the multi-task model sees and make as many updates together as it makes alone, each of them few for a "
        f"small task. Learning rate {LEARNING_RATE:g}, with LoRA {LORA['training__learning_rate']:g}, chosen before "
        "and the same for all; mean ± standard deviation over seeds, in points of 100.",
        table(["", *(f"{task} {metric}" for task, metric in columns), "average", "seeds"], rows),
        _noise(found, columns, results.get("validation_rows") or {}),
    ]
    if parameters := results.get("parameters"):
        share = parameters[MULTI] / parameters[SINGLES]
        text.append(
            f"The multi-task model has {parameters[MULTI] / 1e6:.1f} million parameters, {share:.2f} times those of "
            f"the single-task models together ({parameters[SINGLES] / 1e6:.1f} million)."
        )
    text += [_compared_with_singles(found), _compared_with_full(found)]
    return "\n\n".join(filter(None, text))


def _noise(found: dict[str, Any], columns: list[tuple[str, str]], num_rows: dict[str, int]) -> str:
    seeds, known = next(iter(found.values())), []
    for task, metric in columns:
        if metric == "accuracy" and task in num_rows:
            share = mean(of[task][metric] for of in seeds.values())
            error = 100 * math.sqrt(share * (1 - share) / num_rows[task])
            known.append(f"{error:.1f} points for {task} ({num_rows[task]:,} validation rows)")
    if not known:
        return ""
    return (
        f"That there are so few rows to judge by makes a standard error of accuracy of {', '.join(known)}. "
        "Differences below that, and below the deviations, say nothing."
    )


def differences(found: dict[str, Any], variant: str, reference: str) -> list[float]:
    """The difference between the averages of two variants for each seed, in points."""
    seeds = sorted(found.get(variant, {}).keys() & found.get(reference, {}).keys())
    return [100 * (average(found[variant][seed]) - average(found[reference][seed])) for seed in seeds]


def _half_interval(values: list[float]) -> float:
    """Half the width of a mean's 95 % confidence interval by Student's t distribution; infinite for a single value."""
    if len(values) < 2:
        return math.inf
    return float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def _with_confidence(values: list[float]) -> str:
    half, count = _half_interval(values), len(values)
    confidence = f"95 % confidence: ± {half:.1f}, {count} seeds" if count > 1 else "one seed"
    return f"{mean(values):+.1f} points on average ({confidence})"


def _compared_with_singles(found: dict[str, Any]) -> str:
    if not (values := differences(found, MULTI, SINGLES)):
        return ""
    difference, half = mean(values), _half_interval(values)
    if difference >= 0:
        reached = "met"
    else:
        reached = "met, as noise explains the difference" if difference + half >= 0 else "**missed**"
    return (
        f"{MULTI}, beside {SINGLES}: {_with_confidence(values)}; goal: above, or below by no more than noise: "
        f"{reached}."
    )


def _compared_with_full(found: dict[str, Any]) -> str:
    if not (values := differences(found, LORA_MULTI, MULTI)):
        return ""
    return (
        f"{LORA_MULTI}, beside {MULTI}: {_with_confidence(values)}; goal: no more than 1 below: "
        f"{verdict(mean(values), -1.0)}."
    )
