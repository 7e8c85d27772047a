"""Copies of checkpoints in Google Cloud Storage.

Each file of a checkpoint is an object `PREFIX/step-00000500/NAME`. The manifest is uploaded last and deleted first, so
a checkpoint with a manifest is complete; one without is ignored.
"""

import re
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from google.api_core.exceptions import GoogleAPIError, PreconditionFailed
from google.cloud import storage

from . import gcs as objects
from .gcs import clear_errors, delete_objects, fetch_file, in_parallel, list_objects, open_url, send_file
from .manifest import NAME, crc32c_of, describe, read_manifest, step_name, verify_file


def check_access(url: str) -> None:
    """Lists, creates, reads and deletes an object under the prefix to check the permissions that copying needs.

    Raises:
        UserError: naming the bucket, the project if known, and the missing permission; or saying that there are no
            credentials, no such bucket, or no connection to the server.
    """
    retry = objects.RETRY.with_timeout(30)
    with clear_errors(url, "storage.objects.list"):
        bucket, prefix = open_url(url)
        next(iter(bucket.client.list_blobs(bucket, prefix=prefix, max_results=1, retry=retry)), None)
    blob = bucket.blob(f"{prefix}access-{uuid.uuid4().hex}")
    with clear_errors(url, "storage.objects.create"):
        blob.upload_from_string(b"", retry=retry)
    with clear_errors(url, "storage.objects.get"):
        blob.download_as_bytes(retry=retry)
    with clear_errors(url, "storage.objects.delete"):
        bucket.delete_blobs([blob], on_error=lambda blob: None, retry=retry)


def upload_checkpoint(folder: Path, url: str) -> None:
    """Uploads a checkpoint. Objects that exist with the right checksum are not sent again.

    Args:
        folder: `step-00000500` with its manifest.
        url: parent URL of the checkpoints: the objects become `URL/step-00000500/NAME`.

    Raises:
        ValueError: if the local checkpoint is damaged.
        google.api_core.exceptions.GoogleAPIError: if the upload fails, or another process uploads a different
            checkpoint of this step to the same URL.
    """
    files = read_manifest(folder)["files"]
    crc32c = crc32c_of(folder / NAME)
    bucket, prefix = open_url(url)
    prefix += folder.name + "/"
    last = bucket.blob(prefix + NAME)
    if there := _crc32c_there(last):
        if there == crc32c:
            return
        delete_objects([last])  # it does not describe the files to be uploaded
    _upload(folder, files, bucket, prefix)
    try:
        send_file(folder / NAME, last, crc32c, if_generation_match=0)
    except PreconditionFailed:  # the library retries a successful upload if its response was lost
        if _crc32c_there(last) != crc32c:
            raise


def upload_folder(folder: Path, url: str) -> None:
    """Uploads the files of a folder that are missing or different at a URL.

    Raises:
        google.api_core.exceptions.GoogleAPIError: if an upload fails.
    """
    _upload(folder, describe(folder), *open_url(url))


def list_checkpoints(url: str) -> list[int]:
    """The steps with a complete checkpoint, in ascending order.

    Raises:
        UserError: if the objects cannot be listed.
    """
    return _whole(_checkpoints(url))


