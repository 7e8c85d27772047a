"""Work that goes on beside the training."""

from collections.abc import Callable
from threading import Thread


class Background:
    """One piece of work at a time, in a thread; the process does not end before it is done."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begins a piece of work when the one before is done; raises what went wrong in that one."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = Thread(target=run, name="background")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the work is done, and raises what went wrong in it."""
        if self._thread:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error:
            raise error
