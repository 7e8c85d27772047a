"""Token classification: a label for each word, from rows that are already split into words."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, List, Value
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from ..config.schema import TaskConfig
from ..data.columns import Layout, as_rows, is_missing, label_text, number_of, value_at
from ..data.split import NO_LABEL, Ragged, Split
from ..errors import UserError
from .base import TaskType, pipeline_usage
from .labels import arrow_column, column_labels, labelled_rows
from .losses import PLAIN, LossOptions, class_loss
from .metrics import of_spans
from .pictures import Judged, confusion
from .texts import sequence_columns

COUNTED_AT_ONCE = 10_000  # rows


class TokenClassification(TaskType):
    """A label for each word, from rows that are already split into words."""

    name = "token_classification"
    auto_class = AutoModelForTokenClassification
    hub_name = "token-classification"
    columns = {
        "label": List(Value("int64")),
        "word_labels": List(Value("int32")),
        "word_tokens": List(Value("int32")),
    }
    metrics = ("f1", "precision", "recall", "accuracy")
    prediction = reference = List(Value("string"))
    has_token_labels = True
    loss_options = ("class_weights", "label_smoothing_factor", "focal_gamma")
    num_inputs = (1, 1)
    inputs_wanted = "the column with the words is needed"
    input_names = (("words", "text"),)
    answer_types = {
        "words": pa.list_(pa.string()),
        "labels": pa.list_(pa.string()),
        "scores": pa.list_(pa.float64()),
    }

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
        """Tokenises a batch of rows of words with a label each; arguments as in `TextTask.encode`.

        The words are joined with spaces, like the texts that the encoder was pretrained on. A word's label is assigned
        to its first token and predicted there.

        Returns:
            Besides the columns of `sequence_columns`: `label`, a label index for each token, `NO_LABEL` where nothing
            is predicted; `word_labels`, a label index for each word; `word_tokens`, the position of each word's first
            token, -1 if the word was truncated or has no token.

        Raises:
            UserError: naming the row, for a value that is not a list of words, an unknown label, or different numbers
                of labels and words.
        """
        at = [f"{where} row {number}" for number in numbers]
        in_rows = as_rows(rows)
        words = [_words(row, layout.inputs[0], place) for row, place in zip(in_rows, at, strict=True)]
        encoded = tokenizer(
            [" ".join(of_row) for of_row in words], truncation=True, max_length=max_length, return_offsets_mapping=True
        )
        first_tokens = [
            _first_tokens(of_row, offsets) for of_row, offsets in zip(words, encoded["offset_mapping"], strict=True)
        ]
        cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
        columns = sequence_columns(encoded, tokenizer, cut) | {"word_tokens": first_tokens}
        if layout.label is None:
            return columns | {"words": words}
        word_labels = [_labels(*found, layout) for found in zip(in_rows, words, at, strict=True)]
        labels = [[NO_LABEL] * len(ids) for ids in encoded["input_ids"]]
        for of_tokens, of_words, places in zip(labels, word_labels, first_tokens, strict=True):
            for label, place in zip(of_words, places, strict=True):
                if place >= 0:
                    of_tokens[place] = label
        return columns | {"label": labels, "word_labels": word_labels}

    def stand_in(self, label: Any, row: dict[str, Any], config: TaskConfig) -> Any:
        return [label[0]] * len(value_at(row, config.inputs[0]))

    def class_counts(self, split: Split, labels: Sequence[str]) -> NDArray[np.int64]:
        assert isinstance(split.labels, Ragged)
        counts = np.zeros(len(labels), np.int64)
        for first in range(0, len(split), COUNTED_AT_ONCE):
            found = split.labels[np.arange(first, min(first + COUNTED_AT_ONCE, len(split)))]
            counts += np.bincount(found[found != NO_LABEL], minlength=len(labels))
        return counts

    def loss(self, logits: Tensor, labels: Tensor, options: LossOptions = PLAIN) -> Tensor:
        of_tokens = class_loss(logits.transpose(1, 2), labels, options, ignored=NO_LABEL)
        return of_tokens.sum(dim=1) / (labels != NO_LABEL).sum(dim=1).clamp(min=1)

    def predictions(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[list[str]]:
        """Predicts a tag for each word; truncated words get O."""
        return [
            [names[label] if label >= 0 else "O" for label, true in zip(of_row, labels, strict=True) if true >= 0]
            for of_row, labels in zip(
                predicted_words(logits, split.notes["word_tokens"]), split.notes["word_labels"], strict=True
            )
        ]

    def references(self, split: Split, names: Sequence[str]) -> list[list[str]]:
        """The tags of the words that have one."""
        return [[names[label] for label in of_row if label >= 0] for of_row in split.notes["word_labels"]]

    def labelled(self, dataset: Dataset, config: TaskConfig, labels: Sequence[str]) -> NDArray[np.bool_]:
        """Rows with words and a list of tags."""
        has_tags = labelled_rows(dataset, config.label_column, None)
        words = arrow_column(dataset, config.inputs[0])
        if words is None or not pa.types.is_list(words.type):
            return has_tags  # what is wrong is said where the row is read
        return has_tags & ~np.asarray(pc.equal(pc.fill_null(pc.list_value_length(words), 1), 0).combine_chunks(), bool)

    def answers(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
        probabilities = softmax(logits, axis=-1)
        return [
            {
                "words": of_row_words,
                "labels": [names[label] if label >= 0 else None for label in of_words],
                "scores": [float(of_row[place].max()) if place >= 0 else None for place in places],
            }
            for of_row, of_words, places, of_row_words in zip(
                probabilities,
                predicted_words(logits, split.notes["word_tokens"]),
                split.notes["word_tokens"],
                split.notes["words"],
                strict=True,
            )
        ]

    def metric(self, name: str, num_labels: int) -> Callable[..., float]:
        return of_spans(name)

    def measurable(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Only accuracy if the labels do not mark spans (B-…, I-…, O)."""
        has_spans = all(re.fullmatch("O|[BIESLU]-.+", label) for label in labels)
        return self.metrics if has_spans else ("accuracy",)

    def label_names(self, name: str, config: TaskConfig, train: Dataset) -> tuple[str, ...]:
        return tuple(config.label_names) if config.label_names else column_labels(name, config, train, in_lists=True)

    def read_input(self, value: Any, field: str, task: str) -> Any:
        words = split_words(value)
        if not isinstance(words, list) or not words or any(isinstance(w, (list, dict, type(None))) for w in words):
            raise UserError(f"holds {words!r} in field '{field}', which are no words for task {task}")
        return words

    def look(self, split: Split, logits: NDArray, labels: Sequence[str]) -> tuple[dict[str, Any], Judged]:
        predicted: list[list[str]] = list(self.predictions(logits, split, labels))
        true: list[list[str]] = list(self.references(split, labels))
        sure = softmax(logits, axis=-1).max(axis=-1)
        names = list(dict.fromkeys([*labels, "O"]))  # truncated words count as O, even if it is not a label
        number = {name: place for place, name in enumerate(names)}
        flat = [np.asarray([number[name] for row in rows for name in row], int) for rows in (true, predicted)]
        judged: Judged = []
        tagged = zip(split.notes["word_tokens"], split.notes["word_labels"], strict=True)
        for of_row, p, t, (places, labels_of_row) in zip(sure, predicted, true, tagged, strict=True):
            has_label = [label >= 0 for label in labels_of_row]
            scores = [float(of_row[place]) if place >= 0 else 0.0 for place in compress(places, has_label)]
            errors = [score for score, a, b in zip(scores, p, t, strict=True) if a != b]
            surest = max(errors, default=min(scores, default=1.0))
            p, t = ([next(some) if has else "O" for has in has_label] for some in (iter(p), iter(t)))
            judged.append(("\n".join(p), "\n".join(t), surest, max(errors, default=0.0)))
        return confusion(flat[0], flat[1], names), judged

    def shown_label(self, label: str, row: dict[str, Any], layout: Layout) -> str:
        """The words with their labels, except O."""
        labels = zip(value_at(row, layout.inputs[0]), label.split("\n"), strict=True)
        return " ".join(f"{word}/{name}" for word, name in labels if name != "O") or "O everywhere"

    def usage(self, name: str, num_inputs: int) -> str:
        call = 'pipe("Words of a sentence.", aggregation_strategy="first")'
        return pipeline_usage(self.hub_name, name, call)


