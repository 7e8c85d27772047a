"""How a row of texts becomes tokenised sequences and something to predict.

Types that predict something of each token have modules of their own, `words.py` and `answers.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from .errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where in a row the things are; dots lead into nested rows.

    Args:
        task_type: as in the configuration; of the types of `encode_texts`, only multiple_choice is read differently.
        inputs: columns of the one or two texts; of the words; of the question and its context.
        label: column of the label; None where there is none to read, as in prediction.
        label_numbers: number of each known label, by its text.
        choices: column of the list of choices, or the columns that hold one choice each.
        choice_labels: column of the list of the choices' names.
        num_choices: choices in every row of a multiple-choice task.
    """

    task_type: str
    inputs: tuple[str, ...]
    label: str | None = None
    label_numbers: Mapping[str, int] = field(default_factory=dict)
    choices: str | tuple[str, ...] | None = None
    choice_labels: str | None = None
    num_choices: int | None = None


def encode_texts(
    rows: dict[str, list],
    numbers: list[int],
    *,
    where: str,
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> dict[str, list]:
    """Tokenises a batch of rows.

    A row of a multiple-choice task becomes one sequence per choice: (input, choice), or with two inputs
    (first input, second input + choice), as in the SWAG example of `transformers`.

    Args:
        rows: columns with one value a row.
        numbers: each row's number in its split, for error messages.
        where: the task and the split, for error messages.
        layout: where in a row the things are.
        tokenizer: the encoder's.
        max_length: in tokens; longer sequences are cut, the longest part first.

    Returns:
        `input_ids` and what else the encoder reads: a list of sequences per row; `label`, or without labels `choices`,
        the names of a row's choices; `length`, tokens of the longest sequence; `tokens` of all sequences;
        `truncated`, how many sequences were cut.

    Raises:
        UserError: naming the split and the row, for a missing text or label, an unknown label, a missing choice.
    """
    firsts: list[str] = []
    seconds: list[str] = []
    labels: list[Any] = []
    choices: list[list[str]] = []
    for number, row in zip(numbers, as_rows(rows), strict=True):
        at = f"{where} row {number}"
        texts = [text_at(row, column, at) for column in layout.inputs]
        known = layout.label_numbers
        if layout.task_type == "multiple_choice":
            options = _choices(row, layout, at)
            firsts += [texts[0]] * len(options)
            seconds += [" ".join([*texts[1:], option]) for option in options]
            if layout.choice_labels and (layout.label is not None or value_at(row, layout.choice_labels) is not None):
                known = _choice_numbers(row, layout, at)
            choices.append(list(known) if len(known) == len(options) and layout.choice_labels else options)
        else:
            firsts.append(texts[0])
            seconds += texts[1:]
        if layout.label is not None:
            labels.append(_label(row, layout, known, at))

    encoded = tokenizer(firsts, seconds or None, truncation="longest_first", max_length=max_length)
    cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
    columns = sequence_columns(encoded, tokenizer, cut, layout.num_choices or 1)
    if layout.label is not None:
        return columns | {"label": labels}
    return columns | ({"choices": choices} if choices else {})


def sequence_columns(
    encoded: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, cut: list[bool], per_row: int = 1
) -> dict[str, list]:
    """What every type of task keeps of its sequences.

    Args:
        encoded: what the tokenizer made, one list a sequence.
        tokenizer: for the names of what the encoder reads.
        cut: whether a sequence lost some of its text.
        per_row: sequences in a row.
    """
    ids = encoded["input_ids"]
    starts = range(0, len(ids), per_row)
    lengths = [len(sequence) for sequence in ids]
    names = [name for name in ("input_ids", "token_type_ids") if name in tokenizer.model_input_names]
    return {name: [list(encoded[name][i : i + per_row]) for i in starts] for name in names} | {
        "length": [max(lengths[i : i + per_row]) for i in starts],
        "tokens": [sum(lengths[i : i + per_row]) for i in starts],
        "truncated": [sum(cut[i : i + per_row]) for i in starts],
    }


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


def _label(row: dict[str, Any], layout: Layout, known: Mapping[str, int], at: str) -> Any:
    """A number, the number of a class, or 0 and 1 for each of several labels."""
    assert layout.label is not None
    value = value_at(row, layout.label)
    if is_missing(value) or value == "":
        raise UserError(f"{at}: the label in column '{layout.label}' is empty")
    if layout.task_type == "regression":
        return _finite(value, layout.label, at)
    if layout.task_type == "multi_label_classification":
        if not isinstance(value, list):
            raise UserError(f"{at}: column '{layout.label}' holds {value!r}, not a list of labels")
        present = {number_of(item, layout, known, at) for item in value}
        return [float(number in present) for number in range(len(known))]
    if layout.task_type == "multiple_choice" and isinstance(value, bool) and not layout.choice_labels:
        value = int(value)
    return number_of(value, layout, known, at)


def _finite(value: Any, column: str, at: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{at}: label {value!r} in column '{column}' is not a finite number")
    return number


def _choices(row: dict[str, Any], layout: Layout, at: str) -> list[str]:
    choices = layout.choices
    assert choices is not None
    found = value_at(row, choices) if isinstance(choices, str) else [value_at(row, column) for column in choices]
    if not isinstance(found, list) or len(found) != layout.num_choices:
        count = len(found) if isinstance(found, list) else "no"
        raise UserError(
            f"{at}: {count} choices, where the first row of train has {layout.num_choices}; all need the same"
        )
    name = choices if isinstance(choices, str) else ", ".join(choices)
    return [_text(option, name, at) for option in found]


def _choice_numbers(row: dict[str, Any], layout: Layout, at: str) -> dict[str, int]:
    assert layout.choice_labels is not None
    names = value_at(row, layout.choice_labels)
    if not isinstance(names, list):
        raise UserError(f"{at}: column '{layout.choice_labels}' holds {names!r}, not the names of the choices")
    known = {label_text(name): i for i, name in enumerate(names[: layout.num_choices])}
    if len(known) < len(names[: layout.num_choices]):
        raise UserError(f"{at}: column '{layout.choice_labels}' holds {names!r}, a name twice")
    return known
