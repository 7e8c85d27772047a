"""Helpers that do not depend on tasks, models or runs."""

import hashlib
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys: `{"training": {"seed": 0}}` -> `{"training.seed": 0}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def as_yaml(value: Any) -> str:
    """A value in one line as it would be written in a configuration file: null, true, [a, b]."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def stable_seed(*parts: object) -> int:
    """One integer from several values, the same in every process and Python version."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def write_atomically(path: Path, text: str) -> None:
    """Replaces a text file atomically; the encoding is UTF-8 whatever the locale."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which becomes `path` when it is complete; several processes may do so at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def match_modes(folder: Path, like: Path) -> None:
    """Gives the files of a folder the mode of one that was written the usual way, which follows the umask.

    safetensors writes files that only their owner can read.
    """
    mode = like.stat().st_mode & 0o777
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def split_url(url: str) -> tuple[str, str]:
    """Splits a URL into its bucket and its object prefix, which is empty or ends in a slash.

    Raises:
        UserError: if it is not gs://BUCKET or gs://BUCKET/PREFIX.
    """
    # https://cloud.google.com/storage/docs/buckets#naming
    match = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*))?", url)
    if not match:
        raise UserError(f"'{url}' is not the URL of a place in Google Cloud Storage; write gs://BUCKET/PREFIX")
    prefix = (match[2] or "").strip("/")
    return match[1], prefix and prefix + "/"
