"""The configuration: frozen dataclasses, named as in `transformers.TrainingArguments` wherever it has the thing."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import nn

from .errors import UserError, hint

FILE_FORMATS = {"csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}  # to what `datasets` calls them
MetricName = Literal["accuracy", "f1", "matthews_correlation", "pearson", "spearmanr", "mse"]


@dataclass(frozen=True)
class ModelConfig:
    """The shared encoder.

    Args:
        encoder: Hub id, local folder, or `package://NAME/FOLDER` inside an installed Python package.
        max_length: Longest sequence in tokens; longer ones are cut, the longest part first.
        dropout: Dropout probability everywhere in the encoder and the heads; null keeps the encoder's own.
    """

    encoder: str
    max_length: int = 128
    dropout: float | None = None


@dataclass(frozen=True)
class TaskConfig:
    """One task: where its rows come from, which columns it reads, how it is measured.

    Args:
        type: What the head predicts: a number, a class, or which of several choices is right.
        dataset: Hub id, local folder, or the format of `data_files`: csv, json (also JSON Lines) or parquet.
        inputs: One or two columns with text; dots lead into nested rows (`question.stem`).
        subset: The dataset's configuration, where it has several.
        data_files: Local files per split, `{train: FILE, validation: FILE}`.
        train_split: Split to train on.
        validation_split: Split to evaluate on; null evaluates on none.
        label: Column with the number, the class, or the right choice.
        choices: For multiple_choice: a column that holds the list of choices, or a list of columns, one a choice.
        choice_labels: For multiple_choice: column with the choices' names, among which `label` is looked up;
            without it `label` is the index of the right choice, from 0.
        metrics: Metrics of the evaluation; empty takes the type's own.
        weight: Factor on the loss of each of this task's examples.
        max_train_examples: Use only the first so many rows for training.
        max_eval_examples: Use only the first so many rows for evaluation.
    """

    type: Literal["regression", "classification", "multiple_choice"]
    dataset: str
    inputs: list[str]
    subset: str | None = None
    data_files: dict[str, str | list[str]] | None = None
    train_split: str = "train"
    validation_split: str | None = "validation"
    label: str = "label"
    choices: str | list[str] | None = None
    choice_labels: str | None = None
    metrics: list[MetricName] = field(default_factory=list)
    weight: float = 1.0
    max_train_examples: int | None = None
    max_eval_examples: int | None = None


@dataclass(frozen=True)
class MixtureConfig:
    """How many of a step's examples each task gets.

    Args:
        sampling: Shares by number of rows (proportional), the same for all (uniform), rows to the power 1/temperature
            (temperature), or as given (weights).
        temperature: For sampling temperature: 1 is proportional; the higher, the more uniform.
        weights: For sampling weights: one number a task; a task with 0 is evaluated but not trained.
    """

    sampling: Literal["proportional", "uniform", "temperature", "weights"] = "proportional"
    temperature: float | None = None
    weights: dict[str, float] | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation; names are those of `transformers.TrainingArguments`.

    Args:
        output_dir: Folder of the run.
        seed: Seed of the heads, the order of the data and dropout.
        num_train_epochs: Passes over all tasks' rows together; `max_steps` takes precedence.
        max_steps: Optimizer steps.
        batch_size: Examples in one step, over all devices and all tasks.
        max_tokens_per_pass: A device's share of a step that holds more padded tokens is split into several passes.
        learning_rate: Peak of the schedule.
        weight_decay: AdamW's, on weight matrices; biases and norms have none.
        warmup_ratio: Part of the steps over which the learning rate rises from 0 to its peak.
        lr_scheduler_type: What follows the warm-up: a straight line to 0, half a cosine to 0, or the peak throughout.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them as they are.
        logging_steps: Steps between two lines in metrics.jsonl.
        eval_steps: Steps between two evaluations; null evaluates at the end only.
        dataloader_num_workers: Processes that prepare batches in the background; 0 prepares them in the loop.
    """

    output_dir: str
    seed: int = 0
    num_train_epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 32
    max_tokens_per_pass: int = 16384
    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    warmup_ratio: float = 0.06
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = 1.0
    logging_steps: int = 10
    eval_steps: int | None = None
    dataloader_num_workers: int = 1


