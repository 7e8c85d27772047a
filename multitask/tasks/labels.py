"""The labels in a task's data."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from ..config.schema import TaskConfig
from ..data.columns import Layout, is_missing, is_no_label, label_text, value_at
from ..errors import UserError


def column_labels(
    name: str, config: TaskConfig, train: Dataset, in_lists: bool = False, least: int = 2
) -> tuple[str, ...]:
    """Names of the classes or labels in a column, without those that stand for "no label".

    Args:
        name: the task's name, for error messages.
        config: the task's configuration.
        train: its training rows.
        in_lists: whether a row holds a list of labels.
        least: minimum number of labels.

    Raises:
        UserError: if there are fewer, or values that are not labels.
    """
    feature = leaf_type(train.features, config.label_column)
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    found = [
        value for value in distinct(train, config.label_column, in_lists) if not is_missing(value) and value != ""
    ]
    if any(isinstance(value, (list, dict, bytes)) for value in found[:1]):
        raise UserError(
            f"tasks.{name}.label: '{config.label_column}' holds {found[0]!r}; a class is a text or a number"
        )
    if in_lists:  # white space around a tag is none of it
        found = [value.strip() if isinstance(value, str) else value for value in found]
    numbers = all(isinstance(value, (int, float)) for value in found)
    ordered = sorted(set(found), key=None if numbers else str)
    texts = list(dict.fromkeys(map(label_text, ordered)))
    labels = tuple(text for text in texts if not is_no_label(text, texts))
    if len(labels) < least:
        lacking = "a class needs another class" if labels else "there is nothing to learn"
        raise UserError(f"tasks.{name}.label: '{config.label_column}' holds {list(labels)} in train; {lacking}")
    return labels


def holds_numbers(dataset: Dataset, path: str) -> bool:
    """Whether a column holds lists of numbers, such as a probability for each label."""
    column = arrow_column(dataset, path)
    if column is None or not pa.types.is_list(column.type):
        return False
    return pa.types.is_floating(column.type.value_type) or pa.types.is_integer(column.type.value_type)


def dense_names(name: str, config: TaskConfig, train: Dataset) -> tuple[str, ...]:
    """The names of labels of which a row has a list with a number for each: as configured, or those of the columns.

    Raises:
        UserError: if there are none, or another number of them than of numbers.
    """
    names = config.label_names or (config.label if isinstance(config.label, list) else None)
    first = value_at(next((row for row in train if value_at(row, config.label_column)), train[0]), config.label_column)
    if names is None:
        raise UserError(
            f"tasks.{name}.label: '{config.label_column}' holds a number for each of {len(first)} labels, without "
            f"their names; tasks.{name}.label_names: [NAME, …] gives them"
        )
    return tuple(names)


def numbers_in(value: Any, size: int, layout: Layout, at: str) -> list[float]:
    """A number from 0 to 1 for each label.

    Raises:
        UserError: if it is anything else; `at` names the row.
    """
    try:
        numbers = [float({"True": 1, "False": 0}.get(str(item), item)) for item in value]
    except (TypeError, ValueError):
        numbers = []
    if not isinstance(value, list) or len(numbers) != size or not all(0 <= number <= 1 for number in numbers):
        raise UserError(
            f"{at}: column '{layout.label}' holds {value!r}, not a number from 0 to 1 for each of {size} labels"
        )
    return numbers


def leaf_type(features: Any, path: str) -> Any:
    """The feature type at a dotted path; of lists, the type of their items."""
    while hasattr(features, "feature"):
        features = features.feature
    if not path:
        return features
    first, _, rest = (path, "", "") if path in features else path.partition(".")
    return leaf_type(features[first], rest)


def arrow_column(dataset: Dataset, path: str) -> pa.ChunkedArray | None:
    """A column at a dotted path, without a Python object for each value; None within lists of mappings."""
    top, fields = (path, []) if path in dataset.column_names else (path.split(".")[0], path.split(".")[1:])
    column = dataset.select_columns([top]).with_format("arrow")[:].column(top)
    for name in fields:
        if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
            return None
        column = pc.struct_field(column, name)
    return column


def distinct(dataset: Dataset, path: str, in_lists: bool = False) -> list[Any]:
    """The distinct values of a column, in order of appearance; with `in_lists`, of the items of its lists."""
    column = arrow_column(dataset, path)
    if column is not None and in_lists and pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    if column is not None and not pa.types.is_nested(column.type):
        return pc.unique(column).to_pylist()
    values = _values(dataset, path)
    if in_lists:
        values = [item for value in values for item in (value if isinstance(value, list) else [value])]
    try:
        return list(dict.fromkeys(values))
    except TypeError:  # lists or mappings
        return values


def _values(dataset: Dataset, path: str) -> list[Any]:
    top = path if path in dataset.column_names else path.split(".")[0]
    return [value_at({top: value}, path) for value in dataset[top]]


def is_hidden(path: str, validation: Dataset, train: Dataset | None) -> bool:
    """Whether all labels are -1 where train has none of it, as in the hub's test splits of numbers."""
    column = arrow_column(validation, path)
    if column is None or pa.types.is_nested(column.type):
        return False
    found = {label_text(value) for value in pc.unique(column).to_pylist()}
    return found == {"-1"} and (train is None or "-1" not in map(label_text, distinct(train, path)))


def labelled_rows(dataset: Dataset, path: str, labels: tuple[str, ...] | None) -> NDArray[np.bool_]:
    """Which rows have a label, shape (rows,).

    Null, NaN and an empty text are none; among classes also -100, which `transformers` ignores, and -1, which the
    hub's data sets write, unless it is a class.

    Args:
        dataset: the rows.
        path: the column of the labels.
        labels: names of the classes; None for numbers and for lists of labels, which cannot be told so.
    """
    column = arrow_column(dataset, path)
    if column is None or pa.types.is_nested(column.type):
        values = _values(dataset, path)
        return np.array([not is_missing(v) and v != "" and not _is_none(v, labels) for v in values], bool)
    found = pc.unique(column).to_pylist()
    without = [v for v in found if is_missing(v) or v == "" or _is_none(v, labels)]
    is_nan = pc.is_null(column, nan_is_null=True)
    known = [v for v in without if not is_missing(v)]
    is_none = pc.is_in(column, pa.array(known, column.type)) if known else pa.scalar(False)
    return ~np.asarray(pc.or_(is_nan, pc.fill_null(is_none, False)).combine_chunks(), bool)


def _is_none(value: Any, labels: tuple[str, ...] | None) -> bool:
    if labels is None or isinstance(value, (list, dict)):
        return False
    return label_text(value) in ("-1", "-100") and label_text(value) not in labels