def download_checkpoint(url: str, step: int, folder: Path, only: Collection[str] | None = None) -> None:
    """Downloads a checkpoint into a folder, which is unchanged after an error.

    Args:
        url: parent URL of the checkpoints.
        step: step of the checkpoint.
        folder: replaced if it exists. Until all files are verified, they are in its sibling `NAME.partial`.
        only: names of the files to download besides the manifest; None downloads all.

    Raises:
        UserError: if there is none, or it cannot be read.
        ValueError: if it is damaged, or its manifest names files outside the folder.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with clear_errors(url, "storage.objects.get", f"it has no whole checkpoint of step {step}"):
            bucket, prefix = open_url(url)
            prefix += step_name(step) + "/"
            fetch_file(bucket.blob(prefix + NAME), partial / NAME, lambda: read_manifest(partial))
            manifest = read_manifest(partial)
            if manifest["step"] != step:
                raise ValueError(f"{url}/{step_name(step)}/{NAME} is that of step {manifest['step']}")

            def fetch(name: str) -> None:
                path, expected = partial / name, manifest["files"][name]
                fetch_file(bucket.blob(prefix + name), path, lambda: verify_file(path, expected))

            in_parallel(fetch, [name for name in manifest["files"] if only is None or name in only])
    except BaseException:  # including KeyboardInterrupt: a partial download is of no use
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def verify_checkpoint(url: str, step: int) -> dict[str, dict[str, Any]]:
    """Compares the objects of a checkpoint with its manifest, using the checksums that the server stores.

    Returns:
        The files in the manifest.

    Raises:
        UserError: if there is none, or it cannot be read.
        ValueError: naming the first object that is missing or damaged.
    """
    with TemporaryDirectory() as temporary:
        download_checkpoint(url, step, folder := Path(temporary) / "checkpoint", only=())
        files = read_manifest(folder)["files"]
    blobs = _checkpoints(url)[step]
    for name, file in files.items():
        if name not in blobs:
            raise ValueError(f"{name} is missing")
        if blobs[name].crc32c != file["crc32c"]:
            raise ValueError(f"the CRC32C of {name} is {blobs[name].crc32c}, not {file['crc32c']}")
    return files


def delete_checkpoint(url: str, step: int) -> None:
    """Deletes a checkpoint, complete or not, manifest first; does nothing if there is none."""
    _delete(_checkpoints(url).get(step, {}))


def prune(url: str, keep: Callable[[list[int]], set[int]]) -> None:
    """Deletes old checkpoints and the remains of unfinished uploads.

    Args:
        url: parent URL of the checkpoints.
        keep: given the steps with a complete checkpoint in ascending order, returns those to keep.
    """
    checkpoints = _checkpoints(url)
    whole = _whole(checkpoints)
    unended = {step for step in checkpoints.keys() - {*whole} if step < max(whole, default=0)}
    for step in unended | ({*whole} - keep(whole)):
        _delete(checkpoints[step])


def _checkpoints(url: str) -> dict[int, dict[str, storage.Blob]]:
    found: dict[int, dict[str, storage.Blob]] = {}
    with clear_errors(url, "storage.objects.list"):
        bucket, prefix = open_url(url)
        for blob in list_objects(bucket, prefix + "step-"):
            if match := re.fullmatch(r"step-(\d{8,})/(.+)", blob.name.removeprefix(prefix)):
                found.setdefault(int(match[1]), {})[match[2]] = blob
    return found


def _whole(checkpoints: Mapping[int, Mapping[str, storage.Blob]]) -> list[int]:
    return sorted(step for step, blobs in checkpoints.items() if NAME in blobs)


def _delete(blobs: Mapping[str, storage.Blob]) -> None:
    delete_objects([blobs[name] for name in sorted(blobs, key=lambda name: name != NAME)])


def _crc32c_there(blob: storage.Blob) -> str | None:
    found = blob.bucket.get_blob(blob.name, retry=objects.RETRY, timeout=objects.TIMEOUT_SECONDS)
    return found and found.crc32c


def _upload(folder: Path, files: Mapping[str, Mapping[str, Any]], bucket: storage.Bucket, prefix: str) -> None:
    def upload(name: str) -> None:
        send_file(folder / name, bucket.blob(prefix + name), files[name]["crc32c"])

    def missing() -> list[str]:
        there = {blob.name: blob.crc32c for blob in list_objects(bucket, prefix)}
        return [name for name, file in files.items() if there.get(prefix + name) != file["crc32c"]]

    for _ in range(objects.ATTEMPTS):  # list what was sent: its name may have been corrupted in transit
        if not (names := missing()):
            return
        in_parallel(upload, names)
    if names := missing():
        raise GoogleAPIError(f"{prefix}{names[0]} was sent {objects.ATTEMPTS} times and is not there")
