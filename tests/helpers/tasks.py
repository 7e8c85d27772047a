"""Tiny tasks of every type, and their rows."""

import json
import random
from pathlib import Path

import numpy as np

from multitask.data.packing import pack
from multitask.data.static_shapes import collate

from .encoders import WORDS


def _sentence(rng: random.Random, longest: int = 12) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(2, longest)))


def make_rows(kind: str, count: int, seed: int = 0) -> list[dict]:
    """Rows of a task that can be learned from the words in them."""
    rng = random.Random(f"{kind} {seed}")
    rows: list[dict] = []
    for _ in range(count):
        first, second = _sentence(rng), _sentence(rng)
        if kind == "regression":
            rows.append({"a": first, "b": second, "label": len(set(first.split()) & set(second.split())) + 1.5})
        elif kind == "classification":
            rows.append({"a": first, "b": second, "label": "animal" if "cat" in first or "dog" in first else "none"})
        elif kind == "multi_label_classification":
            rows.append({"a": first, "topics": [topic for topic, word in TOPICS.items() if word in first.split()]})
        elif kind == "token_classification":
            words = first.split()
            rows.append({"words": words, "tags": ["B-ANIMAL" if word in ANIMALS else "O" for word in words]})
        elif kind == "question_answering":
            words = rng.choices(WORDS[:-1], k=rng.randint(20, 90))  # the longer ones need two windows and more
            place = rng.randrange(len(words) - 1)
            words[place] = "river"
            answer = words[place + 1]
            start = len(" ".join(words[: place + 1])) + 1
            context = " ".join(words)
            assert context[start:].startswith(answer)
            answers = {"text": [answer], "answer_start": [start]}
            rows.append({"question": "the river", "context": context, "answers": answers})
        else:
            choices = [_sentence(rng, 5) for _ in range(3)]
            answer = rng.randrange(3)
            choices[answer] += " river"
            rows.append(
                {"question": first, "choices": {"text": choices, "name": list("xyz")}, "answer": "xyz"[answer]}
            )
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TASKS = {
    "similar": {"type": "regression", "inputs": ["a", "b"]},
    "animal": {"type": "classification", "inputs": ["a"]},
    "choice": {
        "type": "multiple_choice",
        "inputs": ["question"],
        "choices": "choices.text",
        "choice_labels": "choices.name",
        "label": "answer",
    },
}


TOPICS = {"home": "house", "wood": "tree", "mood": "happy"}
ANIMALS = ("cat", "dog", "bird", "fish")
MORE_TASKS = {
    "topics": {"type": "multi_label_classification", "inputs": ["a"], "label": "topics"},
    "tags": {"type": "token_classification", "inputs": ["words"], "label": "tags"},
    "find": {"type": "question_answering", "inputs": ["question", "context"], "label": "answers"},
}
ALL_TASKS = TASKS | MORE_TASKS


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def padded(split, rows, pad_token_id):
    """Rows of a split as a task's model takes them by itself, with their labels."""
    inputs, labels = collate(split, rows, pad_token_id)
    return {"inputs": inputs, "labels": labels}


def batch_of(tasks, tokenizer, rows=range(6)):
    return {task.name: padded(task.train, list(rows), tokenizer.pad_token_id) for task in tasks}


def packed_of(tasks, rows=range(6)):
    """The same rows packed, as a pass."""
    numbers = np.array(rows, np.int64)
    return pack({task.name: numbers for task in tasks}, {task.name: task.train for task in tasks})
