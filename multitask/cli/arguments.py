"""The command line: one YAML file, and an override for every key.

`jsonargparse` reads the file, applies `--section.key value` and writes `--help` from the docstrings of the dataclasses
in `config/schema.py`.
"""

import argparse
import dataclasses
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..checkpoints.format import find_checkpoint
from ..config.load import config_parser, parse_config
from ..config.schema import Config
from ..errors import UserError, hint
from ..model.hub import check_hub
from ..tracking.trackers import check_trackers

Mode = Literal["train", "evaluate", "predict", "export"]


FLAGS_OF_MODES = {
    "--dry_run": ("train",),
    "--only": ("train",),
    "--seeds": ("train",),
    "--checkpoint": ("evaluate", "predict", "export"),
    "--tasks": ("evaluate", "predict", "export"),
    "--input": ("predict",),
    "--output": ("evaluate", "predict", "export"),
    "--skip_bad_rows": ("predict",),
    "--push_to_hub": ("train", "export"),
}


@dataclass(frozen=True)
class Command:
    """The parsed command line.

    Args:
        config: The resolved configuration.
        line: The command as typed.
        mode: What to do.
        dry_run: Print what would be trained and exit.
        checkpoint: Folder of the checkpoint to evaluate, predict with or export.
        tasks: Names of the tasks to evaluate, predict or export.
        input: File of rows to predict.
        output: File of the predictions or of the evaluation's numbers, or folder of the export.
        skip_bad_rows: Leave out rows that cannot be predicted.
        seeds: Train with each of these seeds, one after the other; empty for one run.
        push_to_hub: Upload each task's exported model to this repository's name with `-TASK` behind it.
    """

    config: Config
    line: str
    mode: Mode = "train"
    dry_run: bool = False
    checkpoint: Path | None = None
    tasks: tuple[str, ...] = ()
    input: str | None = None
    output: str | None = None
    skip_bad_rows: bool = False
    seeds: tuple[int, ...] = ()
    push_to_hub: str | None = None


def read_command(arguments: list[str], description: str | None = None) -> Command:
    """Parses the YAML file and the overrides of a command line.

    All modes except `train` start from the checkpoint's configuration, which other files and options override.

    Args:
        arguments: Command-line arguments without the program name.
        description: The first paragraph of `--help`.

    Returns:
        The resolved and validated configuration with the flags.

    Raises:
        UserError: for an invalid key, value, file or flag.
        SystemExit: after `--help` and `--print_config`.
    """
    flags, rest = _read_flags(arguments)
    checkpoint = None
    if flags.mode != "train" and not {"-h", "--help"} & set(rest):
        has_config = any(word.partition("=")[0] == "--config" for word in rest)
        if flags.checkpoint is None and not has_config:
            raise UserError(f"--checkpoint is missing; --mode {flags.mode} needs one, as --checkpoint runs/quickstart")
        checkpoint = find_checkpoint(flags.checkpoint or _read_config(rest, description).training.output_dir)
        rest = ["--config", str(checkpoint / "config.yaml"), *rest]
    config = _read_config(rest, description)
    if flags.mode == "train":
        check_trackers(config.tracking.report_to)
    tasks = _names("--tasks", flags.tasks, config)
    if only := _names("--only", flags.only, config):
        streams = [config.tasks[name].rows or name for name in only]
        weights = config.mixture.weights and {name: config.mixture.weights[name] for name in streams}
        config = dataclasses.replace(
            config,
            tasks={name: task for name, task in config.tasks.items() if name in only},
            mixture=dataclasses.replace(config.mixture, weights=weights),
        )
    if flags.push_to_hub:
        if flags.seeds:
            raise UserError("--push_to_hub: has no effect with --seeds; export the chosen run with --mode export")
        check_hub(flags.push_to_hub, tasks or config.tasks)
    return Command(
        config=config,
        line=shlex.join(["run_multitask.py", *arguments]),
        mode=flags.mode,
        dry_run="--dry_run" in rest,
        checkpoint=checkpoint,
        tasks=tuple(tasks or config.tasks),
        input=flags.input,
        output=flags.output,
        skip_bad_rows=flags.skip_bad_rows,
        seeds=_seeds(flags.seeds),
        push_to_hub=flags.push_to_hub,
    )


