"""Uploads checkpoints while training continues."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Condition, Thread

from ..errors import first_line
from . import remote as gcs
from .manifest import step_of

CLOSE_SECONDS = 600.0  # limit for the last checkpoint; a second signal ends the wait


class Uploader:
    """Uploads checkpoints to Google Cloud Storage in a thread, one at a time.

    At most one checkpoint is queued; a newer one replaces it. A slow bucket thus receives fewer checkpoints and never
    blocks training. The thread does not keep the process from exiting.
    """

    def __init__(self, url: str, keep: Callable[[list[int]], set[int]], warn: Callable[[str], object]):
        """Starts the thread.

        Args:
            url: parent URL of the checkpoints, gs://BUCKET/PREFIX.
            keep: given the steps with a complete copy in ascending order, returns those to keep. Called in the thread.
            warn: receives a line about each failed upload. Called in the thread.
        """
        self.url, self._keep, self._warn = url, keep, warn
        self._changed = Condition()  # guards the fields below
        self._waiting: Path | None = None
        self.running: Path | None = None  # being uploaded
        self._pending: Path | None = None  # the last one submitted, until it is uploaded
        self._seconds: dict[int, float] = {}
        Thread(target=self._run, name="uploads", daemon=True).start()

    def submit(self, folder: Path) -> None:
        """Queues a checkpoint for upload; returns immediately.

        Args:
            folder: `step-00000500` with its manifest; must not change while `busy` contains it.
        """
        with self._changed:
            self._waiting = self._pending = folder
            self._changed.notify_all()

    def busy(self) -> set[Path]:
        """The folders still to be read, which must not be deleted."""
        with self._changed:
            return {folder for folder in (self.running, self._pending) if folder}

    def report(self, log: Callable[[int, dict[str, float]], object]) -> None:
        """Logs the seconds of each upload completed since the last report, at the checkpoint's step."""
        with self._changed:
            completed, self._seconds = self._seconds, {}
        for step, seconds in completed.items():
            log(step, {"checkpoint/upload_seconds": seconds})

    def close(self, timeout_seconds: float) -> bool:
        """Waits until the last submitted checkpoint is uploaded; retries it once if it failed before.

        Returns:
            Whether it is in the bucket (or none was submitted). If not, threads may still be uploading.
        """
        with self._changed:
            if self._pending != self.running:
                self._waiting = self._pending
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._waiting or self.running), timeout_seconds)
            return not self._pending

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                folder, self._waiting = self._waiting, None
                self.running = folder
            assert folder
            try:
                doing = f"copying {folder}"
                self._copy(folder)
                doing = "deleting old checkpoints"
                gcs.prune(self.url, self._keep)
            except Exception as error:
                self._warn(f"{self.url}: {doing} failed: {first_line(error)}")
            with self._changed:
                self.running = None
                self._changed.notify_all()

    def _copy(self, folder: Path) -> None:
        start = time.monotonic()
        gcs.upload_checkpoint(folder, self.url)
        with self._changed:
            self._seconds[step_of(folder)] = time.monotonic() - start
            if self._pending == folder:
                self._pending = None


def finish_uploads(
    uploads: Uploader,
    folders: Sequence[Path],
    tell: Callable[[str], object],
    log: Callable[[int, dict[str, float]], object],
    best: Path | None = None,
) -> bool:
    """Waits until the last checkpoint is in the bucket, then uploads the best checkpoint and other folders.

    Args:
        uploads: the uploader to close.
        folders: each is uploaded to `URL/NAME`, next to the checkpoints.
        tell: receives a line about each failed upload.
        log: receives the seconds of the last uploads, as in `Uploader.report`.
        best: the best checkpoint, as a newer one may have replaced it in the queue.

    Returns:
        Whether everything is in the bucket; local files are kept in either case.
    """
    is_done = uploads.close(CLOSE_SECONDS)
    uploads.report(log)
    if not is_done:
        tell(f"{uploads.url}: the last checkpoint is not there; it stays on this machine")
    # A best checkpoint that is missing locally is already in the bucket: this run was resumed from a copy.
    copies = [(gcs.upload_checkpoint, best, uploads.url)] if best and best.exists() else []
    copies += [(gcs.upload_folder, folder, f"{uploads.url.rstrip('/')}/{folder.name}") for folder in folders]
    for copy, folder, url in copies:
        try:
            copy(folder, url)
        except Exception as error:
            is_done = False
            tell(f"{uploads.url}: copying {folder} failed: {first_line(error)}")
    return is_done
