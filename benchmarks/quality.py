"""Model quality: one multi-task model compared with single-task models, with the same script and budget.

The learning rate of every contender, and the levers of the combination, are chosen on training rows that are held out
for that (`TUNING_SHARE`); validation rows only judge.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from accelerate.state import AcceleratorState

from multitask.cli.arguments import read_command
from multitask.data.sources import load_splits
from multitask.evaluation.validation_rows import NAME, read_rows
from multitask.tasks.metrics import average
from multitask.tracking.comparison import Contender, compare

from . import clocked, workload
from .figures import mean_and_deviation, table, verdict
from .results import Results
from .setting import Setting

SINGLES = "single-task models, one each"
MULTI = "one multi-task model"
BEST = f"{MULTI}, best combination"
LORA_MULTI = "one encoder, a LoRA for each task"
LORA_BOTH = "one encoder, a LoRA for each task and one for all"
DISTILLED = f"{MULTI}, distilled from them"
RATES = (1e-4, 2e-4)  # that are tried, and twice the highest while that is the best; with LoRA ten times these
# Four of rank 6, if there are three tasks, have as many parameters as three of rank 8.
LORA: dict[str, dict[str, Any]] = {
    LORA_MULTI: {"adapters__rank": 8},
    LORA_BOTH: {"adapters__rank": 6, "adapters__scope": "both"},
}
TUNING_SHARE, TUNING_LENGTH = 0.1, 1 / 3  # of the training rows; of the length of a run
# A lever is not trained at full length if it lowers the average on held-out rows by more than about a standard error.
DROPPED = -0.01
SAMPLING: dict[str, dict[str, Any]] = {
    "uniform sampling": {"mixture__sampling": "uniform"},
    "temperature 2": {"mixture__sampling": "temperature", "mixture__temperature": 2},
    # Twice the passes that all tasks have on average, but at least two.
    "UniMax": {"mixture__sampling": "unimax", "mixture__max_epochs": None},
}
OTHER_LEVERS: dict[str, dict[str, Any]] = {
    "weights averaged over the last fifth": {"training__weight_averaging": 0.2},
    "lower rates for lower layers": {"training__layerwise_lr_decay": 0.9},
    "uncertainty weighting": {"training__loss_balancing": "uncertainty"},
}
LEVERS = SAMPLING | OTHER_LEVERS
# The goals: average beside the single-task models, lower end of the interval; LoRA beside full fine-tuning, in points.
LOWEST, LORA_LOSS = -0.5, -1.0


def measure(setting: Setting) -> None:
    """Chooses the learning rates, then trains seed by seed, so that a short budget gives fewer but complete seeds:
    first the contenders that the goals are about, then the others. An interrupted run is resumed from its last
    checkpoint.
    """
    results = setting.results
    results.put("quality_epochs", setting.num_train_epochs)
    results.once("validation_rows", lambda: setting.isolated(validation_rows, setting.options()))
    held_out = _hold_out(setting)
    adapted = {LORA_MULTI: LORA[LORA_MULTI]} if setting.smoke else LORA
    levers = {"UniMax": LEVERS["UniMax"]} if setting.smoke else LEVERS
    contenders: dict[str, dict[str, Any]] = {SINGLES: {}, MULTI: {}, **adapted}
    contenders |= {f"{MULTI}, {lever}": options for lever, options in levers.items()}
    contenders[DISTILLED] = {}
    for name, options in contenders.items():
        _choose_rates(setting, held_out, name, options)
    if (gains := lever_gains(results, levers)) is not None:
        contenders = {
            of: contenders[of] for of in contenders if gains.get(of.removeprefix(f"{MULTI}, "), 0) >= DROPPED
        }
        chosen = best_levers(gains)
        results.put("quality_combination", chosen)
        if len(chosen) > 1:
            contenders[BEST] = {key: value for lever in chosen for key, value in LEVERS[lever].items()}
            _choose_rates(setting, held_out, BEST, contenders[BEST])
    first = dict.fromkeys((SINGLES, MULTI, LORA_MULTI, recipe(results), DISTILLED))
    for group in (first, [name for name in contenders if name not in first]):
        for seed in setting.seeds:
            for name in group:
                _train_at_full_length(setting, name, contenders[name], seed)
    results.once("parameters", lambda: _parameters(setting))
    _compare(setting)


def recipe(results: Results) -> str:
    """The contender of one model that held-out rows recommend: with the levers that helped there."""
    chosen = results.get("quality_combination") or []
    return BEST if len(chosen) > 1 else ", ".join([MULTI, *chosen])


def _train_at_full_length(setting: Setting, name: str, options: dict[str, Any], seed: int) -> None:
    """Trains a contender, if its rate is known, with a seed."""
    for task in _parts(setting, name):
        rate = setting.results.get(f"quality_rate/{name}/{task}")
        if rate is None:
            continue
        taught = _teachers(setting, f"quality/{seed}") if name == DISTILLED else {}
        if taught is not None:
            config = setting.config_of([task]) if task else setting.config
            _train(setting, f"quality/{seed}/{name}/{task}", config, options | taught, rate, seed)


def _parts(setting: Setting, contender: str) -> list[str]:
    """The tasks that a contender has a model each for; one of no name for a model of all."""
    return setting.tasks() if contender == SINGLES else [""]


def _rates(setting: Setting, contender: str) -> list[float]:
    """The learning rates that are tried for a contender."""
    rates = list(RATES[:1] if setting.smoke else RATES)
    return [10 * rate if contender in LORA else rate for rate in rates]


def _hold_out(setting: Setting) -> Path:
    """Writes a mixture whose validation rows are training rows, which are missing among its training rows."""
    config, content, folder = read_command(setting.options()).config, {}, setting.folder / "held_out"
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in config.tasks.items():
        rows = load_splits(name, task, config.data_root)["train"]
        order = np.random.default_rng(0).permutation(len(rows))
        few = math.ceil(TUNING_SHARE * len(rows))
        files = {}
        for split, numbers in (("validation", order[:few]), ("train", order[few:])):
            files[split] = str(folder / f"{name}-{split}.parquet")
            if not Path(files[split]).exists():
                rows.select(np.sort(numbers)).to_parquet(files[split])
        content[name] = {"dataset": "parquet", "data_files": files, "subset": None}
    return setting.config_with("held_out", content)


def _choose_rates(setting: Setting, config: Path, name: str, options: dict[str, Any]) -> None:
    """Trains with each learning rate on a part of the training rows and notes the best on the others."""
    results = setting.results
    for task in _parts(setting, name):
        rates, scores = _rates(setting, name), {}
        taught = _teachers(setting, "quality_tuning") if name == DISTILLED else {}
        if taught is None:
            continue
        for rate in rates:
            key = f"quality_tuning/{name}/{task}/{rate:g}"
            of_task = setting.config_of([task], config) if task else config
            _train(setting, key, of_task, options | taught, rate, seed=0, length=TUNING_LENGTH)
            if (found := results.get(key)) is not None:
                scores[rate] = average(found)
                if rate == rates[-1] == max(scores, key=lambda rate: scores[rate]) and not setting.smoke:
                    rates.append(2 * rate)
        if len(scores) == len(rates):
            results.put(f"quality_rate/{name}/{task}", max(scores, key=lambda rate: scores[rate]))
            results.put(f"quality_held_out/{name}/{task}", max(scores.values()))


def lever_gains(results: Results, levers: Collection[str]) -> dict[str, float] | None:
    """By how much each lever raised the average on held-out rows; None until that is known of all."""
    scores = {name: results.get(f"quality_held_out/{name}/") for name in (MULTI, *(f"{MULTI}, {of}" for of in levers))}
    if None in scores.values():
        return None
    return {lever: scores[f"{MULTI}, {lever}"] - scores[MULTI] for lever in levers}


def best_levers(gains: Mapping[str, float]) -> list[str]:
    """The levers that raised the average on held-out rows, of the ways to sample only the best."""
    sampling = max((lever for lever in SAMPLING if lever in gains), key=lambda lever: gains[lever])
    return [lever for lever in gains if gains[lever] > 0 and (lever == sampling or lever not in SAMPLING)]


def _train(
    setting: Setting,
    name: str,
    config: Path,
    options: dict[str, Any],
    rate: float,
    seed: int,
    length: float = 1.0,
) -> None:
    """Trains one model and keeps its results, its time and what it predicted."""
    if setting.results.get(name) is None and time.monotonic() > setting.deadline:
        print(f"{name}: left out, the budget is used up")
        return
    folder = setting.folder / "quality" / name.replace("/", " ").replace(", ", " ").strip()
    epochs = length * setting.num_train_epochs
    budget = {"training__max_steps": 2} if setting.smoke else {"training__num_train_epochs": epochs}
    if "mixture__max_epochs" in options:
        options = options | {"mixture__max_epochs": 2 * max(epochs, 1.0)}
    command = setting.options(
        config,
        **{"training__learning_rate": rate, "training__seed": seed} | budget | options,
        training__output_dir=folder,
        training__resume_from_checkpoint="auto",
        training__agreement_steps=0,
        training__save_steps=100,
        training__save_total_limit=1,
    )

    def train() -> dict[str, dict[str, float]]:
        setting.isolated(train_in, setting.mixed_precision, command)
        found = json.loads((folder / "metrics.json").read_text())
        setting.results.put(f"quality_seconds/{name}", found["run_seconds"])
        rows_file(setting.folder, name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / NAME, rows_file(setting.folder, name))
        if SINGLES in name:
            shutil.copytree(folder / "export", _export(setting, name), dirs_exist_ok=True)
        return found["tasks"]

    setting.results.once(name, train)
    shutil.rmtree(folder, ignore_errors=True)


def train_in(mixed_precision: str, options: list[str]) -> str:
    """Trains with a command's options; returns the precision that Accelerate used."""
    # Here and not in the benchmark's process: this one has the environment of the server that it was forked from.
    os.environ["ACCELERATE_MIXED_PRECISION"] = mixed_precision
    clocked.train(options)
    return AcceleratorState().mixed_precision