def _seeds(text: str | None) -> tuple[int, ...]:
    words = [word.strip() for word in (text or "").split(",")]
    if text is not None and (not all(word.isdecimal() for word in words) or len({*map(int, words)}) < len(words)):
        raise UserError(f"--seeds: '{text}' is no list of different numbers; for example --seeds 0,1,2")
    return tuple(map(int, words)) if text is not None else ()


def _names(flag: str, text: str | None, config: Config) -> list[str]:
    """Names of tasks with commas between them; none, if the flag is not given."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if text is not None and not names:
        raise UserError(f"{flag}: names no task{hint('', config.tasks, 'tasks')}")
    for name in names:
        if name not in config.tasks:
            raise UserError(f"{flag}: there is no task '{name}'{hint(name, config.tasks, 'tasks')}")
    return names


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", default="train", help=f"What to do: {', '.join(get_args(Mode))}.")
    parser.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        help="A checkpoint, or a run of which to take the newest, to evaluate, predict with or export. With it, "
        "--tasks NAME,NAME takes some of its tasks.",
    )
    parser.add_argument(
        "--only", metavar="NAME,NAME", help="Train these tasks of the file alone, as a single-task baseline does."
    )
    parser.add_argument(
        "--seeds",
        metavar="N,N",
        help="Train with each of these seeds, one after the other, in training.output_dir/seed-N; ends with a table "
        "of means and deviations.",
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="Rows to predict: .jsonl, .csv or .parquet, here or at gs://BUCKET/OBJECT; - reads JSON Lines from "
        "stdin.",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="Where predictions (.jsonl, .csv or .parquet; - prints JSON Lines), the numbers of an evaluation (JSON), "
        "or the exported folders go.",
    )
    parser.add_argument(
        "--push_to_hub",
        metavar="ORG/NAME",
        help="Upload each task's exported model with its card to the Hugging Face hub, as ORG/NAME-TASK.",
    )
    parser.add_argument("--skip_bad_rows", action="store_true", help="Leave out rows that cannot be predicted.")


def _read_flags(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Splits the arguments into the flags outside the configuration and the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_flags(parser)
    try:
        mode = parser.parse_known_args(arguments)[0].mode
        if mode not in get_args(Mode):
            raise UserError(f"--mode: unknown value '{mode}'{hint(mode, get_args(Mode))}")
        if mode != "train":  # in train mode, it is a section of the configuration
            parser.add_argument("--tasks")
        flags, rest = parser.parse_known_args(arguments, argparse.Namespace(tasks=None))
    except argparse.ArgumentError as error:
        raise UserError(str(error).removeprefix("argument ")) from error
    for name in ("checkpoint", "input", "output"):
        setattr(flags, name, getattr(flags, name) and os.path.expanduser(getattr(flags, name)))
    for flag, modes in FLAGS_OF_MODES.items():
        given = flag in rest if flag == "--dry_run" else getattr(flags, flag[2:])
        if given and mode not in modes:
            raise UserError(f"{flag}: has no effect with --mode {mode}; it belongs to {', '.join(modes)}")
    for flag in ("--input", "--output") if mode == "predict" else ():
        if not getattr(flags, flag[2:]):
            raise UserError(f"{flag} is missing; --mode predict reads rows from a file and writes to another")
    return flags, rest


def _read_config(arguments: list[str], description: str | None) -> Config:
    parser = config_parser(description)
    _add_flags(parser)
    parser.add_argument("--dry_run", action="store_true", help="Print what would be trained and exit.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of a mistake in the input.")
    return parse_config(parser, arguments)
