"""Reading a row: dotted paths, the text of a cell, the name of a label."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where in a row the things are; dots lead into nested rows.

    Args:
        inputs: columns of the one or two texts; of the words; of the question and its context.
        label: column of the label; None where there is none to read, as in prediction.
        label_numbers: number of each known label, by its text.
        choices: column of the list of choices, or the columns that hold one choice each.
        choice_labels: column of the list of the choices' names.
        num_choices: choices in every row of a multiple-choice task.
    """

    inputs: tuple[str, ...]
    label: str | None = None
    label_numbers: Mapping[str, int] = field(default_factory=dict)
    choices: str | tuple[str, ...] | None = None
    choice_labels: str | None = None
    num_choices: int | None = None


# -- reading a row ----------------------------------------------------------------------------------------------------


def as_rows(columns: dict[str, list]) -> list[dict[str, Any]]:
    """Columns with one value a row, as one mapping a row."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def label_text(value: Any) -> str:
    """The text by which a label is known: the files of two splits may hold 1, 1.0 and "1" for the same."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def value_at(value: Any, path: str) -> Any:
    """What stands at a dotted path in a row; through a list, the list of what stands there in each item."""
    if not path or value is None:
        return value
    if isinstance(value, list):
        return [value_at(item, path) for item in value]
    if not isinstance(value, dict):
        return None
    if path in value:
        return value[path]
    first, _, rest = path.partition(".")
    return value_at(value.get(first), rest)


def is_missing(value: Any) -> bool:
    """Whether there is nothing in a field: null, or a NaN, which is how some files write it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_at(row: dict[str, Any], column: str, at: str) -> str:
    """The text in a column; a number is taken as its text."""
    return _text(value_at(row, column), column, at)


def number_of(value: Any, layout: Layout, known: Mapping[str, int], at: str) -> int:
    """The number of a class, a word's label or a choice.

    Raises:
        UserError: for a label that is not known, naming those that are.
    """
    if label_text(value) not in known:
        some = ", ".join(list(known)[:20]) + (f", … ({len(known):,} in all)" if len(known) > 20 else "")
        raise UserError(f"{at}: label {value!r} in column '{layout.label}' is not one of {some}")
    return known[label_text(value)]


def _text(value: Any, column: str, at: str) -> str:
    if is_missing(value) or isinstance(value, (list, dict, bytes)):
        found = "is empty" if is_missing(value) else f"holds a {type(value).__name__}, not a text"
        raise UserError(f"{at}: column '{column}' {found}")
    return str(value)