def split_words(value: Any) -> Any:
    """Splits a text into words; other values are returned unchanged."""
    return value.split() if isinstance(value, str) else value


def predicted_words(logits: NDArray, word_tokens: list[list[int]]) -> list[list[int]]:
    """The index of each word's most likely label; -1 for a word without a token.

    Args:
        logits: logits, shape (rows, tokens, labels).
        word_tokens: position of each word's first token, for each row.
    """
    best = logits.argmax(axis=-1)
    return [
        [int(of_row[place]) if place >= 0 else -1 for place in places]
        for of_row, places in zip(best, word_tokens, strict=True)
    ]


def _words(row: dict[str, Any], column: str, at: str) -> list[str]:
    words = value_at(row, column)
    if not isinstance(words, list) or not words or any(isinstance(w, (list, dict)) or w is None for w in words):
        raise UserError(f"{at}: column '{column}' holds {words!r}, not a list of words")
    return [str(word) for word in words]


def _labels(row: dict[str, Any], words: list[str], at: str, layout: Layout) -> list[int]:
    assert layout.label is not None
    labels = value_at(row, layout.label)
    if not isinstance(labels, list):
        raise UserError(f"{at}: column '{layout.label}' holds {labels!r}, not a list with a label for each word")
    if len(labels) != len(words):
        raise UserError(f"{at}: {len(labels)} labels in column '{layout.label}' for {len(words)} words")
    known = layout.label_numbers
    return [
        NO_LABEL if _is_no_label(label, known) else number_of(_stripped(label), layout, known, at) for label in labels
    ]


def _stripped(label: Any) -> Any:
    return label.strip() if isinstance(label, str) else label


def _is_no_label(label: Any, known: Mapping[str, int]) -> bool:
    return is_missing(label) or (label_text(label) in ("-1", "-100") and label_text(label) not in known)


def _first_tokens(words: list[str], offsets: list[tuple[int, int]]) -> list[int]:
    """The position of each word's first token, or -1; `offsets` are character offsets in the joined words."""
    word_at = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])  # each word and the space after it
    text = " ".join(words)
    places = [-1] * len(words)
    for token, (start, end) in enumerate(offsets):
        while start < end and text[start].isspace():  # some tokens include the space before a word
            start += 1
        if start < end and places[word_at[start]] < 0:
            places[word_at[start]] = token
    return places
