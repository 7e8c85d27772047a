"""Reads a task's inputs from a row that may use another task's field names."""

from collections.abc import Mapping
from typing import Any

from ..config.schema import TaskConfig
from ..data.columns import Layout, is_missing, value_at
from ..errors import UserError, hint
from .base import TASK_TYPES


def shared_layout(config: TaskConfig, num_labels: int) -> Layout:
    """The layout of what `fields_of` returns; equal for tasks that read the same fields."""
    inputs = tuple(names[0] for names in TASK_TYPES[config.type].input_names)[: len(config.inputs)]
    if not TASK_TYPES[config.type].reads_choices:
        return Layout(inputs)
    return Layout(inputs, choices="choices", choice_labels="names", num_choices=num_labels)


def fields_of(task: str, config: TaskConfig, row: Mapping[str, Any], num_labels: int) -> dict[str, Any]:
    """The fields of a row that a task reads, under names that are the same for all tasks.

    Raises:
        UserError: for a missing or invalid field; the message completes "row N …".
    """
    if not isinstance(row, Mapping):
        raise UserError(f"is {row!r}, not a mapping of fields")
    found: dict[str, Any] = {}
    for own, others in zip(config.inputs, TASK_TYPES[config.type].input_names, strict=False):
        name, value = next(
            ((n, value) for n in (own, *others) if (value := value_at(dict(row), n)) is not None), (own, None)
        )
        if is_missing(value):
            if empty := [name for name in (own, *others) if name in row]:
                raise UserError(f"has nothing in field '{empty[0]}', which task {task} reads")
            also = " or ".join(f"'{other}'" for other in others if other != own)
            or_also = f" (or {also})" if also else ""
            raise UserError(f"lacks the field '{own}'{or_also} that task {task} reads{hint(own, row, 'fields')}")
        value = TASK_TYPES[config.type].read_input(value, name, task)
        if not _is_unicode(value):
            raise UserError(f"holds half a character in field '{name}', which is no Unicode")
        found[others[0]] = value
    if TASK_TYPES[config.type].reads_choices:
        found |= _choices(task, config, row, num_labels)
    return found


def _is_unicode(value: Any) -> bool:
    try:
        return str(value).encode() is not None
    except UnicodeEncodeError:
        return False


def _choices(task: str, config: TaskConfig, row: Mapping[str, Any], num_choices: int) -> dict[str, Any]:
    own = [config.choices] if isinstance(config.choices, str) else config.choices or []
    choices = value_at(dict(row), own[0]) if len(own) == 1 else [value_at(dict(row), column) for column in own]
    if not isinstance(choices, list) or None in choices:
        choices = row.get("choices")
    if choices is None:
        or_also = " (or 'choices')" if own != ["choices"] else ""
        raise UserError(
            f"lacks the field '{', '.join(own)}'{or_also} that task {task} reads{hint(own[0], row, 'fields')}"
        )
    if (
        not isinstance(choices, list)
        or not 2 <= len(choices) <= num_choices
        or any(isinstance(c, (list, dict, bytes, type(None))) for c in choices)
    ):
        wanted = "2" if num_choices == 2 else f"2 to {num_choices}"
        raise UserError(f"holds {choices!r} as choices, not a list of {wanted} texts for task {task}")
    if not _is_unicode("".join(map(str, choices))):
        raise UserError("holds half a character in its choices, which is no Unicode")
    names = value_at(dict(row), config.choice_labels) if config.choice_labels else None
    is_named = isinstance(names, list) and None not in names and len(set(map(str, names))) == len(choices)
    return {"choices": choices, "names": names if is_named else None}
