"""Loading a task: rows, labels and metrics; tokenised rows are cached by `datasets`."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ..config.schema import TaskConfig
from ..data.columns import Layout, value_at
from ..data.sources import load_splits
from ..data.split import COUNTS, Ragged, Split
from ..errors import UserError, hint
from ..utils import stable_seed
from .base import TASK_TYPES, Task, TaskType
from .labels import distinct, is_hidden, leaf_type
from .losses import PLAIN, LossOptions, balanced

TOKENS_AT_ONCE = 1_000_000  # at most, that are tokenised and written to the cache


@dataclass(frozen=True)
class TaskData(Task):
    """A task with its rows.

    Args:
        metrics: metrics to report.
        weight: factor on the example losses.
        loss_options: what the loss is besides that of the type.
        calibrate: whether to fit a calibration on the validation rows.
        notes: on what is unusual about the rows.
        train: rows to train on; those of `validation`, where a trained model is only evaluated.
        validation: rows to evaluate on, if any.
        validation_rows: the same as they stand in the dataset.
        layout: the columns that are read.
    """

    metrics: tuple[str, ...] = ()
    weight: float = 1.0
    loss_options: LossOptions = PLAIN
    calibrate: bool = False
    notes: tuple[str, ...] = ()
    _: KW_ONLY
    train: Split
    validation: Split | None
    validation_rows: Dataset | None
    layout: Layout

    def num_rows(self) -> dict[str, int]:
        """Number of dataset rows by split."""
        return {
            "train": self.train.num_examples,
            "validation": self.validation.num_examples if self.validation else 0,
        }


def load_task(
    name: str,
    config: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    data_root: str | None = None,
    num_proc: int | None = None,
    tokenizer_hash: str | None = None,
    known_labels: tuple[str, ...] | None = None,
    readers: Mapping[str, TaskConfig] | None = None,
) -> TaskData:
    """Loads, checks and tokenises a task; tokenised rows are read from the cache of `datasets` if possible.

    Args:
        name: of the task.
        config: of the task.
        tokenizer: the encoder's.
        max_length: tokens of a sequence, at most.
        data_root: local mirror of hub datasets.
        num_proc: tokenisation processes.
        tokenizer_hash: hash of the tokenizer; None computes it, which takes a quarter of a second.
        known_labels: those of a trained model, of which only validation rows are loaded, also in place of `train`.
        readers: the tasks that train on the same rows, if they are several. All get the rows that one of them has a
            label for.

    Raises:
        UserError: for missing or invalid data, naming the split, the column or the row.
    """
    task_type = TASK_TYPES[config.type]
    splits = load_splits(name, config, data_root, is_trained=known_labels is None, readers=readers)
    train, validation = splits.get("train"), splits.get("validation")
    if train is None and validation is None:
        raise UserError(f"tasks.{name}.validation_split: there are no rows to evaluate on")
    first = train or validation
    assert first is not None
    if validation is not None and is_hidden(config.label_column, validation, train):
        validation = None
    labels = task_type.label_names(name, config, first) if known_labels is None else known_labels
    metrics = metrics_of(name, config, labels)
    is_dense = task_type.is_dense(config, first)
    features = Features({"input_ids": List(List(Value("int32")))})
    if "token_type_ids" in tokenizer.model_input_names:
        features["token_type_ids"] = List(List(Value("int8")))
    features |= task_type.label_columns(is_dense) | {count: Value("int32") for count in COUNTS}

    tokenizer_hash = tokenizer_hash or Hasher.hash(tokenizer)
    source = task_type.source()

    notes: list[str] = []

    def all_labels() -> list[Any]:
        return [label for split in splits.values() for label in distinct(split, config.label_column)]

    def labelled(
        dataset: Dataset, split: str, most: int | None, readers: Mapping[str, TaskConfig]
    ) -> tuple[Dataset, NDArray, NDArray]:
        """The rows with a label of a reader, or a sample of them, their numbers, and which have one of this task."""
        has_label = task_type.labelled(dataset, config, labels)
        has_any = has_label.copy()
        for reader, of_reader in readers.items():
            if reader != name:
                type_ = TASK_TYPES[of_reader.type]
                has_any |= type_.labelled(dataset, of_reader, type_.label_names(reader, of_reader, dataset))
        rows = np.flatnonzero(has_any)
        if len(rows) > 0 and not has_any.all():
            notes.append(f"{(~has_any).sum():,} of {len(dataset):,} rows of {split} have no label and are left out")
        if len(missing := rows[~has_label[rows]]):
            notes.append(f"{len(missing):,} of {len(rows):,} rows of {split} have no label and count for others alone")
        if most is not None and most < len(rows):  # the first rows of sorted data are of one class
            notes.append(f"{most:,} of {len(rows):,} rows of {split} are taken, a sample that is always the same")
            rows = np.sort(np.random.default_rng(stable_seed("sample", split)).permutation(rows)[:most])
        is_first = len(rows) == 0 or rows[-1] == len(rows) - 1
        return dataset.select(range(len(rows)) if is_first else rows), rows, has_label[rows]

    def tokenise(dataset: Dataset, split: str, rows: NDArray, has_label: NDArray) -> Split:
        where = f"tasks.{name}: {split}"
        layout = layout_of(task_type, config, labels, dataset, all_labels, is_dense)
        # Large batches, within reason, as each lies apart in the cached file and is looked at when the file is opened.
        at_once = max(1000, TOKENS_AT_ONCE // (max_length * task_type.num_sequences(layout)))
        made_of = (dataset._fingerprint, source, where, layout, tokenizer_hash, max_length)
        encoded = dataset.map(
            _encode,
            batched=True,
            batch_size=at_once,
            writer_batch_size=at_once,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=features,  # given, lest a column that keeps its name keep its type
            fn_kwargs={
                "encode": task_type.encode,
                "rows_of_split": rows,
                "stand_in": None if has_label.all() else _StandIn(task_type, config, has_label, dataset),
                **{"where": where, "layout": layout, "tokenizer": tokenizer, "max_length": max_length},
            },
            # By itself, `datasets` knows the code by its name alone, and pickles the tokenizer for every split.
            new_fingerprint=f"{stable_seed(*made_of):016x}",
            num_proc=num_proc,
            desc=f"Tokenising {name} {split}",
        )
        made = as_split(encoded, task_type.num_sequences(layout), task_type, len(dataset))
        return made if has_label.all() else replace(made, has_label=has_label)

    train_split = validation_split = None
    if train is not None:
        train, rows, has_label = labelled(train, config.train_split, config.max_train_examples, readers or {})
        if not has_label.any():
            raise UserError(
                f"tasks.{name}.label: no row of {config.train_split} has a label in '{config.label_column}'"
            )
        train_split = tokenise(train, config.train_split, rows, has_label)
    if validation is not None:
        of_split = str(config.validation_split), config.max_eval_examples
        validation, rows, has_label = labelled(validation, *of_split, {})
        validation_split = tokenise(validation, of_split[0], rows, has_label) if len(validation) else None
    if config.calibrate and validation_split is None:
        raise UserError(f"tasks.{name}.calibrate: no row of {config.validation_split} has a label to fit it on")
    first_split = train_split or validation_split
    if first_split is None:
        raise UserError(
            f"tasks.{name}.label: no row of {config.validation_split} has a label in '{config.label_column}'"
        )
    return TaskData(
        name=name,
        type=task_type,
        labels=labels,
        mean=float(np.mean(first_split.row_labels)) if task_type.problem_type == "regression" else 0.0,
        rows=config.rows,
        metrics=metrics,
        weight=config.weight,
        loss_options=loss_options(name, config, labels, first_split, is_dense),
        calibrate=config.calibrate,
        train=first_split,
        notes=tuple(notes),
        validation=validation_split,
        validation_rows=validation if validation_split else None,
        layout=layout_of(task_type, config, labels, first, all_labels, is_dense),
    )


def load_tasks(
    configs: Mapping[str, TaskConfig],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    data_root: str | None,
    num_proc: int | None,
    accelerator: Accelerator,
    known_labels: Mapping[str, tuple[str, ...]] | None = None,
) -> list[TaskData]:
    """Loads all tasks; the first process of a machine tokenises, the others read its cache.

    `known_labels` are those of a trained model, by task: see `load_task`.

    Raises:
        UserError: see `load_task`; on every process that finds the mistake.
    """
    check_readers(configs)
    mistake, tokenizer_hash = None, Hasher.hash(tokenizer)
    with accelerator.local_main_process_first():
        try:
            tasks = [
                load_task(
                    name,
                    config,
                    tokenizer,
                    max_length,
                    data_root,
                    num_proc,
                    tokenizer_hash,
                    (known_labels or {}).get(name),
                    {n: c for n, c in configs.items() if config.rows and c.rows == config.rows},
                )
                for name, config in configs.items()
            ]
            check_windows(tasks)
        except UserError as error:
            mistake = error
    if mistake:  # raised where no process waits for another
        raise mistake
    return tasks


def check_readers(configs: Mapping[str, TaskConfig]) -> None:
    """Refuses tasks with the same rows that would read them as different sequences.

    Raises:
        UserError: naming two of them.
    """
    firsts: dict[str, str] = {}
    for name, config in configs.items():
        first = firsts.setdefault(config.rows or name, name)
        own, other = TASK_TYPES[config.type], TASK_TYPES[configs[first].type]
        if type(own).encode is not type(other).encode or own.reads_choices != other.reads_choices:
            raise UserError(
                f"tasks.{name}.type: {own.name} reads a row otherwise than {other.name} ({first}) does; give one of "
                f"them rows of its own"
            )


def check_windows(tasks: Sequence[TaskData]) -> None:
    """Refuses tasks with the same rows where these are cut into windows, as an answer is in one window only.

    Raises:
        UserError: naming the task.
    """
    for task in tasks:
        if task.rows and len(task.train) > task.train.num_examples:
            raise UserError(
                f"tasks.{task.name}.type: a row of {task.type.name} is cut into windows of which other tasks' labels "
                f"know nothing; give it rows of its own"
            )


class _StandIn(NamedTuple):
    """Fills in labels of rows that have none, so that they can be encoded; these labels count nowhere.

    Args:
        task_type: of the task.
        config: of the task.
        has_label: which rows have one, shape (rows,).
        rows: all of them.
    """

    task_type: TaskType
    config: TaskConfig
    has_label: NDArray[np.bool_]
    rows: Dataset

    def fill(self, rows: dict[str, list], numbers: Sequence[int]) -> None:
        """Changes a batch of rows in place, which are numbered so."""
        path = self.config.label_column
        label = value_at(self.rows[int(np.flatnonzero(self.has_label)[0])], path)
        top, *inner = [path] if path in rows else path.split(".")
        for place, number in enumerate(numbers):
            if not self.has_label[number]:
                row = {name: column[place] for name, column in rows.items()}
                value = self.task_type.stand_in(label, row, self.config)
                for name in reversed(inner):
                    value = {name: value}
                there = row[top] if inner and isinstance(row[top], dict) else {}
                rows[top][place] = {**there, **value} if inner else value


def loss_options(
    name: str, config: TaskConfig, labels: Sequence[str], train: Split, is_dense: bool = False
) -> LossOptions:
    """What a task's loss is besides that of its type.

    Raises:
        UserError: for the weight of a class that there is not, or that is not positive; for focal loss where classes
            have probabilities.
    """
    if is_dense and config.focal_gamma and TASK_TYPES[config.type].problem_type == "single_label_classification":
        raise UserError(
            f"tasks.{name}.focal_gamma: needs one right class, and '{config.label_column}' has probabilities"
        )
    weights: tuple[float, ...] | None = None
    if config.class_weights == "balanced":
        counts = TASK_TYPES[config.type].class_counts(train, labels)
        weights = None if counts is None else balanced(counts)
    elif config.class_weights is not None:
        assert isinstance(config.class_weights, dict)
        for label, weight in config.class_weights.items():
            if label not in labels:
                raise UserError(
                    f"tasks.{name}.class_weights: there is no class '{label}'{hint(label, labels, 'classes')}"
                )
            if not 0 <= weight < float("inf"):
                raise UserError(f"tasks.{name}.class_weights.{label}: {weight} is not a number from 0 up")
        weights = tuple(float(config.class_weights.get(label, 1.0)) for label in labels)
    return LossOptions(weights, config.label_smoothing_factor, config.focal_gamma)


def metrics_of(name: str, config: TaskConfig, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The metrics to report: the configured ones, or the defaults of the type.

    Raises:
        UserError: for a metric that cannot measure this type of task or these labels.
    """
    task_type = TASK_TYPES[config.type]
    known = task_type.measurable(labels)
    for metric in config.metrics:
        if metric not in known:
            is_reduced = len(known) < len(task_type.metrics)
            why = f"labels such as '{labels[0]}', which mark no spans (B-…, I-…, O)" if is_reduced else config.type
            raise UserError(f"tasks.{name}.metrics: {metric} does not measure {why}{hint(metric, known)}")
    return tuple(config.metrics) or known[: task_type.num_default_metrics]


