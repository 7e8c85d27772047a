"""What labels a task's data holds, and which metrics can measure them."""

import re
from collections.abc import Iterable
from typing import Any

from datasets import ClassLabel, Dataset

from ..config.schema import TaskConfig
from ..data.columns import is_missing, label_text, value_at
from ..errors import UserError, hint
from .base import TASK_TYPES


def labels_of(name: str, config: TaskConfig, train: Dataset) -> tuple[str, ...]:
    """Names of the classes or labels, of the positions of the choices, of a span's ends; none for a number.

    Raises:
        UserError: if there is nothing to tell apart.
    """
    if config.type == "regression":
        return ()
    if config.type == "question_answering":
        return ("start", "end")
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
    feature = leaf_type(train.features, config.label)
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    in_lists = config.type in ("multi_label_classification", "token_classification")
    values = _column(train, config.label)
    if in_lists:
        values = (item for value in values for item in (value if isinstance(value, list) else [value]))
    found = [value for value in values if not is_missing(value) and value != ""]
    if any(isinstance(value, (list, dict, bytes)) for value in found[:1]):
        raise UserError(f"tasks.{name}.label: '{config.label}' holds {found[0]!r}; a class is a text or a number")
    numbers = all(isinstance(value, (int, float)) for value in found)
    labels = tuple(dict.fromkeys(map(label_text, sorted(set(found), key=None if numbers else str))))
    if len(labels) < (1 if config.type == "multi_label_classification" else 2):
        lacking = "a class needs another class" if labels else "there is nothing to learn"
        raise UserError(f"tasks.{name}.label: '{config.label}' holds {list(labels)} in train; {lacking}")
    return labels


def leaf_type(features: Any, path: str) -> Any:
    """The type of what stands at a dotted path of a row, or in the lists there."""
    while hasattr(features, "feature"):
        features = features.feature
    if not path:
        return features
    first, _, rest = (path, "", "") if path in features else path.partition(".")
    return leaf_type(features[first], rest)


def metrics_of(name: str, config: TaskConfig, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the metrics to report: those asked for, or the usual ones.

    Raises:
        UserError: for a metric that does not measure this type of task, or such labels.
    """
    task_type = TASK_TYPES[config.type]
    has_spans = config.type != "token_classification" or all(re.fullmatch("O|[BIESLU]-.+", label) for label in labels)
    known = task_type.metrics if has_spans else ("accuracy",)
    for metric in config.metrics:
        if metric not in known:
            why = config.type if has_spans else f"labels such as '{labels[0]}', which mark no spans (B-…, I-…, O)"
            raise UserError(f"tasks.{name}.metrics: {metric} does not measure {why}{hint(metric, known)}")
    return tuple(config.metrics) or known[: task_type.num_default_metrics]


def are_hidden(label: str, validation: Dataset, train: Dataset) -> bool:
    """Whether no row has a label, as in the test splits on the hub: all empty, or all -1 where train has no -1."""
    values = list(_column(validation, label))
    texts = (value.get("text") if isinstance(value, dict) else value for value in values)
    return all(text in (None, "", -1, []) for text in texts) and not (-1 in values and -1 in _column(train, label))


def _column(dataset: Dataset, path: str) -> Iterable[Any]:
    top = path if path in dataset.column_names else path.split(".")[0]
    return (value_at({top: value}, path) for value in dataset[top])
