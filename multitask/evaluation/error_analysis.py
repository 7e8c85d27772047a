"""What the report shows of a task's validation predictions: a summary chart, the worst mistakes, sample rows."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ..data.split import Split
from ..tasks.base import TaskType
from ..tasks.load import TaskData

NUM_WATCHED = 16  # rows, the same at each evaluation


NUM_MISTAKES = 10


MOST_POINTS = 1000  # of a scatter plot


MOST_LABELS = 20  # of a confusion matrix


MOST_CHARACTERS = 400


def describe(task: TaskData, logits: NDArray[np.float32], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Describes the predictions for a task's validation rows for the report, as JSON values.

    Args:
        task: a task with validation rows.
        logits: of these rows, as returned by `predict`.
        tokenizer: decodes the tokens.

    Returns:
        `type`: the task's type; `picture`: a summary of all rows, whose `kind` is scatter (`true`, `predicted`),
            confusion (`labels`,
        `counts`, `others`: number of rows with other labels) or bars (`segments`, `bars`: name -> a number for each
        segment); `mistakes`, the worst first, and `watched`: `row`, `text`, `predicted`, `right`, `confidence`.
    """
    split = task.validation
    assert split is not None
    picture, judged = task.type.look(split, logits, task.labels)
    texts = RowTexts(split, tokenizer, task.type)

    def shown(numbers: Iterable[int]) -> list[dict[str, Any]]:
        return [
            {
                "row": number,
                "text": texts.of_row(number),
                "predicted": texts.of_label(number, judged[number][0]),
                "right": texts.of_label(number, judged[number][1]),
                "confidence": judged[number][2],
            }
            for number in numbers
        ]

    wrong = sorted((n for n in range(len(judged)) if judged[n][3] > 0), key=lambda n: -judged[n][3])
    watched = np.unique(np.linspace(0, len(judged) - 1, NUM_WATCHED).astype(int)).tolist()
    return {
        "type": task.type.name,
        "picture": picture,
        "mistakes": shown(wrong[:NUM_MISTAKES]),
        "watched": shown(watched),
    }


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


class RowTexts:
    """The inputs and labels of rows as text.

    Args:
        split: the rows.
        tokenizer: decodes the tokens.
        task_type: of the task.
    """

    def __init__(self, split: Split, tokenizer: PreTrainedTokenizerBase, task_type: TaskType):
        self.split, self.tokenizer, self.task_type = split, tokenizer, task_type
        self.special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self.first = task_type.first_rows(split)

    def of_row(self, number: int) -> str:
        """The inputs of a row."""
        return " | ".join(map(_cut, self.task_type.shown_inputs(self.parts(number))))

    def of_label(self, number: int, label: str) -> str:
        """A label of a row, formatted for reading."""
        return _cut(self.task_type.shown_label(label, number, self))

    def sequence(self, number: int, which: int = 0) -> list[int]:
        """The tokens of one of a row's sequences."""
        return self.split.sequence(int(self.first[number]), which)

    def text(self, tokens: Sequence[int]) -> str:
        """Decodes tokens, without special tokens."""
        return str(self.tokenizer.decode([token for token in tokens if token not in self.special])).strip()

    def parts(self, number: int, which: int = 0) -> list[str]:
        """The parts of a sequence between its special tokens."""
        parts: list[list[int]] = [[]]
        for token in self.sequence(number, which):
            if token in self.special:
                parts.append([])
            else:
                parts[-1].append(token)
        return [self.text(part) for part in parts if part]
