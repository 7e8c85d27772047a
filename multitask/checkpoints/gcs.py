"""Objects in Google Cloud Storage: files that are sent and fetched, whole or not at all.

Lost connections, busy servers and the backoff between tries are the library's: with `DEFAULT_RETRY` it repeats a
request for two minutes (https://cloud.google.com/storage/docs/retry-strategy). On top, every file that arrived is
compared with the CRC32C that it should have, and transferred anew if it differs.
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


CHUNK_BYTES = 8 << 20  # of a large file in one request, which is held in memory; a multiple of 256 KiB


TIMEOUT_SECONDS = 60.0  # to send a request, and between bytes of the answer


THREADS = 4  # files at once


ATTEMPTS = 3  # at a file that arrives damaged


# What another attempt at the same file cannot mend; before a RetryError the library has tried for long enough.
_FINAL = (Forbidden, Unauthorized, GoogleAuthError, PreconditionFailed, RetryError, FileNotFoundError)


def open_url(url: str) -> tuple[storage.Bucket, str]:
    """The bucket of a URL, for use, and the prefix as `split_url` gives it. Nothing is asked of the server."""
    name, prefix = split_url(url)
    try:
        client = storage.Client()
    except OSError:  # credentials that belong to no project; objects need none
        client = storage.Client(project=None)
    return client.bucket(name), prefix


def list_objects(bucket: storage.Bucket, prefix: str) -> Iterator[storage.Blob]:
    """The objects whose names begin so, with their name and CRC32C."""
    fields = "items(name,crc32c),nextPageToken"
    return bucket.client.list_blobs(bucket, prefix=prefix, fields=fields, retry=RETRY, timeout=TIMEOUT_SECONDS)


def delete_objects(blobs: list[storage.Blob]) -> None:
    """Deletes objects in their order; those that are gone already are fine."""
    if blobs:
        blobs[0].bucket.delete_blobs(blobs, on_error=lambda blob: None, retry=RETRY, timeout=TIMEOUT_SECONDS)


def send_file(path: Path, blob: storage.Blob, crc32c: str, if_generation_match: int | None = None) -> None:
    """Uploads a file: a large one in chunks, each of which is sent again if its connection is lost.

    Args:
        path: of the file.
        blob: where to.
        crc32c: of the content, as `manifest.crc32c_of` writes it.
        if_generation_match: 0 creates only.

    Raises:
        ValueError: if the bytes that arrive do not have this checksum.
        google.api_core.exceptions.GoogleAPIError: if it cannot be uploaded.
    """

    def send() -> None:
        blob.upload_from_filename(
            path,
            checksum="crc32c",
            crc32c_checksum_value=crc32c,  # a server that got other bytes refuses them
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
        blob: where from.
        path: where to; its folders are made.
        check: looks at the file and raises ValueError if it is damaged. (The library does not check the bytes that it
            fetched after a lost connection.)

    Raises:
        ValueError: if it arrives damaged every time.
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
    """Calls a function with every name, in several threads; raises the first error after all calls have ended."""
    # The threads of transfer_manager would keep the process from exiting until they have sent all; these do not.
    with ThreadPool(THREADS) as pool:
        pool.map(transfer, names, chunksize=1)


@contextmanager
def clear_errors(url: str, permission: str, missing: str = "") -> Iterator[None]:
    """Turns what a user can mend into a UserError.

    Args:
        url: of the place.
        permission: that the code inside needs.
        missing: what it means when something is not found; by default, that there is no such bucket.
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
