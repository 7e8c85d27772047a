"""Builds a validated `Config` from YAML files and command-line options with `jsonargparse`."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from ..errors import UserError
from .schema import Config
from .suggest import check_complete, check_file, check_tree, check_words
from .validate import check_config


def config_parser(description: str | None = None) -> ArgumentParser:
    """Parser with the option `--config FILE`; the caller adds the options of `Config`."""
    parser = ArgumentParser(prog="run_multitask.py", description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--config", action=ActionConfigFile, help="The mixture's YAML file; later options override it."
    )
    return parser


def load_config(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Loads one YAML file.

    Args:
        path: the YAML file.
        overrides: values by dotted key, `{"training.max_steps": 50}`.

    Raises:
        UserError: for an invalid key or value, naming the file.
    """
    parser = config_parser()
    parser.add_class_arguments(Config)
    tree = check_file(str(path))
    for key, value in (overrides or {}).items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    check_tree(tree, f"{path}: " if not overrides else "")
    try:
        return resolve(parser, parser.parse_object(tree))
    except ArgumentError as error:
        check_complete([str(path)])
        raise UserError(f"{path}: {error}") from error


def parse_config(parser: ArgumentParser, arguments: list[str]) -> Config:
    """Parses the configuration files and options of a command line.

    Args:
        parser: from `config_parser`; may have further flags.
        arguments: command-line arguments without the program name.

    Raises:
        UserError: for an invalid key, value or file.
        SystemExit: after `--help` and `--print_config`.
    """
    files = check_words(arguments)
    parser.add_class_arguments(Config)
    try:
        return resolve(parser, parser.parse_args(arguments))
    except ArgumentError as error:
        check_complete(files)
        raise UserError(str(error)) from error


def resolve(parser: ArgumentParser, parsed: Any) -> Config:
    """Instantiates the dataclasses, fills in environment variables, and validates the result."""
    values = parser.instantiate(parsed)
    config = Config(**{f.name: values[f.name] for f in dataclasses.fields(Config)})
    config = dataclasses.replace(
        config,
        data_root=config.data_root or os.environ.get("MULTITASK_DATA_ROOT") or None,
        model_root=config.model_root or os.environ.get("MULTITASK_MODEL_ROOT") or None,
    )
    check_config(config)
    return config
