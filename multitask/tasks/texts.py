"""Tokenisation of rows of texts, and their labels.

The token-level types have their own encoding, in `token_classification.py` and `question_answering.py`.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data.columns import Layout, _text, as_rows, is_missing, label_text, number_of, text_at, value_at
from ..errors import UserError
from .base import TaskType


class TextTask(TaskType):
    """Base class of the types that read one or two texts, or a text and choices."""

    def encode(
        self,
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
            rows: columns with one value per row.
            numbers: each row's number in its split, for error messages.
            where: the task and the split, for error messages.
            layout: the columns that hold inputs and labels.
            tokenizer: the encoder's tokenizer.
            max_length: maximum length in tokens; longer sequences are truncated, the longest part first.

        Returns:
            `input_ids` and the encoder's other inputs: a list of sequences per row; `label`, or without labels
            `choices`, the names of a row's choices; `length`, tokens of the longest sequence; `tokens` of all
            sequences; `truncated`, the number of truncated sequences.

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
            if layout.choices is not None:
                options = _choices(row, layout, at)
                absent = [""] * ((layout.num_choices or 0) - len(options))
                firsts += [texts[0]] * (len(options) + len(absent))
                seconds += [" ".join([*texts[1:], option]) for option in options + absent]
                if layout.choice_labels and (
                    layout.label is not None or value_at(row, layout.choice_labels) is not None
                ):
                    known = _choice_numbers(row, layout, at)
                elif not known:  # labels are the texts of the choices
                    known = {label_text(option): number for number, option in enumerate(options)}
                choices.append(list(known) if len(known) == len(options) and layout.choice_labels else options)
            else:
                firsts.append(texts[0])
                seconds += texts[1:]
            if layout.label is not None:
                label = self._known_label(row, layout, known, at)
                labels.append(with_num_choices(label, len(options)) if layout.choices and absent else label)

        encoded = tokenizer(
            firsts, seconds or None, truncation="longest_first", max_length=max_length, return_attention_mask=False
        )
        cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
        columns = sequence_columns(encoded, tokenizer, cut, layout.num_choices or 1)
        if layout.label is not None:
            return columns | {"label": labels}
        return columns | ({"choices": choices} if choices else {})

    def _known_label(self, row: dict[str, Any], layout: Layout, known: Mapping[str, int], at: str) -> Any:
        assert layout.label is not None
        value = value_at(row, layout.label)
        if is_missing(value) or value == "":
            raise UserError(f"{at}: the label in column '{layout.label}' is empty")
        return self.read_label(value, layout, known, at)

    def read_label(self, value: Any, layout: Layout, known: Mapping[str, int], at: str) -> Any:
        """Converts a row's label to the value stored in the column `label`: by default the class index.

        Args:
            value: the row's label; not empty.
            layout: the columns that hold inputs and labels.
            known: index of each label, by its text.
            at: the row, for the error message.

        Raises:
            UserError: if the value is not a valid label.
        """
        return number_of(value, layout, known, at)


SHIFT = 16  # of the number of choices in a label


def with_num_choices(label: int, num_choices: int) -> int:
    """The label of a row that has fewer choices than others: the right one, and how many there are."""
    return label + (num_choices << SHIFT)


def sequence_columns(
    encoded: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, cut: list[bool], per_row: int = 1
) -> dict[str, list]:
    """The columns that all task types share: encoder inputs and token counts.

    Args:
        encoded: output of the tokenizer, one list per sequence.
        tokenizer: names the encoder's inputs.
        cut: whether each sequence was truncated.
        per_row: number of sequences in a row.
    """
    ids = encoded["input_ids"]
    starts = range(0, len(ids), per_row)
    lengths = [len(sequence) for sequence in ids]
    names = [name for name in ("input_ids", "token_type_ids") if name in tokenizer.model_input_names]
    sequences = {name: encoded[name] for name in names}
    return {name: [of_all[i : i + per_row] for i in starts] for name, of_all in sequences.items()} | {
        "length": [max(lengths[i : i + per_row]) for i in starts],
        "tokens": [sum(lengths[i : i + per_row]) for i in starts],
        "truncated": [sum(cut[i : i + per_row]) for i in starts],
    }


def _choices(row: dict[str, Any], layout: Layout, at: str) -> list[str]:
    choices = layout.choices
    assert choices is not None
    found = value_at(row, choices) if isinstance(choices, str) else [value_at(row, column) for column in choices]
    if isinstance(choices, tuple) and isinstance(found, list):
        while found and is_missing(found[-1]):  # the last columns may be empty
            found.pop()
    if not isinstance(found, list) or not 2 <= len(found) <= (layout.num_choices or 0):
        count = len(found) if isinstance(found, list) else "no"
        raise UserError(f"{at}: {count} choices; rows have 2 to {layout.num_choices}, which is the most in train")
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
