"""The HTML report of a run: one self-contained page without scripts or network requests."""

import datetime
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import torch
import yaml
from markupsafe import Markup

from ..tasks.metrics import HIGHER_IS_BETTER
from ..training.gradient_similarity import GROUP
from . import charts

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "numpy")


Curves = dict[str, charts.Curve]


def page(
    folder: Path,
    config: Mapping[str, Any],
    shares: Mapping[str, float],
    environment: Mapping[str, str],
    duration: str = "",
) -> str:
    """Renders the report of a run as HTML from the files in its folder.

    Args:
        folder: the run's folder, with metrics.jsonl and, after an evaluation, predictions.json.
        config: the run's configuration without private values (see `trackers.shareable`).
        shares: each task's planned share of the examples.
        environment: hardware and package versions: name -> value.
        duration: how long the run took so far; empty if unknown.
    """
    curves = read_curves(folder / "metrics.jsonl")
    predictions = _read(folder / "predictions.json") or {"step": None, "tasks": {}}
    return (
        environment_of_templates()
        .get_template("report.html.jinja")
        .render(
            name=folder.resolve().name,
            step=max((int(steps[-1]) for steps, _ in curves.values()), default=0),
            written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            results=_results(curves, list(shares)),
            overview=_overview(curves, shares),
            tasks=[_task(name, curves, predictions["tasks"].get(name)) for name in shares],
            evaluated_at=predictions["step"],
            agreement=agreement(curves),
            config=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
            environment=environment,
            duration=duration,
        )
    )


def environment_of_templates() -> jinja2.Environment:
    """The templates in this folder; what is put into them is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def describe_environment(devices: int, device: torch.device, precision: str) -> dict[str, str]:
    """Hardware, platform and package versions of a run, by name."""
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return {
        "devices": f"{devices} × {model}",
        "precision": precision,
        "processors": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    } | {package: version(package) for package in PACKAGES}


def read_curves(path: Path) -> Curves:
    """The curve of every metric in a metrics.jsonl, by name."""
    points: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        values = json.loads(line)
        values.pop("time", None)
        step = values.pop("step")
        for name, value in values.items():
            if value is not None:
                points.setdefault(name, {})[step] = value
    return {name: (sorted(of), [of[step] for step in sorted(of)]) for name, of in points.items()}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _results(curves: Curves, tasks: list[str]) -> list[dict[str, Any]]:
    """Rows of the results table: each metric at the first, best and last evaluation."""
    names = [name for task in tasks for name in curves if name.startswith(f"eval/{task}/")]
    names += ["eval/average"] if "eval/average" in curves else []
    rows = []
    for name in names:
        values = curves[name][1]
        best = max(values) if HIGHER_IS_BETTER.get(name.rpartition("/")[2], name == "eval/average") else min(values)
        task, _, metric = name.removeprefix("eval/").partition("/")
        rows.append({"task": task, "metric": metric, "first": values[0], "best": best, "last": values[-1]})
    return rows


def _picked(curves: Curves, names: Mapping[str, str]) -> Curves:
    """Selects and renames curves; `names` maps the displayed name to the logged one."""
    return {shown: curves[logged] for shown, logged in names.items() if logged in curves}


def drawable(curves: Curves) -> Curves:
    """The curves with more than one point; a single number stands in the table."""
    return {name: curve for name, curve in curves.items() if len(curve[0]) > 1}


def _overview(curves: Curves, shares: Mapping[str, float]) -> list[tuple[str, Markup]]:
    """Captions and charts of the whole run."""
    tasks = list(shares)
    drawn: list[tuple[str, Markup]] = []

    def add(caption: str, chosen: Curves, unit: str = "") -> None:
        if chosen := drawable(chosen):
            drawn.append((caption, charts.lines(caption, chosen, unit)))

    add("Training loss", _picked(curves, {"all": "train/loss"} | {task: f"train/{task}/loss" for task in tasks}))
    firsts = {task: next((n for n in curves if n.startswith(f"eval/{task}/")), "") for task in tasks}
    means = {f"{task} {name.rpartition('/')[2]}": name for task, name in firsts.items()}
    add("Validation", _picked(curves, {"average": "eval/average"} | means))
    given = {task: curves[f"train/{task}/examples"][1][-1] for task in tasks if f"train/{task}/examples" in curves}
    if total := sum(given.values()):
        pairs = {task: (shares[task], given.get(task, 0) / total) for task in tasks}
        caption = "Share of the examples"
        drawn.append((caption, charts.bars(caption, ("planned", "realised"), pairs, stacked=False)))
    losses = {task: f"eval/{task}/loss" for task in tasks}
    add("Validation loss", _picked(curves, losses))
    add("Learning rate", _picked(curves, {"learning rate": "train/learning_rate"}))
    add("Gradient norm, before clipping", _picked(curves, {"norm": "train/grad_norm"}))
    add("Tokens per second", _picked(curves, {"tokens": "train/tokens_per_second"}))
    add("Padding, share of the tokens", _picked(curves, {"padding": "train/padding_share"}))
    saved = {"saving": "checkpoint/seconds", "upload": "checkpoint/upload_seconds"}
    add("Checkpoints", _picked(curves, saved), "seconds")
    return drawn


def _task(name: str, curves: Curves, predictions: Mapping[str, Any] | None) -> dict[str, Any]:
    """A task's charts with their captions, its worst mistakes and its watched rows."""
    drawn = []
    of_task = [logged for logged in curves if logged.startswith(f"eval/{name}/")]
    metrics = {logged.rpartition("/")[2]: logged for logged in of_task if logged != f"eval/{name}/loss"}
    if chosen := drawable(_picked(curves, metrics)):
        drawn.append(("Validation", charts.lines(f"{name}: validation", chosen)))
    if predictions:
        picture = predictions["picture"]
        kind, title = picture["kind"], f"{name}: predictions"
        if kind == "scatter":
            drawn.append(("Predictions and labels", charts.scatter(title, picture["true"], picture["predicted"])))
        elif kind == "bars":
            drawn.append(("Validation rows", charts.bars(title, picture["segments"], picture["bars"])))
        else:
            counts, labels = picture["counts"], picture["labels"]
            shade = [[count / max(sum(of_row), 1) for count in of_row] for of_row in counts]
            texts = [[str(count) for count in of_row] for of_row in counts]
            caption = "Labels (rows) and predictions (columns)"
            caption += f"; {picture['others']:,} with other labels" if picture["others"] else ""
            drawn.append((caption, charts.heat(title, labels, labels, shade, texts, ("label", "predicted"))))
        if found := predictions.get("calibration"):
            drawn.append((calibration_caption(found), charts.reliability(f"{name}: calibration", found["bins"])))
    predictions = predictions or {}
    shown = {"type": "", "mistakes": [], "watched": [], "classes": {"counts": {}, "others": 0}}
    return {"name": name, "charts": drawn} | {key: predictions.get(key, empty) for key, empty in shown.items()}


