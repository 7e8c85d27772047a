"""Checkpoints that are copied while training goes on."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Condition, Thread

from ..errors import first_line
from . import remote as gcs
from .manifest import step_of

CLOSE_SECONDS = 600.0  # for the last checkpoint; who cannot wait sends a second signal


class Uploader:
    """Copies checkpoints to Google Cloud Storage in a thread of its own, one at a time.

    At most one is waiting; a newer one takes its place. So a slow bucket gets fewer checkpoints, and never stops the
    training. The thread does not keep the process from exiting.
    """

    def __init__(self, url: str, keep: Callable[[list[int]], set[int]], warn: Callable[[str], object]):
        """Starts the thread.

        Args:
            url: where checkpoints are, as gs://BUCKET/PREFIX.
            keep: says of the steps that have a whole copy, in order, which stay. Called in the thread.
            warn: gets a line about each checkpoint that could not be copied. Called in the thread.
        """
        self.url, self._keep, self._warn = url, keep, warn
        self._changed = Condition()  # guards what follows
        self._waiting: Path | None = None
        self.running: Path | None = None  # what is being copied
        self._pending: Path | None = None  # the last one submitted, until it is copied
        self._seconds: dict[int, float] = {}
        Thread(target=self._run, name="uploads", daemon=True).start()

    def submit(self, folder: Path) -> None:
        """Has a checkpoint copied, soon; returns at once.

        Args:
            folder: `step-00000500` with its manifest; it stays as it is while `busy` names it.
        """
        with self._changed:
            self._waiting = self._pending = folder
            self._changed.notify_all()

    def busy(self) -> set[Path]:
        """The folders that are still to be read: they may not be deleted."""
        with self._changed:
            return {folder for folder in (self.running, self._pending) if folder}

    def report(self, log: Callable[[int, dict[str, float]], object]) -> None:
        """Logs how long each copy took that was completed since the last report: with its step, in seconds."""
        with self._changed:
            completed, self._seconds = self._seconds, {}
        for step, seconds in completed.items():
            log(step, {"checkpoint/upload_seconds": seconds})

    def close(self, timeout_seconds: float) -> bool:
        """Waits until the last checkpoint that was submitted is copied; if that has failed before, tries once more.

        Returns:
            Whether it is in the bucket (or none was submitted). If not, threads may still be sending.
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
    """Waits until the last checkpoint is in the bucket, and copies what a run has made besides.

    Args:
        uploads: to close.
        folders: each is copied to `URL/NAME` beside them.
        tell: gets a line about what could not be copied.
        log: gets how long the last copies took, as `Uploader.report` gives it.
        best: a checkpoint that is to be there besides the last; a newer one may have taken its place in the queue.

    Returns:
        Whether all is in the bucket; what is here stays in either case.
    """
    is_done = uploads.close(CLOSE_SECONDS)
    uploads.report(log)
    if not is_done:
        tell(f"{uploads.url}: the last checkpoint is not there; it stays on this machine")
    # A best checkpoint that is not here is there already: this machine has gone on from a copy.
    copies = [(gcs.upload_checkpoint, best, uploads.url)] if best and best.exists() else []
    copies += [(gcs.upload_folder, folder, f"{uploads.url.rstrip('/')}/{folder.name}") for folder in folders]
    for copy, folder, url in copies:
        try:
            copy(folder, url)
        except Exception as error:
            is_done = False
            tell(f"{uploads.url}: copying {folder} failed: {first_line(error)}")
    return is_done
