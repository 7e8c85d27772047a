"""What is shown of a task's validation predictions: a picture of all, the worst mistakes, some rows to watch."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.metrics import confusion_matrix
from transformers import PreTrainedTokenizerBase

from ..data.split import Split
from ..tasks.load import TaskData
from ..tasks.metrics import load_metric

NUM_WATCHED = 16  # rows, the same at each evaluation


NUM_MISTAKES = 10


MOST_POINTS = 1000  # of a scatter plot


MOST_LABELS = 20  # of a confusion matrix


MOST_CHARACTERS = 400


# For each row: what is predicted, what is right, how sure the model is (None: its type does not say), how wrong it is.
Judged = list[tuple[str, str, float | None, float]]


def describe(task: TaskData, logits: NDArray[np.float32], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What to show of the predictions for a task's validation rows, ready for JSON.

    Args:
        task: one with validation rows.
        logits: for these, as `predict` returns them.
        tokenizer: turns the tokens back to text.

    Returns:
        `type`, the task's; `picture`, of all rows: `kind` scatter (`true`, `predicted`), confusion (`labels`,
        `counts`, `others`: rows of labels left out) or bars (`segments`, `bars`: name -> a number for each segment);
        `mistakes`, the worst first, and `watched`: `row`, `text`, `predicted`, `right`, `confidence`.
    """
    split = task.validation
    assert split is not None
    picture, judged = _LOOKS[task.type.name](task, split, logits)
    texts = _Texts(split, tokenizer, task.type.name)

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


class _Texts:
    """What the model has read and what it says about it, as text."""

    def __init__(self, split: Split, tokenizer: PreTrainedTokenizerBase, task_type: str):
        self.split, self.tokenizer, self.task_type = split, tokenizer, task_type
        self.special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self.first = np.arange(len(split))
        if task_type == "question_answering":  # the first window of each question
            examples = np.asarray(split.notes["example"][:])
            self.first = np.flatnonzero(np.diff(examples, prepend=examples[0] - 1))

    def of_row(self, number: int) -> str:
        """Its inputs; a row of choices has them before each choice."""
        parts = self._parts(number)
        return " | ".join(map(_cut, parts[:-1] if self.task_type == "multiple_choice" and len(parts) > 1 else parts))

    def of_label(self, number: int, label: str) -> str:
        """A choice as its text, the labels of words beside these; other labels as they are."""
        if self.task_type == "multiple_choice":
            return _cut((self._parts(number, int(label)) or [""])[-1])
        if self.task_type == "token_classification":
            ids, places = self._sequence(number), self.split.notes[number]["word_tokens"]
            ends = [*[max(place, 0) for place in places[1:]], len(ids)]
            words = [
                self._text(ids[place:end]) if place >= 0 else "…" for place, end in zip(places, ends, strict=True)
            ]
            labels = zip(words, label.split("\n"), strict=True)
            return _cut(" ".join(f"{word}/{name}" for word, name in labels if name != "O") or "O everywhere")
        return _cut(label)

    def _sequence(self, number: int, which: int = 0) -> list[int]:
        return self.split.rows[int(self.first[number])]["input_ids"][which]

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode([token for token in tokens if token not in self.special])).strip()

    def _parts(self, number: int, which: int = 0) -> list[str]:
        """The parts of a sequence between its special tokens."""
        parts: list[list[int]] = [[]]
        for token in self._sequence(number, which):
            if token in self.special:
                parts.append([])
            else:
                parts[-1].append(token)
        return [self._text(part) for part in parts if part]


# -- how each type is looked at: (task, rows, logits) -> the picture, and every row judged ----------------------------


def _regression(task: TaskData, split: Split, logits: NDArray) -> tuple[dict, Judged]:
    true, predicted = np.asarray(split.rows["label"], np.float64), logits[:, 0].astype(np.float64)
    some = np.unique(np.linspace(0, len(true) - 1, MOST_POINTS).astype(int))
    points = {key: [float(f"{x:.4g}") for x in of[some]] for key, of in (("true", true), ("predicted", predicted))}
    judged: Judged = [(f"{p:.2f}", f"{t:.2f}", None, abs(p - t)) for p, t in zip(predicted, true, strict=True)]
    return {"kind": "scatter"} | points, judged


