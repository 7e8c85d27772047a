"""What a run leaves on disk: its configuration and its numbers."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from .config import Config, flatten, to_yaml
from .errors import UserError

# Settings that do not change what is learned; a run may be repeated in its folder with others.
HARMLESS = {
    "training.output_dir",
    "training.max_tokens_per_pass",
    "training.logging_steps",
    "training.eval_steps",
    "training.dataloader_num_workers",
    "training.gradient_checkpointing",
    "adapters.merge",
    "data_root",
    "model_root",
    "num_proc",
}


def check_run_folder(folder: Path, config: Config) -> None:
    """Refuses a folder that holds another configuration's run, or something else.

    Raises:
        UserError: naming the first setting that differs, or what is there.
    """
    path = folder / "config.yaml"
    if not path.exists():
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        if there:
            raise UserError(f"training.output_dir: {folder} holds no run but {there[0]}; give the run a new folder")
        return
    try:
        earlier_tree = yaml.safe_load(path.read_text())
        earlier = flatten(earlier_tree) | {"the order of tasks": list(earlier_tree["tasks"])}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"training.output_dir: {path} is not the configuration of a run; remove it") from error
    now = flatten(yaml.safe_load(to_yaml(config))) | {"the order of tasks": list(config.tasks)}
    for key in sorted((earlier.keys() | now.keys()) - HARMLESS):
        if earlier.get(key) != now.get(key):
            raise UserError(
                f"training.output_dir: {folder} holds a run of another configuration "
                f"({key} was {earlier.get(key)}, is {now.get(key)}); give this one a folder of its own"
            )


def open_run_folder(folder: Path, config: Config) -> None:
    """Makes the folder, writes the resolved configuration and starts the numbers anew.

    Raises:
        UserError: if the folder cannot be written to.
    """
    try:
        (folder / "export").mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "metrics.json"):
            (folder / name).unlink(missing_ok=True)
        (folder / "config.yaml").write_text(to_yaml(config))
    except OSError as error:
        raise UserError(f"training.output_dir: {error.filename} cannot be written: {error.strerror}") from error


def append_metrics(folder: Path, step: int, values: dict[str, float]) -> None:
    """Adds a line to metrics.jsonl; what is not a number is written as null."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step} | _finite(values)) + "\n")


def write_results(path: Path, step: int, results: dict[str, dict[str, float]], average: float) -> None:
    """Replaces a file like metrics.json, which holds the last evaluation."""
    content = {"step": step, "tasks": _finite(results)} | _finite({"average": average})
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