def _teachers(setting: Setting, prefix: str) -> dict[str, str] | None:
    """The options that make the single-task models teachers: those of a seed, or the best ones of tuning.

    None if one of them has not been trained, or has not been kept.
    """
    options = {}
    for task in setting.tasks():
        name = f"{prefix}/{SINGLES}/{task}"
        if prefix == "quality_tuning":
            name += f"/{setting.results.get(f'quality_rate/{SINGLES}/{task}') or 0:g}"
        folder = _export(setting, name) / task
        if not folder.exists():
            print(f"{prefix}/{DISTILLED}: left out, there is no teacher {folder}")
            return None
        options[f"tasks__{task}__teacher"] = str(folder)
    return options


def _export(setting: Setting, name: str) -> Path:
    """Where the exported model of a single-task run is kept."""
    return setting.folder / "teachers" / name.replace("/", " ").replace(", ", " ")


def rows_file(folder: Path, name: str) -> Path:
    """Where the predictions of a run on its validation rows are kept."""
    return folder / "quality_rows" / f"{name.replace('/', ' ').strip()}.parquet"


def _parameters(setting: Setting) -> dict[str, int]:
    singles = (setting.options(setting.config_of([task])) for task in setting.tasks())
    lora = setting.options(**LORA[LORA_MULTI])
    return {
        MULTI: setting.isolated(num_parameters, setting.options()),
        SINGLES: sum(setting.isolated(num_parameters, options) for options in singles),
    } | dict(zip((LORA_MULTI, "encoder"), setting.isolated(lora_parameters, lora), strict=True))