def layout_of(
    task_type: TaskType,
    config: TaskConfig,
    labels: tuple[str, ...],
    rows: Dataset,
    all_labels: Callable[[], list],
    is_dense: bool = False,
) -> Layout:
    """The layout of a task's rows.

    Args:
        task_type: the task's type.
        config: the task's.
        labels: names of the labels.
        rows: of a split, which may number the labels in its own way.
        all_labels: gives the distinct labels of all splits.
        is_dense: as of `Layout`.
    """
    feature = leaf_type(rows.features, config.label_column)
    return Layout(
        inputs=tuple(config.inputs),
        label=config.label_column,
        label_numbers=task_type.label_numbers(config, labels, feature, all_labels),
        choices=tuple(config.choices) if isinstance(config.choices, list) else config.choices,
        choice_labels=config.choice_labels,
        num_choices=len(labels) if task_type.reads_choices else None,
        is_dense=is_dense,
    )


def _encode(
    rows: dict[str, list],
    numbers: list[int],
    *,
    encode: Callable[..., dict],
    rows_of_split: NDArray,
    stand_in: _StandIn | None = None,
    **arguments: Any,
) -> dict[str, list]:
    """`TaskType.encode` with the rows' numbers in their split, from which some were left out."""
    if stand_in is not None:
        stand_in.fill(rows, numbers)
    was_enabled = gc.isenabled()
    gc.disable()  # it would look through the lists of a batch again and again: more than half of the time
    try:
        return encode(rows, [int(rows_of_split[number]) for number in numbers], **arguments)
    finally:
        if was_enabled:
            gc.enable()


