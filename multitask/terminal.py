"""What a terminal, or the log file that stands in for it, is spared and shown."""

import sys

import datasets
import transformers
from tqdm import tqdm


def quiet_libraries() -> None:
    """Leaves to our own lines what `transformers` and `datasets` would log, and progress bars to terminals."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs of an error is in our own line
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def progress_bar(max_steps: int, done: int, is_shown: bool) -> tqdm:
    """The steps of a run; in a log file, a line every half minute."""
    interval = 0.5 if sys.stderr.isatty() else 30
    return tqdm(
        total=max_steps, initial=done, desc="training", unit="step", disable=not is_shown, mininterval=interval
    )
