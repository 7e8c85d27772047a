"""What a terminal, or the log file that stands in for it, is spared and shown."""

import sys
from collections.abc import Mapping

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


def show(progress: tqdm, values: Mapping[str, float]) -> None:
    """Puts what was just logged beside the bar, with its next step; a log file is spared a line."""
    progress.set_postfix_str(
        f"loss {values['train/loss']:.4f}, lr {values['train/learning_rate']:.2e}, "
        f"{values['train/tokens_per_second']:,.0f} tokens/s",
        refresh=False,
    )