@dataclass(frozen=True)
class Config:
    """One mixture of tasks on one encoder.

    Args:
        model: The shared encoder.
        tasks: The tasks by name; any key can be set with `--tasks.NAME.KEY VALUE`.
        training: The optimisation.
        mixture: How many of a step's examples each task gets.
        data_root: Folder that mirrors hub datasets (DIR/nyu-mll/glue); also MULTITASK_DATA_ROOT in the environment.
        model_root: Folder that mirrors hub models (DIR/roberta-base); also MULTITASK_MODEL_ROOT in the environment.
        num_proc: Processes that tokenise; null uses one.
    """

    model: ModelConfig
    tasks: dict[str, TaskConfig]
    training: TrainingConfig
    mixture: MixtureConfig = MixtureConfig()
    data_root: str | None = None
    model_root: str | None = None
    num_proc: int | None = None


def to_yaml(config: Config) -> str:
    """The resolved configuration as a YAML document that `--config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=119)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys: `{"training": {"seed": 0}}` -> `{"training.seed": 0}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check_config(config: Config) -> None:
    """Refuses what cannot be right, whatever the data.

    Raises:
        UserError: naming the key, what it holds and what would be right.
    """
    tasks, training, mixture = config.tasks, config.training, config.mixture
    if not tasks:
        raise UserError("tasks: there are none; a mixture needs at least one task")
    for name, task in tasks.items():
        _check_task(f"tasks.{name}", name, task)

    positive = [f"training.{key}" for key in ("batch_size", "max_tokens_per_pass", "learning_rate", "logging_steps")]
    positive += [f"training.{key}" for key in ("num_train_epochs", "max_steps", "eval_steps")]
    positive += ["model.max_length", "mixture.temperature", "num_proc"]
    positive += [f"tasks.{t}.{key}" for t in tasks for key in ("weight", "max_train_examples", "max_eval_examples")]
    not_negative = [f"training.{key}" for key in ("seed", "weight_decay", "max_grad_norm", "dataloader_num_workers")]
    values = flatten(dataclasses.asdict(config))
    for key in positive + not_negative:
        value = values[key]
        if value is not None and not (0 < value < float("inf") or (value == 0 and key in not_negative)):
            raise UserError(f"{key}: {value} is not a {'positive number' if key in positive else 'number from 0 up'}")
    for key in ("training.warmup_ratio", "model.dropout"):
        value = values[key]
        if value is not None and not 0 <= value < 1:
            raise UserError(f"{key}: {value} is not in the range 0 <= {key.split('.')[1]} < 1")

    if training.batch_size < len(tasks):
        raise UserError(
            f"training.batch_size: {training.batch_size} examples a step cannot hold one of each of {len(tasks)} tasks"
        )
    if mixture.sampling == "weights":
        weights = mixture.weights or {}
        for name in sorted(weights.keys() - tasks.keys()):
            raise UserError(f"mixture.weights: '{name}' is not a task{hint(name, tasks, 'tasks')}")
        for name in sorted(tasks.keys() - weights.keys()):
            raise UserError(f"mixture.weights: '{name}' has none; sampling: weights needs a number for each task")
        if any(not 0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
            raise UserError(f"mixture.weights: {weights} must be numbers from 0 up, at least one of them above 0")
    elif mixture.weights:
        raise UserError(f"mixture.weights: has no effect with sampling: {mixture.sampling}; use sampling: weights")
    if (mixture.sampling == "temperature") != (mixture.temperature is not None):
        found = "has no effect with" if mixture.temperature else "missing; it is needed with"
        raise UserError(f"mixture.temperature: {found} sampling: {mixture.sampling}")
    if not training.output_dir:
        raise UserError("training.output_dir: empty; a run needs a folder of its own")
    if Path(training.output_dir).is_file():
        raise UserError(f"training.output_dir: {training.output_dir} is a file; a run needs a folder of its own")


def _check_task(key: str, name: str, task: TaskConfig) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"{key}: a task's name becomes a folder: text of letters, digits, '_' and '-'")
    if hasattr(nn.ModuleDict(), name):
        raise UserError(f"{key}: the name '{name}' is taken by PyTorch's modules; choose another")
    if not 1 <= len(task.inputs) <= 2:
        raise UserError(f"{key}.inputs: {len(task.inputs)} columns given, one or two are possible")
    if task.type == "multiple_choice" and not task.choices:
        raise UserError(f"{key}.choices: missing; type multiple_choice needs the column(s) that hold the choices")
    for option in ("choices", "choice_labels"):
        if task.type != "multiple_choice" and getattr(task, option):
            raise UserError(f"{key}.{option}: has no effect with type {task.type}; it belongs to multiple_choice")
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
