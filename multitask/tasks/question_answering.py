"""Extractive question answering: the span of a context that answers a question; long contexts are split in windows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, List, Value
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from ..config.schema import TaskConfig
from ..data.columns import Layout, as_rows, text_at, value_at
from ..data.split import NO_LABEL, Split
from ..errors import UserError
from .base import TaskType, model_usage
from .losses import PLAIN, LossOptions
from .metrics import of_answers
from .pictures import Judged
from .texts import sequence_columns

MAX_ANSWER_TOKENS = 30  # as in the examples and pipelines of `transformers`


STARTS, ENDS = 1, 2  # bits of a token's label


class QuestionAnswering(TaskType):
    """The span of a context that answers a question."""

    name = "question_answering"
    has_label_names = False
    auto_class = AutoModelForQuestionAnswering
    hub_name = "question-answering"
    columns = {
        "label": List(Value("int64")),
        "example": Value("int64"),
        "context": Value("string"),
        "starts": List(Value("int32")),
        "ends": List(Value("int32")),
        "answers": List(Value("string")),
    }
    metrics = ("exact_match", "f1")
    num_default_metrics = 2
    prediction = Value("string")
    reference = List(Value("string"))
    has_token_labels = True
    num_inputs = (2, 2)
    inputs_wanted = "those of the question and of its context are needed"
    input_names = (("question", "text"), ("context", "text_pair"))
    answer_types = {"answer": pa.string(), "start": pa.int64(), "end": pa.int64(), "score": pa.float64()}

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
        """Tokenises a batch of questions with their contexts; arguments as in `TextTask.encode`.

        A context that is too long for one sequence is split into overlapping windows. Each window is a separate row
        and training example (Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 4.2). In a window without
        the answer, the label is the first token, which stands for "no answer".

        Returns:
            Besides the columns of `sequence_columns`: `label`, for each token the sum of `STARTS` and `ENDS` if the
            answer starts or ends there, else 0; `example`, the number of the row that a window belongs to; `context`;
            `starts` and `ends`, each token's character span in the context (end exclusive), -1 outside of it;
            `answers`, the correct texts, or one empty text if the context holds no answer.

        Raises:
            UserError: naming the row, for a missing question or context and for an answer that is not in its context.
        """
        if max_length < 16:
            raise UserError(
                f"model.max_length: {max_length} is too short for question_answering, which needs 16 or more"
            )
        in_rows = as_rows(rows)
        at = [f"{where} row {number}" for number in numbers]
        questions = [text_at(row, layout.inputs[0], place) for row, place in zip(in_rows, at, strict=True)]
        contexts = [text_at(row, layout.inputs[1], place) for row, place in zip(in_rows, at, strict=True)]
        answers = [
            [] if layout.label is None else _answers(value_at(row, layout.label), context, place)
            for row, context, place in zip(in_rows, contexts, at, strict=True)
        ]
        shortened = [_shorten(question, tokenizer, max_length // 2 - 2) for question in questions]
        encoded = tokenizer(
            shortened,
            contexts,
            truncation="only_second",
            max_length=max_length,
            stride=min(128, max_length // 4),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        of_row = encoded["overflow_to_sample_mapping"]
        cut = [shortened[i] != questions[i] for i in of_row]
        columns = sequence_columns(encoded, tokenizer, cut)
        starts: list[list[int]] = []
        ends: list[list[int]] = []
        for window, offsets in enumerate(encoded["offset_mapping"]):
            in_context = [part == 1 for part in encoded.sequence_ids(window)]
            spans = [span if inside else (-1, -1) for span, inside in zip(offsets, in_context, strict=True)]
            starts.append([start for start, _ in spans])
            ends.append([end for _, end in spans])
        columns |= {
            "example": [numbers[i] for i in of_row],
            "context": [contexts[i] for i in of_row],
            "starts": starts,
            "ends": ends,
        }
        if layout.label is None:
            return columns
        return columns | {
            "label": [
                _token_labels(start, end, answers[i]) for start, end, i in zip(starts, ends, of_row, strict=True)
            ],
            "answers": [[text for text, _ in answers[i]] or [""] for i in of_row],
        }

    def labelled(self, dataset: Dataset, config: TaskConfig, labels: Sequence[str]) -> NDArray[np.bool_]:
        """All rows, as one without an answer says that there is none; no row, if none has an answer (a test split)."""
        top = config.label_column if config.label_column in dataset.column_names else config.label_column.split(".")[0]
        answers = (value_at(row, config.label_column) for row in dataset.select_columns([top]))
        has_some = any(_texts(answer) for answer in answers)
        return np.full(len(dataset), has_some)

    def loss(self, logits: Tensor, labels: Tensor, options: LossOptions = PLAIN) -> Tensor:
        """Mean of the start and end cross-entropy over a sequence's tokens; padding (`NO_LABEL`) is masked out."""
        logits = logits.masked_fill((labels == NO_LABEL)[..., None], -torch.inf)
        places = [((labels & bit) * (labels > 0)).argmax(dim=1) for bit in (STARTS, ENDS)]
        start, end = (F.cross_entropy(logits[..., i], place, reduction="none") for i, place in enumerate(places))
        return (start + end) / 2

    def predictions(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[str]:
        return [found["answer"] for found in best_answers(logits, split.notes[:])]

    def references(self, split: Split, names: Sequence[str]) -> list[list[str]]:
        examples = np.asarray(split.notes["example"][:])
        firsts = np.flatnonzero(np.diff(examples, prepend=examples[0] - 1))
        return [split.notes[int(first)]["answers"] for first in firsts]

    def answers(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
        return list(best_answers(logits, split.notes[:]))

    def outputs(self, labels: Sequence[str]) -> str:
        return "a span"

    def metric(self, name: str, num_labels: int) -> Callable[..., float]:
        return of_answers(name)

    def label_names(self, name: str, config: TaskConfig, train: Dataset) -> tuple[str, ...]:
        return ("start", "end")

    def log_label_space(self, labels: Sequence[str], train: Split) -> float:
        """The logarithm of the number of candidate tokens: the mean log length of the training rows."""
        return float(np.log(train.length).mean())

    def look(self, split: Split, logits: NDArray, labels: Sequence[str]) -> tuple[dict[str, Any], Judged]:
        found = self.answers(logits, split, labels)
        right: list[list[str]] = list(self.references(split, labels))
        f1 = of_answers("f1")
        bars = {"with an answer": [0, 0, 0], "without": [0, 0, 0]}
        judged: Judged = []
        for one, answers in zip(found, right, strict=True):
            score = f1([answers], [one["answer"]])
            bars["with an answer" if answers else "without"][0 if score == 1 else 1 if score > 0 else 2] += 1
            right_text = " / ".join(dict.fromkeys(answers)) or "no answer"
            judged.append((one["answer"] or "no answer", right_text, one["score"], one["score"] * (score < 1)))
        bars = {name: counts for name, counts in bars.items() if sum(counts)}
        return {"kind": "bars", "segments": ["correct", "in part", "wrong"], "bars": bars}, judged

    def usage(self, name: str, num_inputs: int) -> str:
        return model_usage(
            self.auto_class,
            name,
            'inputs = tokenizer("A question?", "A text that holds the answer.", return_tensors="pt")\n'
            "output = model(**inputs)\n"
            "start, end = output.start_logits.argmax(), output.end_logits.argmax()\n"
            'tokenizer.decode(inputs["input_ids"][0, start : end + 1])',
        )


def best_answers(logits: NDArray, windows: Mapping[str, Sequence]) -> Iterator[dict[str, Any]]:
    """The most likely answer to each question over all windows of its context.

    An answer is a span of at most `MAX_ANSWER_TOKENS` tokens of the context; its score is the start logit of its first
    token plus the end logit of its last. If the sequence's first token, which stands for "no answer", scores higher in
    every window, there is no answer (SQuAD 2.0; Devlin et al. 2019, section 4.3).

    Args:
        logits: start and end logits, shape (windows, tokens, 2).
        windows: the columns of `QuestionAnswering.encode`; the windows of a question are consecutive.

    Yields:
        For each question: `answer`, a text, empty for no answer; `start` and `end`, its character span in the context,
        None for no answer; `score`, its probability among all spans.
    """
    numbers = np.asarray(windows["example"])
    bounds = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1, append=numbers[-1] + 1))
    for first, behind in pairwise(bounds.tolist()):
        none = min(float(logits[window, 0].sum()) for window in range(first, behind))
        scores = [_run_scores(logits[window], windows["starts"][window]) for window in range(first, behind)]
        best = max(range(behind - first), key=lambda window: scores[window].max(initial=-np.inf))
        score = max(none, float(scores[best].max(initial=-np.inf)))
        total = np.logaddexp.reduce(np.concatenate([[none], *(of_window.ravel() for of_window in scores)]))
        found: dict[str, Any] = {"answer": "", "start": None, "end": None}
        if score > none:
            length, token = np.unravel_index(scores[best].argmax(), scores[best].shape)
            context = windows["context"][first]
            start, end = windows["starts"][first + best][token], windows["ends"][first + best][token + length]
            start += len(context[start:end]) - len(context[start:end].lstrip())  # tokens may include a leading space
            found = {"answer": context[start:end], "start": int(start), "end": int(end)}
        yield found | {"score": float(np.exp(score - total))}


