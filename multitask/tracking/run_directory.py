"""The files of a run: its configuration, its numbers, its lock."""

import contextlib
import dataclasses
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from filelock import FileLock, Timeout

from ..config.schema import Config, ModelConfig, TaskConfig, TrainingConfig, to_yaml
from ..errors import UserError
from ..evaluation.validation_rows import NAME as VALIDATION_ROWS
from ..training.distributed import from_main_process
from ..utils import as_yaml, flatten, write_atomically

NUMBERS = ("metrics.jsonl", "metrics.json", "predictions.json", "watched.jsonl", VALIDATION_ROWS)


# Settings that may differ when a run is resumed, as they do not change the result. (training.eval_steps does where
# evaluations stop tasks or choose the best checkpoint.)
HARMLESS = {
    "training.output_dir",
    "training.overwrite_output_dir",
    "training.max_steps",  # a run may become longer
    "training.num_train_epochs",
    "training.init_from_checkpoint",  # it is where a run began
    "training.max_tokens_per_pass",
    "training.logging_steps",
    "training.eval_steps",
    "training.save_steps",
    "training.save_total_limit",
    "training.resume_from_checkpoint",
    "training.allow_changed_data",
    "training.dataloader_num_workers",
    "training.gradient_checkpointing",
    "adapters.merge",
    "checkpoints.remote",
    "tracking.report_to",
    "tracking.project",
    "tracking.agreement",
    "tracking.log_predictions",
    "card.license",
    "card.language",
    "data_root",
    "model_root",
    "num_proc",
}


class RunLock:
    """Keeps a second process out of a run's folder.

    The lock belongs to the operating system (`filelock`), which releases it when the process ends in any way, so a
    lock file left behind does not lock. A second file names the holder for the error message.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self.path, self.holder = folder / ".lock", folder / ".lock.holder"
        self.lock = FileLock(self.path)

    def acquire(self) -> None:
        """Takes the lock in an existing folder.

        Raises:
            UserError: if another process holds it, naming that process.
        """
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"training.output_dir: {self.path.parent} is in use by {self._holder()}; two processes would "
                f"overwrite each other's checkpoints: wait for it, stop it, or give this run another folder"
            ) from error
        except OSError as error:
            raise UserError(f"training.output_dir: {self.path} cannot be written: {error.strerror}") from error
        self.holder.write_text(
            f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}", encoding="utf-8"
        )

    def release(self) -> None:
        """Releases the lock, if it is held."""
        self.holder.unlink(missing_ok=True)
        self.lock.release()

    def _holder(self) -> str:
        with contextlib.suppress(OSError):
            if text := self.holder.read_text(encoding="utf-8").strip():
                return text
        return "another process"


def check_run_folder(folder: Path, config: Config) -> None:
    """Refuses a folder that holds another configuration's run, or something else.

    Raises:
        UserError: naming the first setting that differs, or what is there.
    """
    if config.training.overwrite_output_dir:
        names = [p.name for p in folder.iterdir() if not p.name.startswith(".lock")] if folder.is_dir() else []
        if names and not (folder / "config.yaml").is_file():
            raise UserError(
                f"training.overwrite_output_dir: {folder} holds no run but {min(names)}, which is not removed; give "
                f"the run a new folder"
            )
        return
    path = folder / "config.yaml"
    if not path.exists():
        there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        there -= {"config.yaml.partial", ".lock", ".lock.holder"}
        choice = config.training.resume_from_checkpoint
        if choice.startswith("gs://") or (config.checkpoints.remote and choice != "never"):
            there -= {"checkpoints"}  # of a run that was killed as it had fetched them; they tell whose they are
        if there:
            raise UserError(f"training.output_dir: {folder} holds no run but {min(there)}; give the run a new folder")
        return
    try:
        changed = changed_setting(yaml.safe_load(path.read_text(encoding="utf-8")), config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"training.output_dir: {path} is not the configuration of a run; remove it") from error
    if changed:
        raise UserError(
            f"training.output_dir: {folder} holds a run of another configuration "
            f"({changed}); give this one a folder of its own, or remove that run with "
            f"--training.overwrite_output_dir true"
        )


def changed_setting(earlier: dict[str, Any], config: Config) -> str | None:
    """The first setting that differs and changes the result, as "KEY was THIS, is THAT"; None if there is none.

    Args:
        earlier: configuration of a run, parsed from its YAML. A key that it lacks, as the run is older than the key,
            has its default.
        config: configuration to compare with it.
    """
    default = dataclasses.asdict(Config(ModelConfig(""), {}, TrainingConfig("")))
    default["tasks"] = {name: dataclasses.asdict(TaskConfig("", "", [])) for name in earlier["tasks"]}
    then = flatten(default) | flatten(earlier) | {"the order of tasks": list(earlier["tasks"])}
    now = flatten(yaml.safe_load(to_yaml(config))) | {"the order of tasks": list(config.tasks)}
    decides = config.training.load_best_model_at_end or any(task.patience for task in config.tasks.values())
    harmless = HARMLESS - {"training.eval_steps"} if decides else HARMLESS
    for key in sorted((then.keys() | now.keys()) - harmless):
        if then.get(key) != now.get(key):
            return f"{key} was {as_yaml(then.get(key))}, is {as_yaml(now.get(key))}"
    return None


@contextlib.contextmanager
def locked_run_folder(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Locks a run's folder for these processes. A folder that is created and not used is removed again.

    Raises:
        UserError: on all processes, if the folder cannot be created or another process trains in it.
    """
    lock, made = RunLock(folder), [path for path in (folder, *folder.parents) if not path.exists()]

    def take() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"training.output_dir: {error.filename} cannot be written: {error.strerror}") from error
        lock.acquire()

    from_main_process(accelerator, take)
    try:
        yield
    finally:
        if accelerator.is_main_process:
            lock.release()
            if made and {path.name for path in folder.iterdir()} <= {lock.path.name}:
                shutil.rmtree(folder)
                for parent in made[1:]:
                    with contextlib.suppress(OSError):
                        parent.rmdir()


def remove_run(folder: Path) -> None:
    """Removes the contents of a run's folder, except its lock."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.startswith(".lock"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def open_run_folder(folder: Path, config: Config, checkpoint: Path | None) -> None:
    """Creates the folder, writes the resolved configuration, and restores the numbers of the checkpoint.

    Args:
        folder: of the run.
        config: of the run.
        checkpoint: the checkpoint to resume from; None discards earlier numbers.

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
    """Appends a line to metrics.jsonl, with the Unix time; values that are not finite become null."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | _finite(values)) + "\n")


def write_results(path: Path, step: int, results: dict[str, dict[str, float]], average: float, **more: Any) -> None:
    """Replaces metrics.json (or a file like it) with the last evaluation and the values in `more`."""
    content = {"step": step, "tasks": _finite(results)} | _finite({"average": average} | more)
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
