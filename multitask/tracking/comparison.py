"""Several runs side by side: what differs in their settings, their results with intervals, their curves."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from ..errors import UserError, first_line
from ..evaluation.bootstrap import Difference, resampled
from ..evaluation.validation_rows import NAME, RowPredictions, read_rows
from ..tasks.base import TASK_TYPES
from ..tasks.metrics import Results, average
from ..utils import as_yaml, flatten
from . import charts
from .report import Curves, drawable, environment_of_templates, read_curves
from .run_directory import HARMLESS
from .trackers import run_name

# Settings that do not affect results; the length and the beginning of a run, which may change in one run, do.
UNINTERESTING = HARMLESS - {"training.max_steps", "training.num_train_epochs", "training.init_from_checkpoint"}


@dataclass(frozen=True)
class Contender:
    """A run, or the runs of several seeds.

    Args:
        name: of its folder.
        config: its flat configuration; without the seed if there are several.
        rows: for each run: each task's predictions in its last evaluation.
        curves: for each run: the curves of its metrics.
    """

    name: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, RowPredictions]]
    curves: Sequence[Curves]

    def results(self, run: int) -> Results:
        """The metrics of one of its runs, computed from its predictions."""
        return {
            task: {name: metric_of(of, name)(of.references, of.predictions) for name in of.metrics}
            for task, of in self.rows[run].items()
        }


@dataclass(frozen=True)
class Line:
    """A line of the table of results.

    Args:
        task: its name; "average" for the last line.
        metric: its name; empty for the average.
        values: of each contender, the mean over its runs; None where it has no such task or metric.
        deviations: of each contender, over its runs; None where there are fewer than two.
        differences: of each contender to the first one; None for the first, and where rows are not the same.
    """

    task: str
    metric: str
    values: list[float | None]
    deviations: list[float | None]
    differences: list[Difference | None]


def metric_of(of: RowPredictions, name: str) -> Any:
    """A metric as a function of (references, predictions)."""
    return TASK_TYPES[of.type].metric(name, len(of.labels))


def read_contender(folder: Path) -> Contender:
    """Reads a run's folder, or a folder with the runs of several seeds (`seed-N`).

    Raises:
        UserError: if there is no run with an evaluation.
    """
    seeds = sorted(folder.glob("seed-*"), key=lambda path: (len(path.name), path.name))
    folders = seeds if seeds and not (folder / "config.yaml").exists() else [folder]
    configs = []
    for path in folders:
        try:
            configs.append(flatten(yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))))
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            there = "is not the folder of a run" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {there} ({first_line(error)})") from error
    config = {k: v for k, v in configs[0].items() if len(folders) == 1 or k != "training.seed"}
    rows = [read_rows(path / NAME) for path in folders]
    return Contender(run_name(folder), config, rows, [read_curves(path / "metrics.jsonl") for path in folders])


def differing_settings(contenders: Sequence[Contender]) -> list[tuple[str, list[str]]]:
    """The settings in which contenders differ, with their values in each; a task that some lack is one of them."""
    tasks = [{key.split(".")[1] for key in of.config if key.startswith("tasks.")} for of in contenders]
    lacking = set().union(*tasks) - tasks[0].intersection(*tasks)
    keys = dict.fromkeys(key for contender in contenders for key in contender.config)
    lines: dict[str, list[str]] = {}
    for key in keys:
        if key.startswith("tasks.") and (task := key.split(".")[1]) in lacking:
            lines[f"tasks.{task}"] = ["present" if task in of else "absent" for of in tasks]
            continue
        values = [as_yaml(contender.config.get(key)) for contender in contenders]
        if len(set(values)) > 1 and key not in UNINTERESTING:
            lines[key] = values
    return list(lines.items())


def compare(contenders: Sequence[Contender], num_samples: int = 1000) -> list[Line]:
    """The table of results: a line for each metric of each task, and their average.

    Differences have intervals of the paired bootstrap (`evaluation/bootstrap.py`) with `num_samples` resamples.
    """
    results = [[contender.results(run) for run in range(len(contender.rows))] for contender in contenders]
    first, lines = contenders[0], []
    metrics = dict.fromkeys(
        (task, name) for of in results for run in of for task, values in run.items() for name in values
    )
    samples: dict[tuple[str, str], list[Any]] = {}
    for task, name in metrics:
        of_runs = [[run[task][name] for run in of if name in run.get(task, {})] for of in results]
        samples[task, name] = [_samples(first, other, task, name, num_samples) for other in contenders]
        lines.append(_line(task, name, of_runs, samples[task, name]))
    of_runs = [[average(run) for run in of if run] for of in results]
    averages = [_average({pair: of[number] for pair, of in samples.items()}) for number in range(len(contenders))]
    is_whole = [{pair[0] for pair in metrics} == set(of[0]) for of in results]
    averages = [of if whole and is_whole[0] else None for of, whole in zip(averages, is_whole, strict=True)]
    return [*lines, _line("average", "", of_runs, averages)]


def _samples(first: Contender, other: Contender, task: str, name: str, num_samples: int) -> Any:
    """Resampled differences, if both sides have predictions for the same rows."""
    sides = [[run[task] for run in side.rows if task in run] for side in (first, other)]
    of_all = [of for side in sides for of in side]
    if other is first or not all(sides) or any(name not in of.metrics for of in of_all):
        return None
    if any(of.references != of_all[0].references or of.labels != of_all[0].labels for of in of_all):
        return None
    mine, theirs = ([of.predictions for of in side] for side in sides)
    return resampled(metric_of(of_all[0], name), of_all[0].references, mine, theirs, num_samples)


def _average(samples: Mapping[tuple[str, str], Any]) -> Any:
    """The mean over tasks of the mean over a task's metrics, resample by resample."""
    of_tasks: dict[str, list[Any]] = {}
    for (task, _), differences in samples.items():
        if differences is None:
            return None
        of_tasks.setdefault(task, []).append(differences)
    return np.mean([np.mean(of, axis=0) for of in of_tasks.values()], axis=0)


