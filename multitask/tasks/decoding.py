"""What a head's numbers say: predictions and references for the metrics, answers for people.

All take logits of shape (rows, …), the split that they belong to and the names of the labels; one item an example.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from ..data.split import Split
from .answers import best_answers
from .words import predicted_words

# -- one label for a row ----------------------------------------------------------------------------------------------


def number(logits: NDArray, split: Split, names: Sequence[str]) -> NDArray:
    return logits[:, 0]


def most_likely(logits: NDArray, split: Split, names: Sequence[str]) -> NDArray:
    return logits.argmax(axis=-1)


def likely(logits: NDArray, split: Split, names: Sequence[str]) -> NDArray:
    return (logits > 0).astype(int)


def label_column(split: Split, names: Sequence[str]) -> NDArray:
    return np.asarray(split.rows["label"])


def score_answers(logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"score": float(score)} for score in logits[:, 0]]


def class_answers(logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"label": names[of_row.argmax()], "score": float(of_row.max()), "probabilities": _by_name(of_row, names)}
        for of_row in softmax(logits, axis=-1)
    ]


def choice_answers(logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "label": choices[of_row.argmax()],
            "choice": int(of_row.argmax()),
            "score": float(of_row.max()),
            "probabilities": of_row.tolist(),
        }
        for of_row, choices in zip(softmax(logits, axis=-1), split.notes["choices"], strict=True)
    ]


def multi_label_answers(logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "labels": [name for name, probability in zip(names, of_row, strict=True) if probability > 0.5],
            "probabilities": _by_name(of_row, names),
        }
        for of_row in expit(logits)
    ]


def _by_name(probabilities: NDArray, names: Sequence[str]) -> dict[str, float]:
    return dict(zip(names, probabilities.tolist(), strict=True))


# -- token classification: a label for each word ----------------------------------------------------------------------


def word_predictions(logits: NDArray, split: Split, names: Sequence[str]) -> list[list[str]]:
    """A word that was cut off counts as outside of every span."""
    return [
        [names[label] if label >= 0 else "O" for label in of_row]
        for of_row in predicted_words(logits, split.notes["word_tokens"])
    ]


def word_references(split: Split, names: Sequence[str]) -> list[list[str]]:
    return [[names[label] for label in of_row] for of_row in split.notes["word_labels"]]


def word_answers(logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
    probabilities = softmax(logits, axis=-1)
    return [
        {
            "labels": [names[label] if label >= 0 else None for label in of_words],
            "scores": [float(of_row[place].max()) if place >= 0 else None for place in places],
        }
        for of_row, of_words, places in zip(
            probabilities,
            predicted_words(logits, split.notes["word_tokens"]),
            split.notes["word_tokens"],
            strict=True,
        )
    ]


# -- question answering: a part of the context ------------------------------------------------------------------------


def found_answers(logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
    return list(best_answers(logits, split.notes[:]))


def answer_texts(logits: NDArray, split: Split, names: Sequence[str]) -> list[str]:
    return [found["answer"] for found in best_answers(logits, split.notes[:])]


def right_answers(split: Split, names: Sequence[str]) -> list[list[str]]:
    examples = np.asarray(split.notes["example"][:])
    firsts = np.flatnonzero(np.diff(examples, prepend=examples[0] - 1))
    return [split.notes[int(first)]["answers"] for first in firsts]
