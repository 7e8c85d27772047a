"""Uploads and downloads of files in Google Cloud Storage, with checksums.

The library handles lost connections, busy servers and backoff: with `DEFAULT_RETRY` it retries a request for two
minutes (https://cloud.google.com/storage/docs/retry-strategy). In addition, every transferred file is compared with
its expected CRC32C, and transferred again if it differs.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path

from google.api_core.exceptions import Forbidden, NotFound, PreconditionFailed, RetryError, Unauthorized
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from ..errors import UserError, first_line
from ..utils import split_url

RETRY = DEFAULT_RETRY


CHUNK_BYTES = 8 << 20  # per request of a large file, held in memory; a multiple of 256 KiB


TIMEOUT_SECONDS = 60.0  # for sending a request, and between bytes of the response


THREADS = 4  # files transferred at once


ATTEMPTS = 3  # per file


# Errors that another attempt cannot fix; before a RetryError, the library has already retried.
_FINAL = (Forbidden, Unauthorized, GoogleAuthError, PreconditionFailed, RetryError, FileNotFoundError)


def open_url(url: str) -> tuple[storage.Bucket, str]:
    """The bucket object and the prefix (as in `split_url`) of a URL. Sends no request."""
    name, prefix = split_url(url)
    try:
        client = storage.Client()
    except OSError:  # credentials without a project; objects need none
        client = storage.Client(project=None)
    return client.bucket(name), prefix


def list_objects(bucket: storage.Bucket, prefix: str) -> Iterator[storage.Blob]:
    """The objects whose names start with `prefix`, with their name and CRC32C."""
    fields = "items(name,crc32c),nextPageToken"
    return bucket.client.list_blobs(bucket, prefix=prefix, fields=fields, retry=RETRY, timeout=TIMEOUT_SECONDS)


def delete_objects(blobs: list[storage.Blob]) -> None:
    """Deletes objects in order; missing ones are ignored."""
    if blobs:
        blobs[0].bucket.delete_blobs(blobs, on_error=lambda blob: None, retry=RETRY, timeout=TIMEOUT_SECONDS)


def send_file(path: Path, blob: storage.Blob, crc32c: str, if_generation_match: int | None = None) -> None:
    """Uploads a file; a large one in chunks, each of which is sent again if its connection is lost.

    Args:
        path: the file.
        blob: the destination.
        crc32c: checksum of the file, as returned by `manifest.crc32c_of`.
        if_generation_match: 0 fails if the object exists.

    Raises:
        ValueError: if the uploaded bytes do not have this checksum.
        google.api_core.exceptions.GoogleAPIError: if it cannot be uploaded.
    """

    def send() -> None:
        blob.upload_from_filename(
            path,
            checksum="crc32c",
            crc32c_checksum_value=crc32c,  # the server rejects bytes with another checksum
            if_generation_match=if_generation_match,
            retry=RETRY,
            timeout=TIMEOUT_SECONDS,
        )
        if blob.crc32c != crc32c:
            delete_objects([blob])
            raise ValueError(f"{path}: what arrived has the CRC32C {blob.crc32c}, not {crc32c}")

    blob.chunk_size = CHUNK_BYTES
    _insist(send)


def fetch_file(blob: storage.Blob, path: Path, check: Callable[[], object]) -> None:
    """Downloads a file.

    Args:
        blob: the source.
        path: the destination; parent folders are created.
        check: raises ValueError if the file is damaged. (The library does not check bytes that it fetched after a
            lost connection.)

    Raises:
        ValueError: if the file is damaged after every attempt.
        google.api_core.exceptions.GoogleAPIError: if it cannot be downloaded.
    """

    def fetch() -> None:
        blob.download_to_filename(path, checksum="crc32c", retry=RETRY, timeout=TIMEOUT_SECONDS)
        check()

    path.parent.mkdir(parents=True, exist_ok=True)
    _insist(fetch)


def _insist(transfer: Callable[[], None]) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return transfer()
        except _FINAL:
            raise
        except Exception:
            if attempt == ATTEMPTS:
                raise


def in_parallel(transfer: Callable[[str], None], names: Iterable[str]) -> None:
    """Calls a function with every name, in several threads; raises the first error after all calls have finished."""
    # Unlike the threads of transfer_manager, these do not keep the process from exiting until all files are sent.
    with ThreadPool(THREADS) as pool:
        pool.map(transfer, names, chunksize=1)


@contextmanager
def clear_errors(url: str, permission: str, missing: str = "") -> Iterator[None]:
    """Converts errors that a user can fix into a UserError.

    Args:
        url: URL that the code inside accesses.
        permission: permission that the code inside needs.
        missing: message if something is not found; by default, that the bucket does not exist.
    """
    bucket = split_url(url)[0]
    try:
        yield
    except (DefaultCredentialsError, RefreshError) as error:
        raise UserError(
            f"{url}: no credentials for Google Cloud were found, or they are no longer valid ({first_line(error)}); "
            "run `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS"
        ) from error
    except NotFound as error:
        raise UserError(f"{url}: {missing or f'the bucket {bucket} does not exist; create it'}") from error
    except (Forbidden, Unauthorized) as error:
        project = open_url(url)[0].client.project or "unknown"
        raise UserError(
            f"{url}: the permission {permission} on the bucket {bucket} is missing (project: {project}); the role "
            f"roles/storage.objectUser has it. The server says: {first_line(error)}"
        ) from error
    except (RetryError, GoogleAuthError) as error:
        raise UserError(f"{url}: Google Cloud Storage cannot be reached: {first_line(error)}") from error
