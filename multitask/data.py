"""A task ready to train: its rows tokenised once, cached by `datasets`, its labels known."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from .config import TaskConfig
from .encoding import encode_rows, label_text, value_at
from .errors import UserError, hint
from .sources import load_splits
from .tasks import TASK_TYPES, TaskType


@dataclass(frozen=True)
class Split:
    """The tokenised rows of one split.

    Args:
        rows: columns `input_ids` (and `token_type_ids` where the encoder has them): one list of sequences a row;
            `label`: float for regression, class or choice number otherwise.
        sequences: sequences in each row: 1, or the number of choices.
        label_dtype: of the labels as a tensor.
        length: tokens of each row's longest sequence, shape (rows,).
        tokens: tokens of each row, all its sequences together, shape (rows,).
        truncated: how many sequences were cut at the maximum length.
    """

    rows: Dataset
    sequences: int
    label_dtype: torch.dtype
    length: NDArray[np.int32]
    tokens: NDArray[np.int32]
    truncated: int

    def __len__(self) -> int:
        return len(self.length)


@dataclass(frozen=True)
class Task:
    """One task, ready to train.

    Args:
        name: its name in the configuration.
        type: its head, loss and metrics.
        labels: names of the classes; of the choices' positions for multiple choice; empty for regression.
        metrics: names of the metrics to report.
        weight: factor on the loss of each example.
        train: rows to train on.
        validation: rows to evaluate on, if there are any.
    """

    name: str
    type: TaskType
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    weight: float
    train: Split
    validation: Split | None


def load_task(
    name: str,
    config: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    data_root: str | None = None,
    num_proc: int | None = None,
) -> Task:
    """Loads, checks and tokenises a task; from the second time on, out of the cache of `datasets`.

    Raises:
        UserError: for whatever the dataset does not hold or holds wrong, naming the split, the column or the row.
    """
    task_type = TASK_TYPES[config.type]
    for metric in config.metrics:
        if metric not in task_type.metrics:
            raise UserError(
                f"tasks.{name}.metrics: {metric} does not measure {config.type}{hint(metric, task_type.metrics)}"
            )
    splits = load_splits(name, config, data_root)
    train, validation = splits["train"], splits.get("validation")
    if validation is not None and _are_hidden(config.label, validation, train):
        validation = None
    labels = _labels(name, config, train)
    numbered = config.type == "multiple_choice" or isinstance(train.features.get(config.label), ClassLabel)
    settings = {
        "task": name,
        "task_type": config.type,
        "inputs": config.inputs,
        "choices": config.choices,
        "choice_labels": config.choice_labels,
        "label": config.label,
        "label_numbers": {str(i) if numbered else label: i for i, label in enumerate(labels)},
        "num_choices": len(labels) if config.type == "multiple_choice" else None,
        "tokenizer": tokenizer,
        "max_length": max_length,
    }

    label_type = "float32" if config.type == "regression" else "int64"
    counts = ("length", "tokens", "truncated")
    features = Features({"input_ids": List(List(Value("int32"))), "label": Value(label_type)})
    if "token_type_ids" in tokenizer.model_input_names:
        features["token_type_ids"] = List(List(Value("int8")))
    features |= {name: Value("int32") for name in counts}

    def tokenise(dataset: Dataset, split: str, most: int | None) -> Split:
        dataset = dataset.select(range(min(most or len(dataset), len(dataset))))
        rows = dataset.map(
            encode_rows,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=features,  # given, lest a column that keeps its name keep its type
            fn_kwargs=settings | {"split": split},
            num_proc=num_proc,
            desc=f"Tokenising {name} {split}",
        )
        length, tokens, truncated = (np.asarray(rows.data.column(c)) for c in counts)
        return Split(
            rows=rows.remove_columns(list(counts)),
            sequences=len(labels) if config.type == "multiple_choice" else 1,
            label_dtype=getattr(torch, label_type),
            length=length,
            tokens=tokens,
            truncated=int(truncated.sum()),
        )

    return Task(
        name=name,
        type=task_type,
        labels=labels,
        metrics=tuple(config.metrics) or task_type.metrics[: task_type.num_default_metrics],
        weight=config.weight,
        train=tokenise(train, config.train_split, config.max_train_examples),
        validation=validation and tokenise(validation, str(config.validation_split), config.max_eval_examples),
    )


# -- labels -----------------------------------------------------------------------------------------------------------


def _labels(name: str, config: TaskConfig, train: Dataset) -> tuple[str, ...]:
    """Names of the classes, or of the positions of the choices."""
    if config.type == "regression":
        return ()
    if config.type == "multiple_choice":
        assert config.choices is not None
        if not isinstance(config.choices, str):
            return tuple(config.choices)
        first = value_at(train[0], config.choices)
        if not isinstance(first, list) or len(first) < 2:
            raise UserError(
                f"tasks.{name}.choices: '{config.choices}' holds {first!r}, not a list of two or more choices"
            )
        return tuple(str(position) for position in range(len(first)))
    feature = train.features.get(config.label)
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    found = [value for value in _column(train, config.label) if value not in (None, "")]
    if any(isinstance(value, (list, dict)) for value in found[:1]):
        raise UserError(f"tasks.{name}.label: '{config.label}' holds {found[0]!r}; a class is a text or a number")
    numbers = all(isinstance(value, (int, float)) for value in found)
    labels = tuple(dict.fromkeys(map(label_text, sorted(set(found), key=None if numbers else str))))
    if len(labels) < 2:
        raise UserError(
            f"tasks.{name}.label: '{config.label}' holds {list(labels)} in train; a class needs another class"
        )
    return labels


def _are_hidden(label: str, validation: Dataset, train: Dataset) -> bool:
    """Whether no row has a label, as in the test splits on the hub: all empty, or all -1 where train has no -1."""
    values = list(_column(validation, label))
    return all(value in (None, "", -1) for value in values) and not (-1 in values and -1 in _column(train, label))


def _column(dataset: Dataset, path: str) -> Iterable[Any]:
    top = path if path in dataset.column_names else path.split(".")[0]
    return (value_at({top: value}, path) for value in dataset[top])
