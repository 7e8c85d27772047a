"""`python -m multitask.checkpoint`: lists, verifies and fetches checkpoints."""

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..checkpoints import remote as gcs
from ..checkpoints.manifest import NAME, checkpoints_in, read_manifest, step_name, verify
from ..errors import UserError, first_line, mistakes_in_one_line
from ..training.state import SavedState
from ..utils import split_url
from .console import format_table

ONE = r"(.+)/step-(\d{8,})"  # the URL of one checkpoint


COMMANDS = {
    "list": "show the checkpoints of a run: step, files, bytes, the average of its evaluation",
    "verify": "compare every file with the manifest (in a bucket, its checksum on the server); status 1 for damage",
    "fetch": "copy a checkpoint, or the newest of a run, into a folder, and check it",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit status: 1 if a checkpoint is damaged.
    """
    parser = argparse.ArgumentParser(prog="python -m multitask.checkpoint", description="Looks after checkpoints.")
    commands = parser.add_subparsers(dest="command", metavar="list|verify|fetch", required=True)
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.add_argument("location", metavar="LOCATION", help="a run or a checkpoint: a folder, or gs://BUCKET/…")
    command.add_argument("--output", type=Path, metavar="FOLDER", help="the new folder; by default ./step-…")
    options = parser.parse_args(arguments)
    with mistakes_in_one_line():
        found = find(options.location)
        if options.command == "list":
            print(format_table([("checkpoint", "", "files", "bytes", "average"), *map(_line, found)]))
        elif options.command == "verify":
            damaged = [location for location in found if not _is_whole(location)]
            return 1 if damaged else 0
        else:
            print(f"{found[0]} is whole in {fetch(found[0], options.output)}")
    return 0


def find(location: str) -> list[str]:
    """The checkpoints at a location, newest first.

    Args:
        location: folder or gs:// URL of a checkpoint or a run.

    Raises:
        UserError: if there is none.
    """
    if location.startswith("gs://"):
        split_url(location)
        location = location.rstrip("/")
        if re.fullmatch(ONE, location):
            found = [location]
        else:
            found = [f"{location}/{step_name(step)}" for step in reversed(gcs.list_checkpoints(location))]
    elif (Path(location) / NAME).is_file():
        found = [location]
    else:
        found = [str(path) for path in checkpoints_in(Path(location))]
    if not found:
        raise UserError(f"there is no whole checkpoint in {location}")
    return found


def fetch(location: str, output: Path | None = None) -> Path:
    """Copies a checkpoint and verifies the copy.

    Args:
        location: checkpoint, as returned by `find`.
        output: the new folder; None uses the checkpoint's name in the working directory.

    Raises:
        UserError: if the folder exists or cannot be written, or the checkpoint is damaged.
    """
    output = output or Path(Path(location).name)
    if output.exists():
        raise UserError(f"--output: {output} is there already; give another folder")
    partial = output.with_name(output.name + ".partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if location.startswith("gs://"):
            gcs.download_checkpoint(*_split(location), output)
        else:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(location, partial)
            verify(partial)
            partial.rename(output)
    except ValueError as damage:
        raise UserError(f"{location} is damaged: {damage}") from damage
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # an error leaves nothing behind
    return output


def _line(location: str) -> tuple[str, ...]:
    try:
        with TemporaryDirectory() as folder:
            if location.startswith("gs://"):
                path = Path(folder) / "checkpoint"
                gcs.download_checkpoint(*_split(location), path, ["state.json"])
            else:
                path = Path(location)
            files, average = read_manifest(path)["files"], SavedState.read(path).average
    except ValueError as damage:
        return location, f"damaged: {first_line(damage)}", "", "", ""
    return location, "", f"{len(files)}", f"{_bytes(files):,}", "-" if average is None else f"{average:.4f}"


def _is_whole(location: str) -> bool:
    try:
        if location.startswith("gs://"):
            files = gcs.verify_checkpoint(*_split(location))
        else:
            verify(Path(location))
            files = read_manifest(Path(location))["files"]
    except ValueError as damage:
        print(f"{location}: damaged: {damage}")
        return False
    print(f"{location}: whole, {len(files)} files, {_bytes(files):,} bytes")
    return True


def _bytes(files: dict[str, dict[str, Any]]) -> int:
    return sum(file["size"] for file in files.values())


def _split(url: str) -> tuple[str, int]:
    """The parent URL and the step of a checkpoint."""
    match = re.fullmatch(ONE, url)
    assert match
    return match[1], int(match[2])