def _line(task: str, metric: str, of_runs: list[list[float]], samples: list[Any]) -> Line:
    values = [float(np.mean(of)) if of else None for of in of_runs]
    deviations = [float(np.std(of, ddof=1)) if len(of) > 1 else None for of in of_runs]
    differences = [
        None if of is None or value is None or values[0] is None else Difference.of(value - values[0], of)
        for value, of in zip(values, samples, strict=True)
    ]
    return Line(task, metric, values, deviations, differences)


def comparison_page(
    contenders: Sequence[Contender], settings: Sequence[tuple[str, list[str]]], lines: Sequence[Line]
) -> str:
    """Renders a comparison as one self-contained HTML page, with the curves of all contenders in one chart each."""
    drawn: list[tuple[str, Markup]] = []
    wanted = {"Validation: average": "eval/average"}
    wanted |= {f"Validation: {line.task} {line.metric}": f"eval/{line.task}/{line.metric}" for line in lines[:-1]}
    wanted |= {"Training loss": "train/loss"}
    for caption, name in wanted.items():
        curves = {c.name: curve for c in contenders if (curve := _mean_curve(c.curves, name)) is not None}
        if curves := drawable(curves):
            drawn.append((caption, charts.lines(caption, curves)))
    return (
        environment_of_templates()
        .get_template("comparison.html.jinja")
        .render(
            contenders=contenders,
            settings=settings,
            lines=lines,
            charts=drawn,
            written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        )
    )


def _mean_curve(runs: Sequence[Curves], name: str) -> charts.Curve | None:
    """A curve's mean over runs, at the steps that all of them have."""
    points = [dict(zip(*curves[name], strict=True)) for curves in runs if name in curves]
    if not points:
        return None
    steps = sorted(set(points[0]).intersection(*points))
    return steps, [float(np.mean([of[step] for of in points])) for step in steps]