def _run_scores(logits: NDArray, starts: Sequence[int]) -> NDArray:
    """Scores of the spans from each token (column) to the token `row` further; -inf outside of the context."""
    inside = np.asarray(starts) >= 0
    start, end = np.where(inside[:, None], logits[: len(starts)], -np.inf).T
    scores = np.full((min(MAX_ANSWER_TOKENS, len(starts)), len(starts)), -np.inf)
    for further in range(len(scores)):
        scores[further, : len(starts) - further] = start[: len(starts) - further] + end[further:]
    return scores


def _shorten(question: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> str:
    """Truncates a question to `max_tokens` tokens, to leave room for its context."""
    if len(question.encode()) <= max_tokens:
        return question
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question if len(offsets) <= max_tokens else question[: offsets[max_tokens - 1][1]]


def _texts(value: Any) -> bool:
    """Whether there is an answer; what is wrong with it is said where the row is read."""
    texts = value.get("text") if isinstance(value, dict) else value
    return bool(texts) and texts != [""]


def _answers(value: Any, context: str, at: str) -> list[tuple[str, int]]:
    """The correct answers as (text, position of its first character in the context, or -1 if it is not found).

    `value` is SQuAD's {"text": [...], "answer_start": [...]}, a list of {"text", "answer_start"} or of texts, or one
    text; without a start, the text is searched in the context.
    """
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        starts = value.get("answer_start") or [None] * len(value["text"])
        if len(starts) != len(value["text"]):
            raise UserError(f"{at}: {len(value['text'])} answers with {len(starts)} starts")
        value = [{"text": text, "answer_start": start} for text, start in zip(value["text"], starts, strict=True)]
    items = [item for item in (value if isinstance(value, list) else [value]) if item not in (None, "")]
    found = []
    for item in items:
        text, start = (item.get("text"), item.get("answer_start")) if isinstance(item, dict) else (item, None)
        if isinstance(item, dict) and text == "":
            continue  # no answer, as some data sets write it
        if isinstance(text, (int, float)) and not isinstance(text, bool):
            text = str(text)  # in a file with only numeric answers
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{at}: answer {item!r} has no text")
        if start is not None and (isinstance(start, str) or int(start) != start):
            raise UserError(f"{at}: answer_start {start!r} is not a whole number")
        start = None if start is None else int(start)
        if start is not None and context[start : start + len(text)] != text:
            there = context[start : start + len(text)]
            raise UserError(
                f"{at}: answer {text!r} is not in its context at character {start}, where {there!r} stands"
            )
        start = context.find(text) if start is None else start
        spaces = len(text) - len(text.lstrip()) if start >= 0 else 0  # strip spaces: no token begins or ends with one
        found.append((text.strip(), start + spaces))
    if found and all(start < 0 for _, start in found):
        raise UserError(f"{at}: answer {found[0][0]!r} is not in its context")
    return found


def _token_labels(starts: Sequence[int], ends: Sequence[int], answers: Sequence[tuple[str, int]]) -> list[int]:
    """The label of each token of a window, for the first answer that is in the context."""
    labels = [0] * len(starts)
    for text, start in answers:
        if start >= 0:
            inside = [
                token for token, end in enumerate(ends) if end > start and 0 <= starts[token] < start + len(text)
            ]
            if inside and starts[inside[0]] <= start and ends[inside[-1]] >= start + len(text):
                labels[inside[0]] += STARTS
                labels[inside[-1]] += ENDS
                return labels
            break
    labels[0] = STARTS + ENDS
    return labels