def num_parameters(options: list[str]) -> int:
    """Number of parameters of the model that a run trains."""
    return sum(parameter.numel() for parameter in workload.load(options).build_model().parameters())


def lora_parameters(options: list[str]) -> tuple[int, int]:
    """Number of parameters of all adapters of a run, and of the encoder without them."""
    model = workload.load(options).build_adapted_model()
    adapters = {p for task in model.tasks for p in model.adapter_parameters(task)}
    return sum(p.numel() for p in adapters), sum(p.numel() for p in model.encoder.parameters() if p not in adapters)


def validation_rows(options: list[str]) -> dict[str, int]:
    """Number of validation rows of each task."""
    return {task.name: len(task.validation) for task in workload.load(options).tasks if task.validation is not None}


# -- page section -----------------------------------------------------------------------------------------------------


def by_variant(results: Results) -> dict[str, dict[int, dict[str, dict[str, float]]]]:
    """The metrics of each task, by contender and seed; only seeds with results for all tasks are included."""
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for name, of_tasks in results.under("quality").items():
        seed, variant, _ = name.split("/")
        found.setdefault(variant, {}).setdefault(int(seed), {}).update(of_tasks)
    num_tasks = max((len(of_tasks) for seeds in found.values() for of_tasks in seeds.values()), default=0)
    complete = {
        variant: {seed: of_tasks for seed, of_tasks in sorted(seeds.items()) if len(of_tasks) == num_tasks}
        for variant, seeds in found.items()
    }
    return {variant: seeds for variant, seeds in complete.items() if seeds}


