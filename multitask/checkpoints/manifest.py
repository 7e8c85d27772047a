"""Manifest of a checkpoint: its files with sizes and checksums. A folder without one is not a checkpoint."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import google_crc32c

NAME = "manifest.json"


_CHUNK_BYTES = 1 << 20


def crc32c_of(path: Path) -> str:
    """Checksum of a file in the format of Google Cloud Storage: base64 of the CRC32C in big-endian byte order.

    https://cloud.google.com/storage/docs/json_api/v1/objects#resource
    """
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        for _ in checksum.consume(file, _CHUNK_BYTES):
            pass
    return base64.b64encode(checksum.digest()).decode()


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """`size` in bytes and `crc32c` of every file in a folder except its manifest, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "crc32c": crc32c_of(path)} for path in paths
    }


def write_manifest(folder: Path, **fields: Any) -> None:
    """Writes `manifest.json`: `fields`, `files` as in `describe`, and the checksum of the manifest itself.

    Flushes neither the manifest nor the files to disk.

    Args:
        folder: checkpoint folder with all its other files.
        fields: further entries, serialisable as JSON: `step`, `config_digest`, `versions`.
    """
    (folder / NAME).write_bytes(_encode({**fields, "files": describe(folder)}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads and validates what `write_manifest` wrote.

    Raises:
        ValueError: if it is missing, damaged, or names a file outside the folder.
    """
    path = folder / NAME
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
        is_whole = content == _encode({key: value for key, value in manifest.items() if key != "crc32c"})
        files = dict(manifest["files"])
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not a manifest") from error
    if not is_whole:
        raise ValueError(f"{path} is damaged: its content does not have its checksum")
    for name in files:
        if PurePosixPath(name).as_posix() != name or name.startswith("/") or {"..", "."} & {*name.split("/")}:
            raise ValueError(f"{path} names the file {name!r}, which would leave the folder")
        if "\\" in name or "\0" in name or name == NAME:
            raise ValueError(f"{path} names the file {name!r}, which no checkpoint has")
    return manifest


def verify(folder: Path) -> None:
    """Compares every file of a checkpoint with its manifest.

    Raises:
        ValueError: naming the first file that is missing, of another size, or damaged.
    """
    for name, file in read_manifest(folder)["files"].items():
        verify_file(folder / name, file)


def verify_file(path: Path, file: Mapping[str, Any]) -> None:
    """Compares a file with its manifest entry.

    Raises:
        ValueError: if it is missing, of another size, or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    if path.stat().st_size != file["size"]:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, not {file['size']}")
    if (found := crc32c_of(path)) != file["crc32c"]:
        raise ValueError(f"{path} is damaged: its CRC32C is {found}, not {file['crc32c']}")


def step_name(step: int) -> str:
    """The name of a checkpoint: `step-00000500`."""
    return f"step-{step:08}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoint_at(folder: Path, step: int | None) -> Path | None:
    """Path of a run's checkpoint at a step; None if `step` is None."""
    return None if step is None else folder / "checkpoints" / step_name(step)


def checkpoints_in(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first; ignores names with a suffix, such as `.partial`."""
    found = (path.parent for path in (folder / "checkpoints").glob("step-*/manifest.json"))
    return sorted((path for path in found if not path.suffix), reverse=True)


def _encode(manifest: Mapping[str, Any]) -> bytes:
    content = json.dumps(manifest, indent=2)
    checksum = base64.b64encode(google_crc32c.Checksum(content.encode()).digest()).decode()
    return json.dumps({**manifest, "crc32c": checksum}, indent=2).encode() + b"\n"
