"""What differs between types of tasks: the head, how a row is read, the loss, the metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from datasets import List, Value
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ..data.split import NO_LABEL, Split
from . import decoding
from .answers import ENDS, STARTS, encode_windows
from .encoding import encode_texts
from .words import encode_words


@dataclass(frozen=True)
class TaskType:
    """A type of task.

    Args:
        name: what the configuration calls it.
        auto_class: the `transformers` class that puts this head on an encoder.
        hub_name: what the hub calls it; also the name of a pipeline in `transformers`, where there is one.
        encode: a batch of rows -> columns with tokenised sequences, labels and what reading the predictions takes.
        columns: of what `encode` adds to the sequences, the types; `label` first.
        loss: (logits, labels) -> loss of each example, shape (examples,); of the examples alone, not of their padding.
        predictions: (logits, split, names of the labels) -> what the metrics take, one for each example.
        references: (split, names of the labels) -> what is right, in the same form.
        answers: (logits, split, names of the labels) -> what a user is told, a mapping for each example.
        metrics: names of the metrics that can measure it, its usual ones first.
        num_default_metrics: how many of those it reports unless told otherwise.
        problem_type: what `transformers` calls it in a model's configuration.
    """

    name: str
    auto_class: Any
    hub_name: str
    encode: Callable[..., dict[str, list]]
    columns: dict[str, Any]
    loss: Callable[[Tensor, Tensor], Tensor]
    predictions: Callable[[NDArray, "Split", Sequence[str]], Sequence | NDArray]
    references: Callable[["Split", Sequence[str]], Sequence | NDArray]
    answers: Callable[[NDArray, "Split", Sequence[str]], list[dict[str, Any]]]
    metrics: tuple[str, ...]
    num_default_metrics: int = 1
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None


def example_losses(task_type: TaskType, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """The loss of each example, shape (examples,); of no example, an empty tensor that still depends on the head.

    Args:
        task_type: of the task.
        logits: of the batch.
        batch: as `collate` makes it; the loss of what is no row is 0.
    """
    losses = task_type.loss(logits.float(), batch["labels"]) if len(batch["labels"]) else logits.flatten()
    return losses * batch["is_row"] if "is_row" in batch else losses


# -- regression, classification, multiple choice: one label for a row ------------------------------------------------


def _squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits.squeeze(-1), labels, reduction="none")


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _mean_binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1)


# -- token classification: a label for each word ----------------------------------------------------------------------


def _mean_word_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    of_tokens = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=NO_LABEL, reduction="none")
    return of_tokens.sum(dim=1) / (labels != NO_LABEL).sum(dim=1).clamp(min=1)


# -- question answering: a part of the context ------------------------------------------------------------------------


def _mean_span_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Over the tokens of the sequence, those that fill it up (labelled `NO_LABEL`) left out."""
    logits = logits.masked_fill((labels == NO_LABEL)[..., None], -torch.inf)
    places = [((labels & bit) * (labels > 0)).argmax(dim=1) for bit in (STARTS, ENDS)]
    start, end = (F.cross_entropy(logits[..., i], place, reduction="none") for i, place in enumerate(places))
    return (start + end) / 2


_ONE_LABEL = {"label": Value("int64")}


_TYPES = [
    TaskType(
        "regression",
        AutoModelForSequenceClassification,
        "text-classification",
        encode_texts,
        {"label": Value("float32")},
        _squared_error,
        decoding.number,
        decoding.label_column,
        decoding.score_answers,
        metrics=("pearson", "spearmanr", "mse"),
        num_default_metrics=2,
        problem_type="regression",
    ),
    TaskType(
        "classification",
        AutoModelForSequenceClassification,
        "text-classification",
        encode_texts,
        _ONE_LABEL,
        _cross_entropy,
        decoding.most_likely,
        decoding.label_column,
        decoding.class_answers,
        metrics=("accuracy", "f1", "matthews_correlation"),
        problem_type="single_label_classification",
    ),
    TaskType(
        "multiple_choice",
        AutoModelForMultipleChoice,
        "multiple-choice",
        encode_texts,
        _ONE_LABEL,
        _cross_entropy,
        decoding.most_likely,
        decoding.label_column,
        decoding.choice_answers,
        metrics=("accuracy", "f1", "matthews_correlation"),
    ),
    TaskType(
        "multi_label_classification",
        AutoModelForSequenceClassification,
        "text-classification",
        encode_texts,
        {"label": List(Value("float32"))},
        _mean_binary_cross_entropy,
        decoding.likely,
        decoding.label_column,
        decoding.multi_label_answers,
        metrics=("f1_micro", "f1_macro", "accuracy"),
        num_default_metrics=2,
        problem_type="multi_label_classification",
    ),
    TaskType(
        "token_classification",
        AutoModelForTokenClassification,
        "token-classification",
        encode_words,
        {
            "label": List(Value("int64")),
            "word_labels": List(Value("int32")),
            "word_tokens": List(Value("int32")),
        },
        _mean_word_cross_entropy,
        decoding.word_predictions,
        decoding.word_references,
        decoding.word_answers,
        metrics=("f1", "precision", "recall", "accuracy"),
    ),
    TaskType(
        "question_answering",
        AutoModelForQuestionAnswering,
        "question-answering",
        encode_windows,
        {
            "label": List(Value("int64")),
            "example": Value("int64"),
            "context": Value("string"),
            "starts": List(Value("int32")),
            "ends": List(Value("int32")),
            "answers": List(Value("string")),
        },
        _mean_span_cross_entropy,
        decoding.answer_texts,
        decoding.right_answers,
        decoding.found_answers,
        metrics=("exact_match", "f1"),
        num_default_metrics=2,
    ),
]


TASK_TYPES = {task_type.name: task_type for task_type in _TYPES}


@dataclass(frozen=True)
class Task:
    """A task as a model sees it.

    Args:
        name: its name in the configuration.
        type: its head, loss and metrics.
        labels: names of the classes or labels; of the choices' positions; "start" and "end"; empty for regression.
        mean: mean of its training labels, where a regression begins.
    """

    name: str
    type: TaskType
    labels: tuple[str, ...]
    mean: float = 0.0
