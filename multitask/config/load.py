"""Builds a validated `Config` from YAML files and command-line options with `jsonargparse`."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import SUPPRESS, ActionConfigFile, ArgumentError, ArgumentParser

from ..errors import UserError, hint
from ..utils import flatten
from .schema import Config
from .several_labels import expand_words
from .suggest import check_complete, check_file, check_tree, check_words, merge_mappings, read_files
from .validate import check_config


def config_parser(description: str | None = None) -> ArgumentParser:
    """Parser with the option `--config FILE`; the caller adds the options of `Config`."""
    parser = ArgumentParser(prog="run_multitask.py", description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="The mixture's YAML file; may be given several times. Later files and options override earlier ones.",
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
    named = [
        (word[2:], value)
        for key, value in (overrides or {}).items()
        for word in expand_words([f"--{key}", ""], {str(path): tree})[::2]
    ]
    for key, value in named:
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    check_tree(tree, f"{path}: " if not overrides else "")
    try:
        return resolve(parser, parser.parse_object(tree), [str(path)])
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
    trees = read_files(arguments)
    files, arguments = list(trees), expand_words(arguments, trees)
    check_words(arguments, trees)
    parser.add_class_arguments(Config)
    sections = {f.name for f in dataclasses.fields(Config)}
    for action in parser._actions:  # `--training FILE` is refused, as a section has no file of its own
        if action.dest in sections and action.help == "Path to a configuration file.":
            action.help = SUPPRESS
    try:
        return resolve(parser, parser.parse_args(merge_mappings(arguments, files)), files)
    except ArgumentError as error:
        check_complete(files)
        raise UserError(str(error)) from error


def resolve(parser: ArgumentParser, parsed: Any, files: Sequence[str]) -> Config:
    """Instantiates the dataclasses, fills in environment variables and placeholders, and validates the result."""
    values = parser.instantiate(parsed)
    config = Config(**{f.name: values[f.name] for f in dataclasses.fields(Config)})
    config = dataclasses.replace(
        config,
        data_root=config.data_root or os.environ.get("MULTITASK_DATA_ROOT") or None,
        model_root=config.model_root or os.environ.get("MULTITASK_MODEL_ROOT") or None,
    )
    config = expand_home(without_null_lists(config))
    config = fill_placeholders(config, "-".join(Path(name).stem for name in files))
    check_config(config)
    return config


def without_null_lists(config: Config) -> Config:
    """Empty lists where a file says null: no trackers, the default metrics."""
    tasks = {name: dataclasses.replace(task, metrics=task.metrics or []) for name, task in config.tasks.items()}
    tracking = dataclasses.replace(config.tracking, report_to=config.tracking.report_to or [])
    return dataclasses.replace(config, tasks=tasks, tracking=tracking)


def expand_home(config: Config) -> Config:
    """Replaces `~` at the start of every path with the home folder."""

    def expanded(of: Any, *names: str) -> Any:
        values = {name: os.path.expanduser(value) for name in names if isinstance(value := getattr(of, name), str)}
        return dataclasses.replace(of, **values)

    return dataclasses.replace(
        expanded(config, "data_root", "model_root"),
        model=expanded(config.model, "encoder"),
        training=expanded(config.training, "output_dir", "init_from_checkpoint", "resume_from_checkpoint"),
        tasks={name: expanded(task, "dataset", "adapter", "teacher") for name, task in config.tasks.items()},
    )


def fill_placeholders(config: Config, name: str) -> Config:
    """Replaces `{config}` and `{section.key}` in `training.output_dir` and `checkpoints.remote`.

    Args:
        config: the configuration that the values are taken from.
        name: what `{config}` stands for.

    Raises:
        UserError: for a placeholder that is no key.
    """
    places = {"training.output_dir": config.training.output_dir, "checkpoints.remote": config.checkpoints.remote}
    values = flatten(dataclasses.asdict(config)) | {"config": name}
    known = [key for key in values if key not in places]

    def filled(key: str) -> Any:
        def value(match: re.Match) -> str:
            if match[1] not in known:
                raise UserError(f"{key}: {{{match[1]}}} is no key of the configuration{hint(match[1], known, 'keys')}")
            found = "null" if values[match[1]] is None else str(values[match[1]])
            return re.sub(r"[^\w.+-]+", "-", found).strip("-")  # a part of a name, not a path

        return places[key] and re.sub(r"\{([^{}]*)\}", value, str(places[key]))

    return dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, output_dir=filled("training.output_dir")),
        checkpoints=dataclasses.replace(config.checkpoints, remote=filled("checkpoints.remote")),
    )