def _one_label(task: TaskData, split: Split, logits: NDArray) -> tuple[dict, Judged]:
    true, predicted = np.asarray(split.rows["label"]), logits.argmax(axis=-1)
    sure = softmax(logits, axis=-1).max(axis=-1)
    is_choice = task.type.name == "multiple_choice"
    names = [str(number) if is_choice else name for number, name in enumerate(task.labels)]
    judged: Judged = [
        (names[p], names[t], float(s), float(s) if p != t else 0.0)
        for p, t, s in zip(predicted, true, sure, strict=True)
    ]
    shown = [f"choice {number + 1}" for number in range(len(names))] if is_choice else names
    return _confusion(true, predicted, shown), judged


def _confusion(true: NDArray, predicted: NDArray, labels: Sequence[str]) -> dict[str, Any]:
    """Counts of (right, predicted), of the labels with the most rows if there are too many to show."""
    rows = np.bincount(true, minlength=len(labels)) + np.bincount(predicted, minlength=len(labels))
    kept = np.sort(np.argsort(-rows, kind="stable")[:MOST_LABELS])
    counts = confusion_matrix(true, predicted, labels=np.arange(len(labels)))[np.ix_(kept, kept)]
    others = len(true) - int(counts.sum())
    return {"kind": "confusion", "labels": [labels[i] for i in kept], "counts": counts.tolist(), "others": others}


def _several_labels(task: TaskData, split: Split, logits: NDArray) -> tuple[dict, Judged]:
    true, predicted, sure = np.asarray(split.rows["label"]) > 0.5, logits > 0, expit(logits)
    found, missed, wrong = (true & predicted).sum(0), (true & ~predicted).sum(0), (~true & predicted).sum(0)
    most = np.argsort(-(found + missed + wrong), kind="stable")[:MOST_LABELS]
    bars = {task.labels[i]: [int(found[i]), int(missed[i]), int(wrong[i])] for i in most}

    def names(flags: NDArray) -> str:
        return ", ".join(name for name, flag in zip(task.labels, flags, strict=True) if flag) or "none"

    error = np.where(true != predicted, np.maximum(sure, 1 - sure), 0).max(axis=-1, initial=0)
    confidence = np.maximum(sure, 1 - sure).min(axis=-1, initial=1)
    judged: Judged = [
        (names(p), names(t), float(e if e else c), float(e))
        for p, t, e, c in zip(predicted, true, error, confidence, strict=True)
    ]
    return {"kind": "bars", "segments": ["found", "missed", "wrong"], "bars": bars}, judged


def _words(task: TaskData, split: Split, logits: NDArray) -> tuple[dict, Judged]:
    predicted: list[list[str]] = list(task.type.predictions(logits, split, task.labels))
    true: list[list[str]] = list(task.type.references(split, task.labels))
    sure = softmax(logits, axis=-1).max(axis=-1)
    names = list(dict.fromkeys([*task.labels, "O"]))  # a word that was cut off counts as O, also without that label
    number = {name: place for place, name in enumerate(names)}
    flat = [np.asarray([number[name] for row in rows for name in row], int) for rows in (true, predicted)]
    judged: Judged = []
    for of_row, p, t, places in zip(sure, predicted, true, split.notes["word_tokens"], strict=True):
        scores = [float(of_row[place]) if place >= 0 else 0.0 for place in places]
        errors = [score for score, a, b in zip(scores, p, t, strict=True) if a != b]
        surest = max(errors, default=min(scores, default=1.0))
        judged.append(("\n".join(p), "\n".join(t), surest, max(errors, default=0.0)))
    return _confusion(flat[0], flat[1], names), judged


def _answers(task: TaskData, split: Split, logits: NDArray) -> tuple[dict, Judged]:
    found = task.type.answers(logits, split, task.labels)
    right: list[list[str]] = list(task.type.references(split, task.labels))
    f1 = load_metric(task.type.name, "f1", len(task.labels))
    bars = {"with an answer": [0, 0, 0], "without": [0, 0, 0]}
    judged: Judged = []
    for one, answers in zip(found, right, strict=True):
        score = f1.function([answers], [one["answer"]])
        bars["with an answer" if answers else "without"][0 if score == 1 else 1 if score > 0 else 2] += 1
        right_text = " / ".join(dict.fromkeys(answers)) or "no answer"
        judged.append((one["answer"] or "no answer", right_text, one["score"], one["score"] * (score < 1)))
    bars = {name: counts for name, counts in bars.items() if sum(counts)}
    return {"kind": "bars", "segments": ["right", "in part", "wrong"], "bars": bars}, judged


_LOOKS = {
    "regression": _regression,
    "classification": _one_label,
    "multiple_choice": _one_label,
    "multi_label_classification": _several_labels,
    "token_classification": _words,
    "question_answering": _answers,
}
