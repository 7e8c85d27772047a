"""What a run leaves on disk: its configuration and its numbers."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import yaml

from ..config.schema import Config, to_yaml
from ..errors import UserError
from ..utils import flatten, write_atomically

NUMBERS = ("metrics.jsonl", "metrics.json", "predictions.json", "watched.jsonl")


# Settings that do not change what is learned; a run may be repeated in its folder with others. (Where evaluations
# decide which tasks go on or which step is the best, training.eval_steps does.)
HARMLESS = {
    "training.output_dir",
    "training.max_tokens_per_pass",
    "training.logging_steps",
    "training.eval_steps",
    "training.save_steps",
    "training.save_total_limit",
    "training.resume_from_checkpoint",
    "training.dataloader_num_workers",
    "training.gradient_checkpointing",
    "adapters.merge",
    "checkpoints.remote",
    "tracking.report_to",
    "tracking.project",
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
        there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        there -= {"config.yaml.partial"}
        choice = config.training.resume_from_checkpoint
        if choice.startswith("gs://") or (config.checkpoints.remote and choice != "never"):
            there -= {"checkpoints"}  # of a run that was killed as it had fetched them; they tell whose they are
        if there:
            raise UserError(f"training.output_dir: {folder} holds no run but {min(there)}; give the run a new folder")
        return
    try:
        changed = changed_setting(yaml.safe_load(path.read_text()), config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"training.output_dir: {path} is not the configuration of a run; remove it") from error
    if changed:
        raise UserError(
            f"training.output_dir: {folder} holds a run of another configuration "
            f"({changed}); give this one a folder of its own"
        )


def changed_setting(earlier: dict[str, Any], config: Config) -> str | None:
    """The first setting that changes what is learned and is not what it was: "KEY was THIS, is THAT".

    Args:
        earlier: a run's configuration as it was read from its YAML.
        config: the one to compare.
    """
    then = flatten(earlier) | {"the order of tasks": list(earlier["tasks"])}
    now = flatten(yaml.safe_load(to_yaml(config))) | {"the order of tasks": list(config.tasks)}
    decides = config.training.load_best_model_at_end or any(task.patience for task in config.tasks.values())
    harmless = HARMLESS - {"training.eval_steps"} if decides else HARMLESS
    for key in sorted((then.keys() | now.keys()) - harmless):
        if then.get(key) != now.get(key):
            return f"{key} was {then.get(key)}, is {now.get(key)}"
    return None


def open_run_folder(folder: Path, config: Config, checkpoint: Path | None) -> None:
    """Makes the folder, writes the resolved configuration, and sets the numbers back to those of the checkpoint.

    Args:
        folder: of the run.
        config: of the run.
        checkpoint: the one that the run continues from; without one, the numbers start anew.

    Raises:
        UserError: if the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.yaml", to_yaml(config))  # first: by it, a folder is known as a run's
        (folder / "export").mkdir(exist_ok=True)
        for name in NUMBERS:
            (folder / name).unlink(missing_ok=True)
            if checkpoint and (checkpoint / name).exists():
                shutil.copyfile(checkpoint / name, folder / name)
    except OSError as error:
        raise UserError(f"training.output_dir: {error.filename} cannot be written: {error.strerror}") from error


def append_metrics(folder: Path, step: int, values: dict[str, float]) -> None:
    """Adds a line to metrics.jsonl; what is not a number is written as null."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step} | _finite(values)) + "\n")


def write_results(path: Path, step: int, results: dict[str, dict[str, float]], average: float) -> None:
    """Replaces a file like metrics.json, which holds the last evaluation."""
    content = {"step": step, "tasks": _finite(results)} | _finite({"average": average})
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
