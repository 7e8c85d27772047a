"""Validates a configuration as far as this is possible without the data."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ..errors import UserError, hint
from ..utils import flatten, split_url
from .schema import FILE_FORMATS, ROW_KEYS, TASK_RULES, Config, MixtureConfig, TaskConfig

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"  # of tasks


def check_config(config: Config) -> None:
    """Rejects settings that contradict each other or are out of range.

    Raises:
        UserError: naming the key, its value and what would be valid.
    """
    tasks, training = config.tasks, config.training
    if not tasks:
        raise UserError("tasks: there are none; a mixture needs at least one task")
    for name, task in tasks.items():
        _check_task(f"tasks.{name}", name, task)
    _check_rows(tasks)

    positive = [f"training.{key}" for key in ("batch_size", "max_tokens_per_pass", "learning_rate", "logging_steps")]
    positive += [
        f"training.{key}" for key in ("num_train_epochs", "max_steps", "eval_steps", "save_steps", "save_total_limit")
    ]
    positive += ["model.max_length", "num_proc"]
    positive += [f"mixture.{key}" for key in ("temperature", "final_temperature", "cap", "max_epochs")]
    positive += ["adapters.rank", "adapters.alpha"] if config.adapters else []
    of_task = ("weight", "max_train_examples", "max_eval_examples", "learning_rate", "patience")
    positive += [f"tasks.{t}.{key}" for t in tasks for key in of_task]
    not_negative = [
        f"training.{key}"
        for key in ("seed", "weight_decay", "max_grad_norm", "agreement_steps", "dataloader_num_workers")
    ]
    not_negative += [f"tasks.{t}.focal_gamma" for t in tasks]
    values = flatten(dataclasses.asdict(config))
    for key in positive + not_negative:
        value = values[key]
        if value is not None and not (0 < value < float("inf") or (value == 0 and key in not_negative)):
            raise UserError(f"{key}: {value} is not a {'positive number' if key in positive else 'number from 0 up'}")
    smoothings = [f"tasks.{t}.label_smoothing_factor" for t in tasks]
    for key in (
        "training.warmup_ratio",
        "training.weight_averaging",
        "model.dropout",
        *smoothings,
        *(["adapters.dropout"] if config.adapters else []),
    ):
        value = values[key]
        if value is not None and not 0 <= value < 1:
            raise UserError(f"{key}: {value} is not in the range 0 <= {key.split('.')[-1]} < 1")

    if not 0 < training.layerwise_lr_decay <= 1:
        raise UserError(
            f"training.layerwise_lr_decay: {training.layerwise_lr_decay} is not in the range 0 < decay <= 1; 1 is the "
            f"same learning rate for all layers"
        )
    streams = {task.rows or name for name, task in tasks.items()}  # that the mixture draws from
    if training.batch_size < len(streams):
        raise UserError(
            f"training.batch_size: {training.batch_size} examples a step cannot hold one of each of {len(streams)} "
            f"tasks"
        )
    _check_mixture(config.mixture, tasks)
    _check_evaluations(config)
    if config.adapters and not config.adapters.target_modules:
        raise UserError("adapters.target_modules: empty; all-linear, or a list of modules such as [query, value]")
    for name in (name for name, task in tasks.items() if task.adapter is not None):
        if config.adapters is None:
            raise UserError(f"tasks.{name}.adapter: has no effect without adapters; set adapters.rank to its rank")
        if config.adapters.scope == "shared":
            raise UserError(
                f"tasks.{name}.adapter: has no effect with adapters.scope: shared; it belongs to per_task or both"
            )
    if config.checkpoints.remote is not None:
        try:
            split_url(config.checkpoints.remote)
        except UserError as error:
            raise UserError(f"checkpoints.remote: {error}") from error
    if not training.output_dir:
        raise UserError("training.output_dir: empty; a run needs a folder of its own")
    if Path(training.output_dir).is_file():
        raise UserError(f"training.output_dir: {training.output_dir} is a file; a run needs a folder of its own")


def _check_rows(tasks: Mapping[str, TaskConfig]) -> None:
    """Rejects tasks that are said to have the same rows and do not."""
    first: dict[str, str] = {}
    for name, task in tasks.items():
        if task.rows is None:
            continue
        key = f"tasks.{name}.rows"
        if task.rows in tasks:
            raise UserError(f"{key}: {task.rows} is a task; the rows of several tasks need a name of their own")
        if not re.fullmatch(NAME, task.rows):
            raise UserError(f"{key}: '{task.rows}' is no name of letters, digits, '_' and '-'")
        if task.adapter is not None:
            raise UserError(f"tasks.{name}.adapter: tasks with the same rows share one adapter, which starts anew")
        other = first.setdefault(task.rows, name)
        for option in ROW_KEYS:
            if getattr(task, option) != getattr(tasks[other], option):
                there = getattr(tasks[other], option)
                raise UserError(
                    f"tasks.{name}.{option}: {getattr(task, option)}, but tasks.{other} has {there}; tasks with the "
                    f"same rows ({task.rows}) read the same"
                )


def _check_mixture(mixture: MixtureConfig, tasks: Mapping[str, TaskConfig]) -> None:
    sampling = mixture.sampling
    if sampling == "weights":
        weights, streams = mixture.weights or {}, {task.rows or name: task for name, task in tasks.items()}
        for name in sorted(weights.keys() - streams.keys()):
            of_rows = tasks[name].rows if name in tasks else None
            said = f"; '{of_rows}' has the rows of '{name}'" if of_rows else hint(name, streams, "tasks")
            raise UserError(f"mixture.weights: '{name}' is not a task{said}")
        for name in sorted(streams.keys() - weights.keys()):
            raise UserError(f"mixture.weights: '{name}' has none; sampling: weights needs a number for each task")
        if any(not 0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
            raise UserError(f"mixture.weights: {weights} must be numbers from 0 up, at least one of them above 0")
        for name, key in ((name, key) for name in tasks for key in ("patience", "learning_rate")):
            if not weights[tasks[name].rows or name] and getattr(tasks[name], key) is not None:
                raise UserError(f"tasks.{name}.{key}: has no effect, as mixture.weights gives {name} nothing to learn")
    elif mixture.weights:
        raise UserError(f"mixture.weights: has no effect with sampling: {sampling}; use sampling: weights")
    if mixture.final_temperature is not None and mixture.temperature is None:
        raise UserError(
            "mixture.final_temperature: there is no mixture.temperature to begin with; it needs sampling: temperature "
            "and both"
        )
    for key, of_sampling in (("temperature", "temperature"), ("max_epochs", "unimax")):
        if (sampling == of_sampling) != (getattr(mixture, key) is not None):
            found = "has no effect with" if getattr(mixture, key) else "missing; it is needed with"
            raise UserError(f"mixture.{key}: {found} sampling: {sampling}")
    if mixture.final_temperature is not None and mixture.final_temperature == mixture.temperature:
        raise UserError(f"mixture.final_temperature: {mixture.temperature:g} is mixture.temperature; leave it out")
    if mixture.cap is not None and sampling not in ("proportional", "temperature"):
        raise UserError(
            f"mixture.cap: has no effect with sampling: {sampling}; it belongs to proportional and temperature"
        )


def _check_evaluations(config: Config) -> None:
    """Rejects settings that need evaluations during training; metric names are checked once the data is loaded."""
    training = config.training
    for name, task in config.tasks.items():
        if task.patience is not None and not training.eval_steps:
            raise UserError(f"tasks.{name}.patience: needs evaluations to count; set training.eval_steps")
    if training.load_best_model_at_end and not training.eval_steps:
        raise UserError("training.load_best_model_at_end: the only evaluation is at the end; set training.eval_steps")


def _check_task(key: str, name: str, task: TaskConfig) -> None:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise UserError(f"{key}: a task's name becomes a folder: text of letters, digits, '_' and '-'")
    if name in ("row", "fields"):
        raise UserError(
            f"{key}: predictions have the row's {'number' if name == 'row' else name} under this name; choose another"
        )
    if hasattr(nn.ModuleDict(), name):
        raise UserError(f"{key}: the name '{name}' is taken by PyTorch's modules; choose another")
    TASK_RULES[task.type](key, task)
    if isinstance(task.choices, list) and len(task.choices) < 2:
        raise UserError(f"{key}.choices: {task.choices} is one column; give its name alone if it holds the list")
    if not task.dataset:
        raise UserError(f"{key}.dataset: empty; a hub id, a folder, or one of {', '.join(FILE_FORMATS)}")
    if task.dataset in FILE_FORMATS and task.subset:
        raise UserError(f"{key}.subset: has no effect with dataset: {task.dataset}")
    for split in (task.data_files or {}).keys() - {task.train_split, task.validation_split, "test"}:
        raise UserError(f"{key}.data_files.{split}: not used; name it 'validation', or set validation_split: {split}")
    if task.dataset in FILE_FORMATS and not task.data_files:
        raise UserError(f"{key}.data_files: missing; dataset: {task.dataset} needs {{train: FILE, validation: FILE}}")
