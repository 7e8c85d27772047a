"""The command line: one YAML file, and an override for every key.

`jsonargparse` reads the file, applies `--section.key value` and writes `--help` from the docstrings of `config.py`.
"""

import dataclasses
import os
from dataclasses import dataclass

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from .checks import check_config
from .config import Config
from .errors import UserError
from .mistakes import check_complete, check_words


@dataclass(frozen=True)
class Command:
    """What the command line asks for.

    Args:
        config: The resolved configuration.
        dry_run: Print what would be trained and exit.
    """

    config: Config
    dry_run: bool


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
    check_words(arguments)
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
        check_complete(arguments)
        raise UserError(str(error)) from error
    config = Config(**{f.name: parsed[f.name] for f in dataclasses.fields(Config)})
    config = dataclasses.replace(
        config,
        data_root=config.data_root or os.environ.get("MULTITASK_DATA_ROOT") or None,
        model_root=config.model_root or os.environ.get("MULTITASK_MODEL_ROOT") or None,
    )
    check_config(config)
    return Command(config, dry_run=parsed["dry_run"])
