"""Files in Google Cloud Storage, copied into the cache of `datasets` once per version."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import datasets.config
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage

from ..errors import UserError, first_line
from ..utils import partial_file, split_url

WILDCARD = r"[*?\[]"


def is_remote(name: str) -> bool:
    """Whether a file is in Google Cloud Storage."""
    return name.startswith("gs://")


def local_copies(url: str) -> list[str]:
    """Paths of local copies of `gs://BUCKET/OBJECT`, in the order of their names; `*` stands for any characters.

    A copy lies under its object's generation (https://cloud.google.com/storage/docs/metadata#generation-number), so
    that a changed object is copied again and an unchanged one is not.

    Raises:
        UserError: if there is no such object, or it cannot be read.
    """
    name, _ = split_url(url)
    pattern = url.removeprefix(f"gs://{name}").lstrip("/")
    try:
        try:
            client = storage.Client()
        except OSError:  # credentials without a project; objects need none
            client = storage.Client(project=None)
        found = client.list_blobs(name, prefix=re.split(WILDCARD, pattern)[0])
        blobs = [blob for blob in found if blob.name == pattern or fnmatchcase(blob.name, pattern)]
        if not blobs:
            raise UserError(f"there is no object {url}")
        return [str(_copy(blob)) for blob in blobs]
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        raise UserError(f"{url} cannot be read: {first_line(error)}") from error


def _copy(blob: storage.Blob) -> Path:
    path = Path(datasets.config.HF_DATASETS_CACHE) / "gs" / blob.bucket.name / str(blob.generation) / blob.name
    if not path.exists():
        with partial_file(path) as partial:
            blob.download_to_filename(str(partial))
    return path
