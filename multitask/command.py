"""The command line: one YAML file, and an override for every key.

`jsonargparse` reads the file, applies `--section.key value` and writes `--help` from the docstrings of `config.py`.
What it refuses is explained here: `_first_mistake` finds the key at fault and the nearest valid name.
"""

import dataclasses
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from .config import Config, check_config
from .errors import UserError, hint

FLAGS = ("--dry_run", "--debug", "--help", "-h", "--print_config")


@dataclass(frozen=True)
class Command:
    """What the command line asked for beside the configuration.

    Args:
        config: The resolved configuration.
        dry_run: Print what would be trained and exit.
        debug: Show tracebacks.
    """

    config: Config
    dry_run: bool
    debug: bool


def read_command(arguments: list[str], description: str | None = None) -> Command:
    """Reads the YAML file and the overrides of a command line.

    Args:
        arguments: The words after the program's name.
        description: The first paragraph of `--help`.

    Returns:
        The resolved, checked configuration with the flags.

    Raises:
        UserError: for a key, a value or a file that cannot be right.
        SystemExit: after `--help` and `--print_config`.
    """
    for option, value in pairwise(" ".join(arguments).replace("--config=", "--config ").split()):
        if option == "--config" and (mistake := _mistake_in_file(value)):
            raise UserError(mistake)
    parser = ArgumentParser(prog="run_multitask.py", description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--config", action=ActionConfigFile, help="The mixture's YAML file; later options override it."
    )
    parser.add_argument("--dry_run", action="store_true", help="Print what would be trained and exit.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of a mistake in the input.")
    parser.add_class_arguments(Config)
    try:
        parsed = parser.instantiate(parser.parse_args(arguments))
    except ArgumentError as error:
        raise UserError(_first_mistake(arguments) or str(error)) from error
    config = Config(**{f.name: parsed[f.name] for f in dataclasses.fields(Config)})
    config = dataclasses.replace(
        config,
        data_root=config.data_root or os.environ.get("MULTITASK_DATA_ROOT") or None,
        model_root=config.model_root or os.environ.get("MULTITASK_MODEL_ROOT") or None,
    )
    check_config(config)
    return Command(config, dry_run=parsed["dry_run"], debug=parsed["debug"])


def _first_mistake(arguments: list[str]) -> str | None:
    """Finds the first unknown key or impossible value in the file and on the command line, and explains it."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if "--config" not in words:
        return "--config is missing; for example --config configs/quickstart.yaml"
    sections = [f.name for f in dataclasses.fields(Config)]
    for option, value in pairwise([*words, ""]):
        section, *path = option.removeprefix("--").split(".")
        mistake = None
        if option == "--config":
            mistake = _mistake_in_file(value)
        elif option.startswith("--") and section in sections and path[-1:] != ["help"]:
            tree: Any = yaml.safe_load(value)
            for part in reversed([section, *path]):
                tree = {part: tree}
            mistake = _mistake(tree, Config, "--")
        elif option.startswith("--") and option not in FLAGS:
            options = [f"--{name}" for name in sections] + ["--config", *FLAGS]
            mistake = f"{option}: unknown option{hint(f'--{section}', options, 'options')}"
        if mistake:
            return mistake
    return None


def _mistake_in_file(name: str) -> str | None:
    path = Path(name)
    if not path.is_file():
        near = hint(path.name, (p.name for p in path.parent.glob("*.y*ml")), f"in {path.parent}")
        return f"--config: there is no file '{name}'{near}"
    try:
        tree = yaml.load(path.read_text(), UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"{name}: not valid YAML: {error}"
    if not isinstance(tree, dict):
        return f"{name}: not a mapping of the sections {', '.join(f.name for f in dataclasses.fields(Config))}"
    return _mistake(tree, Config, f"{name}: ", complete=True)


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML and refuses a key that stands twice, of which YAML otherwise keeps the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for twice in (key for i, key in enumerate(keys) if key in keys[:i]):
            raise yaml.constructor.ConstructorError(None, None, f"key '{twice}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _mistake(value: Any, kind: Any, name: str, complete: bool = False) -> str | None:
    """The first key in `value` that a `kind` does not have, has otherwise, or (with `complete`) needs and lacks."""
    if isinstance(value, dict) and dataclasses.is_dataclass(kind):
        kinds = get_type_hints(kind)
    elif isinstance(value, dict) and get_origin(kind) is dict and dataclasses.is_dataclass(get_args(kind)[1]):
        kinds = dict.fromkeys(value, get_args(kind)[1])
    else:
        return _wrong_value(value, kind, name)
    prefix = name if not name or name.endswith((" ", "--")) else f"{name}."
    for key, child in value.items():
        if key not in kinds:
            return f"{prefix}{key}: unknown key{hint(key, kinds)}"
        if mistake := _mistake(child, kinds[key], f"{prefix}{key}", complete):
            return mistake
    for f in dataclasses.fields(kind) if complete and dataclasses.is_dataclass(kind) else ():
        if f.default is f.default_factory is dataclasses.MISSING and value.get(f.name) is None:
            return f"{prefix}{f.name}: missing"
    return None


def _wrong_value(value: Any, kind: Any, name: str) -> str | None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        parser.parse_object({"value": value})
    except ArgumentError:
        names = get_args(get_args(kind)[0] if get_origin(kind) is list else kind)
        for item in value if isinstance(value, list) else [value]:
            if names and all(isinstance(option, str) for option in names) and item not in names:
                return f"{name}: unknown value '{item}'{hint(item, names)}"
        expected = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
        return f"{name}: found {value!r}, expected {expected.replace('NoneType', 'null').replace('None', 'null')}"
    return None