def _compare(setting: Setting) -> None:
    """Compares every contender with the single-task models and with one multi-task model, row by row."""
    found = by_variant(setting.results)
    pairs = [(SINGLES, variant) for variant in found if variant != SINGLES]
    pairs += [(MULTI, variant) for variant in found if variant not in (SINGLES, MULTI)]
    for pair in pairs:
        if not (seeds := sorted(set.intersection(*({*found.get(side, {})} for side in pair)))):
            continue
        sides = []
        for side in pair:
            names = [[f"quality/{seed}/{side}/{task}" for task in _parts(setting, side)] for seed in seeds]
            files = [[rows_file(setting.folder, name) for name in of_seed] for of_seed in names]
            rows = [{t: of for file in of_seed for t, of in read_rows(file).items()} for of_seed in files]
            sides.append(Contender(side, {}, rows, []))
        differences = {
            f"{line.task} {line.metric}".strip(): [100 * value for value in line.differences[1]]
            for line in compare(sides)
            if line.differences[1] is not None
        }
        setting.results.put(f"quality_difference/{pair[1]}/{pair[0]}", {"seeds": len(seeds), "of": differences})


def section(results: Results) -> str:
    """The page's section on quality."""
    found = by_variant(results)
    if not found:
        return ""
    tasks = {task: list(of) for task, of in next(iter(next(iter(found.values())).values())).items()}
    columns = [(task, metric) for task, metrics in tasks.items() for metric in metrics]
    rows = []
    for variant, seeds in found.items():
        cells = [mean_and_deviation([100 * of[task][metric] for of in seeds.values()]) for task, metric in columns]
        averages = [100 * average(of) for of in seeds.values()]
        rows.append(
            [variant, *cells, f"**{mean_and_deviation(averages)}**", _cost(results, found, variant), len(seeds)]
        )
    epochs = results.get("quality_epochs")
    text = [
        "## Quality",
        f"{epochs:g} pass{'es' * (epochs != 1)} over the data for every model: the single-task models together see "
        "what the multi-task model sees and make as many updates together as it makes alone. Mean ± standard "
        f"deviation over seeds, in points of 100. Time is that of training, times that of {MULTI}; what is distilled "
        "has that of its teachers, the single-task models of the same seed, on top of its own.",
        table(["", *(f"{task} {metric}" for task, metric in columns), "average", "time", "seeds"], rows),
        _noise(found, columns, results.get("validation_rows") or {}),
        _chosen(results, found),
        _significance(results, columns, SINGLES),
        _significance(results, columns, MULTI),
        _goals(results, found, columns),
        _size(results),
        _hours(results),
    ]
    return "\n\n".join(filter(None, text))


def _cost(results: Results, found: Mapping[str, Any], variant: str) -> str:
    """How long a contender trains beside one multi-task model, its teachers included."""
    taught = [SINGLES] if variant == DISTILLED else []
    seconds = sum(_seconds(results, name, found[variant]) for name in (variant, *taught))
    of_one = _seconds(results, MULTI, found.get(MULTI, ()))
    return f"{seconds / of_one:.1f}" if of_one else "–"


def _seconds(results: Results, variant: str, seeds: Collection[int]) -> float:
    """How long a contender's models trained together, the mean of some seeds; 0 if there are none."""
    of_runs = results.under("quality_seconds/quality").items()
    of_seeds = [sum(of for name, of in of_runs if name.startswith(f"{seed}/{variant}/")) for seed in seeds]
    return mean(of_seeds or [0.0])


def _noise(found: Mapping[str, Any], columns: list[tuple[str, str]], num_rows: Mapping[str, int]) -> str:
    seeds, known = next(iter(found.values())), []
    for task, metric in columns:
        if metric == "accuracy" and task in num_rows:
            share = mean(of[task][metric] for of in seeds.values())
            error = 100 * math.sqrt(share * (1 - share) / num_rows[task])
            known.append(f"{error:.1f} points for {task} ({num_rows[task]:,} validation rows)")
    if not known:
        return ""
    return f"That there are so few rows to judge by makes a standard error of accuracy of {', '.join(known)}."


