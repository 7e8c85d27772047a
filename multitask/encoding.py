"""How a row becomes tokenised sequences and a number to predict."""

import math
from typing import Any

from transformers import PreTrainedTokenizerBase

from .errors import UserError


def encode_rows(
    rows: dict[str, list],
    numbers: list[int],
    *,
    task: str,
    split: str,
    task_type: str,
    inputs: list[str],
    choices: str | list[str] | None,
    choice_labels: str | None,
    label: str,
    label_numbers: dict[str, int],
    num_choices: int | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> dict[str, list]:
    """Tokenises a batch of rows; takes plain values, so that `datasets` can tell from them what its cache holds.

    A row of a multiple-choice task becomes one sequence per choice: (input, choice), or with two inputs
    (first input, second input + choice), as in the SWAG example of `transformers`.

    Args:
        rows: columns with one value a row.
        numbers: each row's number in its split, for error messages.
        task: name of the task, for error messages.
        split: name of the split, for error messages.
        task_type: regression, classification or multiple_choice.
        inputs: dotted paths of one or two text columns.
        choices: dotted path of the list of choices, or the columns that hold one choice each.
        choice_labels: dotted path of the list of the choices' names.
        label: dotted path of the label.
        label_numbers: number of each known label, by its text.
        num_choices: choices in every row.
        tokenizer: the encoder's.
        max_length: in tokens; longer sequences are cut, the longest part first.

    Returns:
        `input_ids` and what else the encoder reads: a list of sequences per row; `label`; `length`, tokens of the
        longest sequence; `tokens` of all sequences; `truncated`, how many sequences were cut.

    Raises:
        UserError: naming the split and the row, for an empty text or label, an unknown label, a missing choice.
    """
    firsts: list[str] = []
    seconds: list[str] = []
    labels: list[float | int] = []
    for number, values in zip(numbers, zip(*rows.values(), strict=True), strict=True):
        row = dict(zip(rows, values, strict=True))
        where = f"tasks.{task}: {split} row {number}"
        texts = [_text(value_at(row, column), column, where) for column in inputs]
        value = value_at(row, label)
        if value is None or value == "":
            raise UserError(f"{where}: the label in column '{label}' is empty")
        if task_type == "regression":
            labels.append(_number(value, label, where))
        known = label_numbers
        if task_type == "multiple_choice":
            options = _choices(row, choices, num_choices, where)
            firsts += [texts[0]] * len(options)
            seconds += [" ".join([*texts[1:], option]) for option in options]
            if choice_labels:
                names = value_at(row, choice_labels)
                if not isinstance(names, list):
                    raise UserError(f"{where}: column '{choice_labels}' holds {names!r}, not the names of the choices")
                known = {label_text(name): i for i, name in enumerate(names[: len(options)])}
            elif isinstance(value, bool):
                value = int(value)
        else:
            firsts.append(texts[0])
            seconds += texts[1:]
        if task_type != "regression":
            if label_text(value) not in known:
                some = ", ".join(list(known)[:20]) + (f", … ({len(known):,} in all)" if len(known) > 20 else "")
                raise UserError(f"{where}: label {value!r} in column '{label}' is not one of {some}")
            labels.append(known[label_text(value)])

    encoded = tokenizer(firsts, seconds or None, truncation="longest_first", max_length=max_length)
    step = num_choices or 1
    starts = range(0, len(firsts), step)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
    columns = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    return {name: [encoded[name][i : i + step] for i in starts] for name in columns} | {
        "label": labels,
        "length": [max(lengths[i : i + step]) for i in starts],
        "tokens": [sum(lengths[i : i + step]) for i in starts],
        "truncated": [sum(cut[i : i + step]) for i in starts],
    }


def label_text(value: Any) -> str:
    """The text by which a label is known: the files of two splits may hold 1, 1.0 and "1" for the same."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def value_at(value: Any, path: str) -> Any:
    """What stands at a dotted path in a row; through a list, the list of what stands there in each item."""
    if not path or value is None:
        return value
    if isinstance(value, list):
        return [value_at(item, path) for item in value]
    if path in value:
        return value[path]
    first, _, rest = path.partition(".")
    return value_at(value[first], rest)


def _text(value: Any, column: str, where: str) -> str:
    if value is None or isinstance(value, (list, dict)):
        found = "is empty" if value is None else f"holds a {type(value).__name__}, not a text"
        raise UserError(f"{where}: column '{column}' {found}")
    return str(value)


def _number(value: Any, column: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: label {value!r} in column '{column}' is not a finite number")
    return number


def _choices(row: dict[str, Any], choices: str | list[str] | None, num_choices: int | None, where: str) -> list[str]:
    assert choices is not None and num_choices is not None
    found = value_at(row, choices) if isinstance(choices, str) else [value_at(row, column) for column in choices]
    if not isinstance(found, list) or len(found) != num_choices:
        count = len(found) if isinstance(found, list) else "no"
        raise UserError(f"{where}: {count} choices, where the first row of train has {num_choices}; all need the same")
    return [_text(option, str(choices), where) for option in found]
