"""Checks the names and value types of a configuration before it is instantiated.

`jsonargparse` rejects the same errors, but names neither the task that a key belongs to nor the nearest valid name.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ..errors import UserError, hint, note
from .schema import METRIC_NAMES, TASK_RULES, Config, TaskConfig
from .several_labels import expand, split_words

FLAGS = ("--dry_run", "--debug", "--help", "-h", "--print_config")


MODE_FLAGS = ("--mode", "--only", "--seeds", "--checkpoint", "--input", "--output", "--skip_bad_rows", "--push_to_hub")


# Task keys whose valid values are registered by `tasks/`.
NAMES_OF_TASKS: dict[str, Collection[str]] = {"type": TASK_RULES.keys(), "metrics": METRIC_NAMES}
SECTIONS = [f.name for f in dataclasses.fields(Config)]


def check_file(name: str) -> dict[str, Any]:
    """Reads a configuration file and checks its keys and values.

    Raises:
        UserError: for the first invalid one, naming the file.
    """
    tree = _read(name)
    check_tree(tree, f"{name}: ")
    return tree


def check_tree(tree: dict[str, Any], prefix: str = "") -> None:
    """Checks the keys and values of a configuration.

    Raises:
        UserError: for the first invalid one; its key follows `prefix`.
    """
    _check(tree, Config, prefix)


def read_files(arguments: list[str]) -> dict[str, dict[str, Any]]:
    """The content of the configuration files of a command line; see `several_labels.expand`.

    Raises:
        UserError: for a file that cannot be read.
    """
    words = split_words(arguments)
    return {value: _read(value) for option, value in pairwise([*words, ""]) if option == "--config"}


def check_words(arguments: list[str], files: Mapping[str, dict[str, Any]]) -> None:
    """Checks the configuration files and options of a command line in order.

    Args:
        arguments: as `several_labels.expand_words` gives them.
        files: content of the files.

    Raises:
        UserError: for the first invalid key or value, naming the file or the option.
    """
    words = split_words(arguments)
    options = [(word, value) for word, value in pairwise([*words, ""]) if word.startswith("-")]
    for name, tree in files.items():
        check_tree(tree, f"{name}: ")
    with_tasks = [name for name, tree in files.items() if tree.get("tasks")]
    for name in with_tasks[1:]:
        note(f"the tasks of {name} ({', '.join(files[name]['tasks'])}) replace those of {with_tasks[0]}")
    tasks = list(files[with_tasks[-1]]["tasks"]) if with_tasks else []
    for option, value in options:
        section, *path = option.removeprefix("--").split(".")
        if section in SECTIONS and path[-1:] == ["help"]:
            continue
        if section in SECTIONS:
            if section == "tasks" and path and path[0] not in tasks:
                raise UserError(f"--tasks.{path[0]}: there is no such task{hint(path[0], tasks, 'tasks')}")
            branch: Any = value
            with suppress(yaml.YAMLError):
                branch = yaml.safe_load(value)
            for part in reversed([section, *path]):
                branch = {part: branch}
            _check(branch, Config, "--")
        elif option.startswith("--") and option not in ("--config", *FLAGS):
            known = [f"--{name}" for name in SECTIONS] + ["--config", *FLAGS, *MODE_FLAGS]
            elsewhere = _option_elsewhere(section)
            raise UserError(f"{option}: unknown option{elsewhere or hint(f'--{section}', known, 'options')}")


def merge_mappings(arguments: list[str], files: Sequence[str]) -> list[str]:
    """Command-line arguments in which options for a key of a mapping, which `jsonargparse` does not take, are merged
    with the mapping in the files: `--tasks.rte.data_files.train FILE`, `--mixture.weights.rte 2`.

    Args:
        arguments: checked command-line arguments.
        files: the configuration files among them.
    """
    words = split_words(arguments)
    kept, mappings, skip = [], dict[str, dict[str, Any]](), False
    for word, value in pairwise([*words, ""]):
        found = re.fullmatch(r"--(tasks\.[^.]+\.(?:data_files|class_weights)|mixture\.weights)\.(.+)", word)
        if found:
            mappings.setdefault(found[1], {})[found[2]] = yaml.safe_load(value)
        if not found and not skip:
            kept.append(word)
        skip = bool(found)
    for key, values in mappings.items():
        there: Any = {}
        for name in files:
            branch: Any = _read(name)
            for part in key.split("."):
                branch = (branch or {}).get(part)
            there = branch or there
        kept += [f"--{key}", json.dumps({**there, **values} if isinstance(there, dict) else values)]
    return kept if mappings else arguments


# What `transformers.TrainingArguments` has and is done otherwise here.
ELSEWHERE = {
    "fp16": "accelerate launch --mixed_precision fp16",
    "bf16": "accelerate launch --mixed_precision bf16",
    "per_device_train_batch_size": "--training.batch_size, which counts the examples of all devices",
    "gradient_accumulation_steps": "--training.max_tokens_per_pass, from which the number of passes follows",
}


def _option_elsewhere(name: str) -> str:
    """The end of an error about an option that is a key of a section, or is called otherwise; empty for others."""
    kinds = get_type_hints(Config)
    of_sections = {section: get_args(kind)[0] if get_args(kind) else kind for section, kind in kinds.items()}
    found = [
        f"'--{section}.{name}'"
        for section, kind in of_sections.items()
        if dataclasses.is_dataclass(kind) and name in {f.name for f in dataclasses.fields(kind)}
    ]
    found += [f"'--tasks.NAME.{name}'"] if name in {f.name for f in dataclasses.fields(TaskConfig)} else []
    meant = " or ".join(found) or ELSEWHERE.get(name, "")
    return f"; did you mean {meant}?" if meant else ""


def check_complete(files: Sequence[str]) -> None:
    """Names the missing key, after parsing failed for lack of one.

    Raises:
        UserError: if there is no file, or for the first missing key of one.
    """
    if not files:
        raise UserError("--config is missing; for example --config configs/quickstart.yaml")
    for name in files:
        _check(_read(name), Config, f"{name}: ", complete=True)


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        what = f"'{name}' is a folder" if name and path.is_dir() else f"there is no file '{name}'"
        folder = path if name and path.is_dir() else path.parent
        raise UserError(f"--config: {what}{hint(path.name, (p.name for p in folder.glob('*.y*ml')), f'in {folder}')}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: not valid YAML: {error}") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{name}: not a mapping of the sections {', '.join(SECTIONS)}")
    return expand(tree, f"{name}: ")


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys, of which PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        for twice in (key for i, key in enumerate(keys) if key in keys[:i]):
            raise yaml.constructor.ConstructorError(None, None, f"key '{twice}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _check(value: Any, kind: Any, name: str, complete: bool = False) -> None:
    """Checks a tree recursively against the dataclasses; with `complete`, also for missing required keys."""
    prefix = name if not name or name.endswith((" ", "--")) else f"{name}."
    if get_origin(kind) is UnionType and dataclasses.is_dataclass(get_args(kind)[0]):  # a section that may be null
        if value is None:
            return
        kind = get_args(kind)[0]
    if dataclasses.is_dataclass(kind):
        kinds = get_type_hints(kind)
        required = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
        if not isinstance(value, dict):
            raise UserError(f"{name}: found {value!r}, expected keys{hint(value, kinds, 'of these')}")
        for key, child in value.items():
            if key not in kinds:
                raise UserError(f"{prefix}{key}: unknown key{hint(key, kinds)}")
            if child is None and key in required:
                continue  # said where the keys are complete
            _check(child, kinds[key], f"{prefix}{key}", complete)
            valid = NAMES_OF_TASKS.get(key) if kind is TaskConfig else None
            for item in child if isinstance(child, list) else [child] if child is not None else []:
                if valid is not None and item not in valid:
                    raise UserError(f"{prefix}{key}: unknown value '{item}'{hint(item, valid)}")
        for key in sorted(required) if complete else ():
            if value.get(key) is None:
                raise UserError(f"{prefix}{key}: missing")
    elif get_origin(kind) is dict and dataclasses.is_dataclass(get_args(kind)[1]) and isinstance(value, dict):
        for key, child in value.items():
            _check(child, get_args(kind)[1], f"{prefix}{key}", complete)
    else:
        _check_value(value, kind, name)


def _check_value(value: Any, kind: Any, name: str) -> None:
    if value is None and name.endswith(("tracking.report_to", ".metrics")):
        return  # as an empty list
    if value is None and NoneType not in get_args(kind):
        raise UserError(f"{name}: null has no meaning here; leave it out for the default")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        parser.parse_object({"value": value})
    except ArgumentError as error:
        names = get_args(get_args(kind)[0] if get_origin(kind) is list else kind)
        for item in value if isinstance(value, list) else [value]:
            if names and all(isinstance(option, str) for option in names) and item not in names:
                raise UserError(f"{name}: unknown value '{item}'{hint(item, names)}") from error
        expected = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
        expected = expected.replace("NoneType", "null").replace("None", "null")
        raise UserError(f"{name}: found {value!r}, expected {expected}") from error
