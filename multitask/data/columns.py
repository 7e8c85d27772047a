"""Reading a row: dotted paths, the text of a cell, the name of a label."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError


@dataclass(frozen=True)
class Layout:
    """The columns that a task reads; dotted paths lead into nested rows.

    Args:
        inputs: columns of one or two texts, of the words, or of question and context.
        label: column of the label; None for rows without labels, as in prediction.
        label_numbers: number of each known label, by its text.
        choices: column of the list of choices, or the columns that hold one choice each.
        choice_labels: column of the list of the choices' names.
        num_choices: most choices in a row of a multiple-choice task.
        is_dense: whether a row's label is a list with a number for each label: 0 or 1, or a probability.
    """

    inputs: tuple[str, ...]
    label: str | None = None
    label_numbers: Mapping[str, int] = field(default_factory=dict)
    choices: str | tuple[str, ...] | None = None
    choice_labels: str | None = None
    num_choices: int | None = None
    is_dense: bool = False


# -- reading a row ----------------------------------------------------------------------------------------------------


def as_rows(columns: dict[str, list]) -> list[dict[str, Any]]:
    """Converts columns to one mapping per row."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def label_text(value: Any) -> str:
    """The canonical text of a label, as two splits may store the same one as 1, 1.0 and "1"."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def is_no_label(text: str, texts: Sequence[str]) -> bool:
    """Whether a class stands for "no label": -100, or -1 where the others are numbered 0, 1, 2, …

    With two others, 0 and 1, it is a class, as in sentiments of -1, 0 and 1.

    Args:
        text: the class.
        texts: all classes.
    """
    if text not in ("-1", "-100"):  # before all classes are looked at, which may be many
        return False
    others = {other for other in texts if other not in ("-1", "-100")}
    is_numbered = len(others) > 2 and others == {str(number) for number in range(len(others))}
    return text == "-100" or (text == "-1" and is_numbered)


def value_at(value: Any, path: str) -> Any:
    """The value at a dotted path of a row; a list on the way gives the list of the values in its items."""
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
    """Whether a value is missing: null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_at(row: dict[str, Any], column: str, at: str) -> str:
    """The text in a column; numbers are converted to text."""
    return _text(value_at(row, column), column, at)


def number_of(value: Any, layout: Layout, known: Mapping[str, int], at: str) -> int:
    """The number of a class, a word's label or a choice.

    Raises:
        UserError: for an unknown label, naming the known ones.
    """
    if isinstance(value, str) and value not in known and value.strip() in known:
        value = value.strip()
    if label_text(value) not in known:
        some = ", ".join(list(known)[:20]) + (f", … ({len(known):,} in all)" if len(known) > 20 else "")
        raise UserError(f"{at}: label {value!r} in column '{layout.label}' is not one of {some}")
    return known[label_text(value)]


def _text(value: Any, column: str, at: str) -> str:
    if is_missing(value) or isinstance(value, (list, dict, bytes)):
        found = "is empty" if is_missing(value) else f"holds a {type(value).__name__}, not a text"
        raise UserError(f"{at}: column '{column}' {found}")
    return str(value)
