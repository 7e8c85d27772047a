"""Loading a task: rows, labels and metrics; tokenised rows are cached by `datasets`."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ..config.schema import TaskConfig
from ..data.columns import Layout
from ..data.sources import load_splits
from ..data.split import COUNTS, Ragged, Split
from ..errors import UserError, hint
from ..utils import stable_seed
from .base import TASK_TYPES, Task, TaskType
from .labels import distinct, is_hidden, leaf_type


TOKENS_AT_ONCE = 1_000_000  # at most, that are tokenised and written to the cache


@dataclass(frozen=True)
class TaskData(Task):
    """A task with its rows.

    Args:
        metrics: metrics to report.
        weight: factor on the example losses.
        notes: on what is unusual about the rows.
        train: rows to train on.
        validation: rows to evaluate on, if any.
        validation_rows: the same as they stand in the dataset.
        layout: the columns that are read.
    """

    metrics: tuple[str, ...] = ()
    weight: float = 1.0
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
) -> TaskData:
    """Loads, checks and tokenises a task; tokenised rows are read from the cache of `datasets` if possible.

    `tokenizer_hash` is the hash of the tokenizer; None computes it, which takes a quarter of a second.

    Raises:
        UserError: for missing or invalid data, naming the split, the column or the row.
    """
    task_type = TASK_TYPES[config.type]
    splits = load_splits(name, config, data_root)
    train, validation = splits["train"], splits.get("validation")
    if validation is not None and is_hidden(config.label, validation, train):
        validation = None
    labels = task_type.label_names(name, config, train)
    metrics = metrics_of(name, config, labels)
    is_multi_hot = task_type.is_multi_hot(config, train)
    features = Features({"input_ids": List(List(Value("int32")))})
    if "token_type_ids" in tokenizer.model_input_names:
        features["token_type_ids"] = List(List(Value("int8")))
    features |= task_type.columns | {count: Value("int32") for count in COUNTS}

    tokenizer_hash = tokenizer_hash or Hasher.hash(tokenizer)
    source = task_type.source()

    notes: list[str] = []

    def all_labels() -> list[Any]:
        return [label for split in splits.values() for label in distinct(split, config.label)]

    def labelled(dataset: Dataset, split: str, most: int | None) -> tuple[Dataset, NDArray]:
        """The rows with a label, up to a number of them, and their numbers in the split."""
        has_label = task_type.labelled(dataset, config, labels)
        rows = np.flatnonzero(has_label)[:most]
        if len(rows) > 0 and not has_label.all():
            notes.append(f"{(~has_label).sum():,} of {len(dataset):,} rows of {split} have no label and are left out")
        is_first = len(rows) == 0 or rows[-1] == len(rows) - 1
        return dataset.select(range(len(rows)) if is_first else rows), rows

    def tokenise(dataset: Dataset, split: str, rows: NDArray) -> Split:
        where = f"tasks.{name}: {split}"
        layout = layout_of(task_type, config, labels, dataset, all_labels, is_multi_hot)
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
                **{"where": where, "layout": layout, "tokenizer": tokenizer, "max_length": max_length},
            },
            # By itself, `datasets` knows the code by its name alone, and pickles the tokenizer for every split.
            new_fingerprint=f"{stable_seed(*made_of):016x}",
            num_proc=num_proc,
            desc=f"Tokenising {name} {split}",
        )
        return as_split(encoded, task_type.num_sequences(layout), task_type, len(dataset))

    train, rows = labelled(train, config.train_split, config.max_train_examples)
    if not len(train):
        raise UserError(f"tasks.{name}.label: no row of {config.train_split} has a label in '{config.label}'")
    train_split = tokenise(train, config.train_split, rows)
    validation_split = None
    if validation is not None:
        validation, rows = labelled(validation, str(config.validation_split), config.max_eval_examples)
        validation_split = tokenise(validation, str(config.validation_split), rows) if len(validation) else None
    return TaskData(
        name=name,
        type=task_type,
        labels=labels,
        mean=float(np.mean(train_split.row_labels)) if task_type.problem_type == "regression" else 0.0,
        metrics=metrics,
        weight=config.weight,
        train=train_split,
        notes=tuple(notes),
        validation=validation_split,
        validation_rows=validation if validation_split else None,
        layout=layout_of(task_type, config, labels, train, all_labels, is_multi_hot),
    )


def load_tasks(
    configs: Mapping[str, TaskConfig],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    data_root: str | None,
    num_proc: int | None,
    accelerator: Accelerator,
) -> list[TaskData]:
    """Loads all tasks; the first process of a machine tokenises, the others read its cache.

    Raises:
        UserError: see `load_task`; on every process that finds the mistake.
    """
    mistake, tokenizer_hash = None, Hasher.hash(tokenizer)
    with accelerator.local_main_process_first():
        try:
            tasks = [
                load_task(name, config, tokenizer, max_length, data_root, num_proc, tokenizer_hash)
                for name, config in configs.items()
            ]
        except UserError as error:
            mistake = error
    if mistake:  # raised where no process waits for another
        raise mistake
    return tasks


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
    is_multi_hot: bool = False,
) -> Layout:
    """The layout of a task's rows.

    Args:
        task_type: the task's type.
        config: the task's.
        labels: names of the labels.
        rows: of a split, which may number the labels in its own way.
        all_labels: gives the distinct labels of all splits.
        is_multi_hot: as of `Layout`.
    """
    feature = leaf_type(rows.features, config.label)
    return Layout(
        inputs=tuple(config.inputs),
        label=config.label,
        label_numbers=task_type.label_numbers(config, labels, feature, all_labels),
        choices=tuple(config.choices) if isinstance(config.choices, list) else config.choices,
        choice_labels=config.choice_labels,
        num_choices=len(labels) if task_type.reads_choices else None,
        is_multi_hot=is_multi_hot,
    )


def _encode(
    rows: dict[str, list], numbers: list[int], *, encode: Callable[..., dict], rows_of_split: NDArray, **arguments: Any
) -> dict[str, list]:
    """`TaskType.encode` with the rows' numbers in their split, from which some were left out."""
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
    label = task_type.columns["label"]
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