def calibration_caption(found: Mapping[str, Any]) -> str:
    """What a calibration changes, and that it was fitted on the same rows."""
    errors, metrics = found["errors"], found["metrics"]
    text = (
        f"Confidence and accuracy; expected calibration error {errors['before']:.3f}, with a temperature of "
        f"{found['temperature']:.3g} {errors['after']:.3f}"
    )
    for name in metrics.get("after", {}):
        before, after, crossfitted = (metrics[when][name] for when in ("before", "after", "crossfitted"))
        text += f"; {name} {before:.3f}, with thresholds {after:.3f} (cross-fitted {crossfitted:.3f})"
    return f"{text}. Fitted on these rows; on rows that it was not fitted on the error is {errors['crossfitted']:.3f}"


def agreement(curves: Curves) -> list[tuple[str, Markup]]:
    """Charts of the cosines between the tasks' gradients, logged as `GROUP/[PART/]TASK/TASK`, if there are any."""
    of_parts: dict[str, dict[tuple[str, str], str]] = {}
    for name in curves:
        words = name.split("/")
        if words[0] == GROUP and len(words) in (3, 4):
            of_parts.setdefault("" if len(words) == 3 else words[1], {})[words[-2], words[-1]] = name
    drawn = []
    if whole := of_parts.pop("", {}):
        tasks = list(dict.fromkeys(task for pair in whole for task in pair))
        last = {pair: curves[name][1][-1] for pair, name in whole.items()}
        cosines = [[1.0 if a == b else last.get((a, b), last.get((b, a), 0.0)) for b in tasks] for a in tasks]
        texts = [[f"{cosine:.2f}" for cosine in of_row] for of_row in cosines]
        drawn.append(("Last", charts.heat("Agreement of the tasks' gradients", tasks, tasks, cosines, texts)))
        over_time = {f"{a}, {b}": curves[name] for (a, b), name in whole.items()}
        if over_time := drawable(over_time):
            drawn.append(("Over the steps", charts.lines("Agreement over the steps", over_time, "cosine")))
    if of_parts:
        pairs = list(dict.fromkeys(pair for part in of_parts.values() for pair in part))
        parts = sorted(of_parts, key=lambda part: (not part.startswith("emb"), len(part), part))
        cosines = [
            [curves[of_parts[part][pair]][1][-1] if pair in of_parts[part] else 0.0 for pair in pairs]
            for part in parts
        ]
        texts = [[f"{cosine:.2f}" for cosine in of_row] for of_row in cosines]
        columns = [f"{a}, {b}" for a, b in pairs]
        drawn.append(("By layer", charts.heat("Agreement by layer", parts, columns, cosines, texts)))
    return drawn
