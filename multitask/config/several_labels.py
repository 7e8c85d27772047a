"""Several labels on the same rows: `labels` under a task stands for one task each, which read the same rows.

    tickets: {dataset: csv, …, inputs: [text], labels: {topic: {type: classification, …}, urgency: {…}}}

becomes the tasks `topic` and `urgency` with `rows: tickets` and the keys of `tickets`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..errors import UserError
from .schema import ROW_KEYS


def expand(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration in which every label is a task of its own.

    Args:
        tree: content of a file.
        prefix: stands before keys in error messages.

    Raises:
        UserError: for a label that cannot be a task.
    """
    tasks = tree.get("tasks")
    if not isinstance(tasks, dict) or not any(isinstance(task, dict) and "labels" in task for task in tasks.values()):
        return tree
    found: dict[str, Any] = {}
    for name, task in tasks.items():
        key = f"{prefix}tasks.{name}"
        if not isinstance(task, dict) or "labels" not in task:
            _add(found, name, task, key)
            continue
        common = {option: value for option, value in task.items() if option != "labels"}
        for option in (option for option in common if option not in ROW_KEYS):
            where = f"{key}.labels.LABEL.{option}"
            raise UserError(
                f"{key}.{option}: belongs to one of the labels, {where}; labels stand instead of type and label"
            )
        if not isinstance(task["labels"], dict) or not task["labels"]:
            raise UserError(f"{key}.labels: found {task['labels']!r}, expected {{NAME: {{type: …, label: COLUMN}}}}")
        for label, own in task["labels"].items():
            at = f"{key}.labels.{label}"
            if not isinstance(own, dict):
                raise UserError(f"{at}: found {own!r}, expected keys such as type and label")
            for option in own.keys() & {*ROW_KEYS, "rows"}:
                raise UserError(f"{at}.{option}: all labels of {name} read the same rows; it belongs to {key}")
            if label in tasks:
                raise UserError(f"{at}: {label} is a task already; a label is a task too and needs another name")
            _add(found, label, {**common, **own, "rows": name}, at)
    return tree | {"tasks": found}


def _add(tasks: dict[str, Any], name: str, task: Any, key: str) -> None:
    if name in tasks:
        raise UserError(
            f"{key}: there is a label {name} already, of {tasks[name].get('rows')}; one needs another name"
        )
    tasks[name] = task


def split_words(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with `--key=value` as two words."""
    return [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]


def expand_words(arguments: Sequence[str], trees: Mapping[str, dict[str, Any]]) -> list[str]:
    """Command-line arguments for a configuration in which every label is a task.

    `--tasks.tickets.labels.topic.weight 2` becomes `--tasks.topic.weight 2`, `--tasks.tickets.subset x` the same for
    every label of `tickets`, and a file with several labels on rows its expanded content.

    Args:
        arguments: the words of a command line.
        trees: content of each configuration file, expanded.
    """
    labels: dict[str, list[str]] = {}
    for tree in trees.values():
        tasks = tree.get("tasks")
        for name, task in tasks.items() if isinstance(tasks, dict) else ():
            if isinstance(task, dict) and task.get("rows"):
                labels.setdefault(task["rows"], []).append(name)
    if not labels:
        return list(arguments)
    words = split_words(arguments)
    expanded, is_value = [], False
    for word, value in pairwise([*words, ""]):
        of_rows = re.fullmatch(r"--tasks\.([^.]+)\.(.+)", word)
        if is_value:
            is_value = False
        elif word == "--config" and value in trees:
            expanded += [word, json.dumps(trees[value])]
            is_value = True
        elif of_rows and of_rows[1] in labels:
            of_label = re.fullmatch(r"labels\.([^.]+)\.(.+)", of_rows[2])
            names, option = ([of_label[1]], of_label[2]) if of_label else (labels[of_rows[1]], of_rows[2])
            expanded += [part for name in names for part in (f"--tasks.{name}.{option}", value)]
            is_value = True
        else:
            expanded.append(word)
    return expanded