def _chosen(results: Results, found: Mapping[str, Any]) -> str:
    """What was chosen on held-out training rows."""
    rates = {name.rstrip("/").replace("/", ", "): rate for name, rate in results.under("quality_rate").items()}
    scores = {name.rstrip("/").replace("/", ", "): of for name, of in results.under("quality_held_out").items()}
    rows = [[name, f"{rate:g}", f"{100 * scores[name]:.1f}"] for name, rate in rates.items()]
    text = (
        f"Learning rates, of {', '.join(f'{rate:g}' for rate in RATES)} and twice the highest where that was the best "
        "(with LoRA ten times these), were chosen with one seed in runs of a third of the length, by the average on "
        f"{TUNING_SHARE:.0%} of the training rows, which these runs did not train on:"
    )
    gains, end = lever_gains(results, [of for of in LEVERS if f"{MULTI}, {of}" in scores]), ""
    if gains is not None:
        dropped = [lever for lever, gain in gains.items() if gain < DROPPED]
        chosen = results.get("quality_combination") or ["none, so that it is the model as it is"]
        end = f"What raised that average, and of the ways to sample the best, is the combination: {', '.join(chosen)}."
        if dropped:
            end += f" What lowered it by more than a point was not trained further: {', '.join(dropped)}."
        tried = {name.split("/")[0] for name in results.under("quality_rate")}
        if missing := tried - set(found) - {f"{MULTI}, {lever}" for lever in dropped}:
            end += f" Not trained at full length yet: {'; '.join(sorted(missing))}."
    return "\n\n".join(filter(None, [text, table(["", "rate", "average held out"], rows), end]))


def _significance(results: Results, columns: list[tuple[str, str]], reference: str) -> str:
    """Differences of the other contenders to one of them, with intervals."""
    rows = []
    for name, of in results.under("quality_difference").items():
        variant, compared_with = name.split("/")
        if compared_with == reference:
            cells = [_interval(of["of"].get(f"{task} {metric}")) for task, metric in columns]
            rows.append([variant, *cells, _interval(of["of"].get("average")), of["seeds"]])
    head = ["", *(f"{task} {metric}" for task, metric in columns), "average", "seeds"]
    text = (
        f"Differences to {reference}, with 95 % intervals of the paired bootstrap over validation rows and seeds; "
        "where an interval holds 0, nothing is shown:"
    )
    return f"{text}\n\n{table(head, rows)}" if rows else ""


def _interval(difference: list[float] | None) -> str:
    if difference is None:
        return "–"
    value, low, high = difference
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _goals(results: Results, found: Mapping[str, Any], columns: list[tuple[str, str]]) -> str:
    """The goals, of the contender that held-out rows recommend and of the one that costs its teachers as well."""
    lines = []
    for name in dict.fromkeys((recipe(results), DISTILLED)):
        if of_name := results.get(f"quality_difference/{name}/{SINGLES}"):
            low = of_name["of"]["average"][1]
            lines.append(
                f"- {name}, average beside {SINGLES}, lower end of the interval {low:+.1f}; "
                f"goal: above {LOWEST:g}: {verdict(low, LOWEST)}"
            )
            if min(len(found[SINGLES]), len(found[name])) > 1:
                lines.append(_worst(found, name, columns))
    if of_lora := results.get(f"quality_difference/{LORA_MULTI}/{MULTI}"):
        lines.append(
            f"- {LORA_MULTI}, beside {MULTI}: {_interval(of_lora['of']['average'])}; goal: no more than "
            f"{-LORA_LOSS:g} below: {verdict(of_lora['of']['average'][0], LORA_LOSS)}"
        )
    return "\n".join(lines)


def _worst(found: Mapping[str, Any], contender: str, columns: list[tuple[str, str]]) -> str:
    """The metric in which a contender is furthest below the single-task models less their deviation over seeds."""
    margins = {}
    for task, metric in columns:
        alone, together = ([100 * of[task][metric] for of in found[who].values()] for who in (SINGLES, contender))
        difference, deviation = mean(together) - mean(alone), stdev(alone)
        margins[f"{task} {metric}"] = (difference + deviation, difference, deviation)
    name = min(margins, key=lambda of: margins[of])
    margin, difference, deviation = margins[name]
    return (
        f"- its worst metric beside {SINGLES}, {name}: {difference:+.1f}; goal: no more than their deviation over "
        f"seeds, {deviation:.1f}, below: {verdict(margin, 0)}"
    )


def _size(results: Results) -> str:
    if not (parameters := results.get("parameters")):
        return ""
    share, lora = parameters[MULTI] / parameters[SINGLES], parameters[LORA_MULTI] / parameters["encoder"]
    return (
        f"The multi-task model has {parameters[MULTI] / 1e6:.1f} million parameters, {share:.2f} times those of the "
        f"single-task models together ({parameters[SINGLES] / 1e6:.1f} million). All adapters together have "
        f"{lora:.1%} of the encoder's."
    )


def _hours(results: Results) -> str:
    seconds = results.under("quality_seconds")
    return f"Training took {sum(seconds.values()) / 3600:.1f} hours in {len(seconds)} runs." if seconds else ""
