"""What the report shows of a task's validation predictions: a summary chart, the worst mistakes, sample rows."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.columns import value_at
from ..tasks.load import TaskData

NUM_WATCHED = 16  # rows, the same at each evaluation


NUM_MISTAKES = 10


MOST_CHARACTERS = 400


MOST_CLASSES = 50


def describe(task: TaskData, logits: NDArray[np.float32]) -> dict[str, Any]:
    """Describes the predictions for a task's validation rows for the report, as JSON values.

    Args:
        task: a task with validation rows.
        logits: of these rows, as returned by `predict`.

    Returns:
        `type`: the task's type; `classes`: see `class_counts`; `picture`: a summary of all rows, whose `kind` is
        scatter (`true`, `predicted`),
        confusion (`labels`, `counts`, `others`: number of rows with other labels) or bars (`segments`, `bars`: name ->
        a number for each segment); `mistakes`, the worst first, and `watched`: `row`, `text`, `label`, `predicted`
        and, where the type has one, `confidence`. Texts are those of the dataset, cut to `MOST_CHARACTERS`.
    """
    rows = task.validation_rows
    assert task.validation is not None and rows is not None
    picture, judged = task.type.look(task.validation, logits, task.labels)

    def describe_row(number: int) -> dict[str, Any]:
        predicted, label, confidence, _ = judged[number]
        row = rows[number]
        inputs = (value_at(row, column) for column in task.layout.inputs)
        return {
            "row": number,
            "text": " | ".join(_cut(" ".join(map(str, v)) if isinstance(v, list) else str(v)) for v in inputs),
            "label": _cut(task.type.shown_label(label, row, task.layout)),
            "predicted": _cut(task.type.shown_label(predicted, row, task.layout)),
        } | ({} if confidence is None else {"confidence": confidence})

    def shown(numbers: Iterable[int]) -> list[dict[str, Any]]:
        return [describe_row(number) for number in numbers]

    wrong = sorted((n for n in range(len(judged)) if judged[n][3] > 0), key=lambda n: -judged[n][3])
    watched = np.unique(np.linspace(0, len(judged) - 1, NUM_WATCHED).astype(int)).tolist()
    return {
        "type": task.type.name,
        "classes": class_counts(task),
        "picture": picture,
        "mistakes": shown(wrong[:NUM_MISTAKES]),
        "watched": shown(watched),
    }


def class_counts(task: TaskData) -> dict[str, Any]:
    """The rows of each class, the most frequent first: `counts`, `{label: [train, validation]}`, of at most
    `MOST_CLASSES`, and `others`, how many classes are left out.
    """
    counts = [task.type.class_counts(split, task.labels) for split in (task.train, task.validation) if split]
    if any(of_split is None for of_split in counts):
        return {"counts": {}, "others": 0}
    table = np.stack([of_split for of_split in counts if of_split is not None], axis=1)
    order = np.argsort(-table[:, 0], kind="stable")
    shown = {task.labels[number]: table[number].tolist() for number in order[:MOST_CLASSES]}
    return {"counts": shown, "others": len(table) - len(shown)}


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