def as_split(encoded: Dataset, sequences: int, task_type: TaskType, num_examples: int) -> Split:
    """Converts the output of a type's `encode` to flat arrays."""
    columns = {name: encoded.data.column(name) for name in encoded.column_names}
    length, tokens, truncated = (np.asarray(columns[count]) for count in COUNTS)
    types, labels = columns.get("token_type_ids"), columns.get("label")
    read = [name for name in ("input_ids", "token_type_ids", "label", *COUNTS) if name in columns]
    label = encoded.features.get("label", task_type.columns["label"])
    input_ids = Ragged.of(columns["input_ids"])
    return Split(
        input_ids=input_ids,
        token_type_ids=None if types is None else replace(input_ids, chunks=Ragged.of(types).chunks),
        labels=None if labels is None else _as_labels(labels, has_one_a_token=task_type.has_token_labels),
        notes=encoded.remove_columns(read),
        sequences=sequences,
        label_dtype=getattr(torch, (label.feature if isinstance(label, List) else label).dtype),
        length=length,
        tokens=tokens,
        truncated=int(truncated.sum()),
        num_examples=num_examples,
    )


def _as_labels(column: pa.ChunkedArray, has_one_a_token: bool) -> NDArray | Ragged:
    if has_one_a_token:
        return Ragged.of(column)
    if pa.types.is_list(column.type):  # one number for each label
        return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)
    return column.to_numpy()
