"""How good it becomes: one model for all tasks beside one model for each, of the same script and the same budget."""

import json
import math
import shutil
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from multitask.evaluation import average

from . import clocked, workload
from .figures import mean_and_deviation, table, verdict
from .results import Results
from .setting import Setting

LEARNING_RATE = 1e-4  # of all runs that train the encoder
LORA = {"adapters__rank": 8, "training__learning_rate": 1e-3}  # LoRA learns at ten times the rate
SINGLES = "single-task models, one each"
MULTI = "one multi-task model"
LORA_MULTI = "one encoder, a LoRA for each task"
BALANCINGS = ("uncertainty", "famo")


def variants() -> dict[str, dict[str, Any]]:
    """What is trained on all tasks together, and with which options."""
    balanced = {f"{MULTI}, {name}": {"training__loss_balancing": name} for name in BALANCINGS}
    return {MULTI: {}, LORA_MULTI: LORA, **balanced}


def measure(setting: Setting) -> None:
    """Seed by seed, so that what a short budget leaves is a smaller table of whole seeds.

    A run that was interrupted goes on from its last checkpoint.
    """
    for seed in setting.seeds:
        for task in setting.tasks():
            _run(setting, seed, SINGLES, setting.config_of([task]), {}, f"/{task}")
        for variant, options in variants().items():
            _run(setting, seed, variant, setting.config, options)
    setting.results.once("parameters", lambda: _parameters(setting))
    setting.results.put("quality_epochs", setting.num_train_epochs)


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
        results = json.loads((folder / "metrics.json").read_text())["tasks"]
        shutil.rmtree(folder)
        return results

    setting.results.once(name, train)


def _parameters(setting: Setting) -> dict[str, int]:
    singles = (setting.options(setting.config_of([task])) for task in setting.tasks())
    return {
        MULTI: setting.isolated(num_parameters, setting.options()),
        SINGLES: sum(setting.isolated(num_parameters, options) for options in singles),
    }


def num_parameters(options: list[str]) -> int:
    """Of the model that a run trains."""
    return sum(parameter.numel() for parameter in workload.load(options).build_model().parameters())


# -- what is written about it -----------------------------------------------------------------------------------------


def by_variant(results: Results) -> dict[str, dict[int, dict[str, dict[str, float]]]]:
    """The metrics of each task, by variant and seed; single-task models count once a seed has all of them."""
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
    """The page's part about quality."""
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
        f"{epochs:g} pass{'es' * (epochs != 1)} over the data for every model (so the single-task models together see "
        f"what the multi-task model sees), learning rate {LEARNING_RATE:g}, with LoRA "
        f"{LORA['training__learning_rate']:g}; mean ± standard deviation over seeds, in points of 100.",
        table(["", *(f"{task} {metric}" for task, metric in columns), "average", "seeds"], rows),
        _noise(found, columns),
    ]
    if parameters := results.get("parameters"):
        share = parameters[MULTI] / parameters[SINGLES]
        text.append(
            f"The multi-task model has {parameters[MULTI] / 1e6:.1f} million parameters, {share:.2f} times those of "
            f"the single-task models together ({parameters[SINGLES] / 1e6:.1f} million)."
        )
    for reference, variant, allowed in ((SINGLES, MULTI, 0.0), (MULTI, LORA_MULTI, 1.0)):
        if reference in found and variant in found:
            text.append(_comparison(found, variant, reference, allowed))
    return "\n\n".join(filter(None, text))


def _noise(found: dict[str, Any], columns: list[tuple[str, str]]) -> str:
    seeds = next(iter(found.values()))
    accuracies = [(task, metric) for task, metric in columns if metric == "accuracy"]
    numbers = {"rte": 277, "commonsense_qa": 1221}
    known = []
    for task, metric in accuracies:
        if task in numbers:
            share = mean(of[task][metric] for of in seeds.values())
            error = 100 * math.sqrt(share * (1 - share) / numbers[task])
            known.append(
                f"{task}'s {numbers[task]:,} validation rows alone make a standard error of {error:.1f} points"
            )
    return ("; ".join(known).capitalize() + ". Differences below that, and below the deviations, say nothing.") * bool(
        known
    )


def _comparison(found: dict[str, Any], variant: str, reference: str, allowed: float) -> str:
    """Whether the average of a variant is not below another's by more than is allowed and noise explains."""
    seeds = found[variant].keys() & found[reference].keys()
    if not seeds:
        return ""
    differences = [100 * (average(found[variant][seed]) - average(found[reference][seed])) for seed in sorted(seeds)]
    if len(seeds) < 2:
        return f"{variant}: {differences[0]:+.1f} points on average beside {reference}, of one seed only."
    error = stdev(differences) / math.sqrt(len(differences))
    goal = f"within {allowed:g} point" if allowed else "not below it by more than noise"
    reached = verdict(mean(differences) + 2 * error, -allowed)
    return (
        f"{variant}, beside {reference}: {mean(differences):+.1f} points on average, with a standard error of "
        f"{error:.1f} over {len(seeds)} seeds; goal: {goal}: {reached}."
    )
