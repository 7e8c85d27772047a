"""What a checkpoint must hold to be whole: every file with its size and checksum."""

import base64
import json
from pathlib import Path, PurePosixPath
from typing import Any

import google_crc32c

NAME = "manifest.json"


def write_manifest(folder: Path, **fields: Any) -> None:
    """Lists every file of a folder in its `manifest.json`, beside the fields given.

    Checksums are CRC32C, as Google Cloud Storage gives them: base64 of the four bytes, the highest first
    (https://cloud.google.com/storage/docs/data-validation).
    """
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "crc32c": crc32c(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != NAME
    }
    (folder / NAME).write_text(json.dumps({**fields, "files": files}, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        ValueError: if there is none, it cannot be read, or it names a file outside of the folder.
    """
    try:
        manifest = json.loads((folder / NAME).read_text())
        names = list(manifest["files"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{NAME} cannot be read: {error}") from error
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
            raise ValueError(f"{NAME} names {name!r}, which is outside of the folder")
    return manifest


def verify(folder: Path) -> None:
    """Compares every file of a folder with its manifest.

    Raises:
        ValueError: naming the first file that is missing, of another size, or damaged.
    """
    for name, expected in read_manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != expected["size"]:
            raise ValueError(f"{name} has {path.stat().st_size:,} bytes, not {expected['size']:,}")
        if crc32c(path) != expected["crc32c"]:
            raise ValueError(f"{name} is not what was written: its CRC32C is {crc32c(path)}, not {expected['crc32c']}")


def crc32c(path: Path) -> str:
    """The checksum of a file, read in pieces of a megabyte."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        for _ in checksum.consume(file, 1 << 20):
            pass
    return base64.b64encode(checksum.digest()).decode()
