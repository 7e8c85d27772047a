"""The labels in a task's data."""

from collections.abc import Iterable
from typing import Any

from datasets import ClassLabel, Dataset

from ..config.schema import TaskConfig
from ..data.columns import is_missing, label_text, value_at
from ..errors import UserError


def column_labels(
    name: str, config: TaskConfig, train: Dataset, in_lists: bool = False, least: int = 2
) -> tuple[str, ...]:
    """Names of the classes or labels in a column.

    Args:
        name: the task's name, for error messages.
        config: the task's configuration.
        train: its training rows.
        in_lists: whether a row holds a list of labels.
        least: minimum number of labels.

    Raises:
        UserError: if there are fewer, or values that are not labels.
    """
    feature = leaf_type(train.features, config.label)
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    values = _column(train, config.label)
    if in_lists:
        values = (item for value in values for item in (value if isinstance(value, list) else [value]))
    found = [value for value in values if not is_missing(value) and value != ""]
    if any(isinstance(value, (list, dict, bytes)) for value in found[:1]):
        raise UserError(f"tasks.{name}.label: '{config.label}' holds {found[0]!r}; a class is a text or a number")
    numbers = all(isinstance(value, (int, float)) for value in found)
    labels = tuple(dict.fromkeys(map(label_text, sorted(set(found), key=None if numbers else str))))
    if len(labels) < least:
        lacking = "a class needs another class" if labels else "there is nothing to learn"
        raise UserError(f"tasks.{name}.label: '{config.label}' holds {list(labels)} in train; {lacking}")
    return labels


def leaf_type(features: Any, path: str) -> Any:
    """The feature type at a dotted path; of lists, the type of their items."""
    while hasattr(features, "feature"):
        features = features.feature
    if not path:
        return features
    first, _, rest = (path, "", "") if path in features else path.partition(".")
    return leaf_type(features[first], rest)


def are_hidden(label: str, validation: Dataset, train: Dataset) -> bool:
    """Whether no row is labelled, as in the hub's test splits: all labels empty, or -1 where train has no -1."""
    values = list(_column(validation, label))
    texts = (value.get("text") if isinstance(value, dict) else value for value in values)
    return all(text in (None, "", -1, []) for text in texts) and not (-1 in values and -1 in _column(train, label))


def _column(dataset: Dataset, path: str) -> Iterable[Any]:
    top = path if path in dataset.column_names else path.split(".")[0]
    return (value_at({top: value}, path) for value in dataset[top])
