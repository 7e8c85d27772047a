"""What a run leaves to look at: its numbers, its predictions, the report of both, and the trackers' copies."""

import contextlib
import dataclasses
import json
import math
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..config.schema import Config
from ..errors import first_line
from ..evaluation.error_analysis import describe
from ..tasks.load import TaskData
from ..tasks.metrics import Results, average
from .run_directory import append_metrics, write_results
from .trackers import Trackers, shareable
from .window import evaluation_values


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


class Recorder:
    """Writes a run's numbers and predictions where people look at them; nothing here changes or ends the training.

    Everything is in the run's folder first, and a checkpoint keeps it, so that a resumed run has what was before.

    Args:
        folder: of the run.
        config: of the run.
        shares: each task's share of the examples, as planned.
        run_id: of the run that is resumed; None for a new one.
        accelerator: whose main process writes.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        shares: Mapping[str, SupportsFloat],
        run_id: str | None,
        accelerator: Accelerator,
    ):
        self.folder, self.config = folder, shareable(dataclasses.asdict(config))
        self.shares = {task: float(share) for task, share in shares.items()}
        self.run_id = run_id or uuid.uuid4().hex[:8]
        self.accelerator = accelerator
        self.seen: dict[str, dict[str, Any]] = {}
        self.reported, self.complained = 0, False
        names = config.tracking.report_to if accelerator.is_main_process else []
        self.trackers = Trackers(
            names, config.tracking.project, folder, self.run_id, self.config, _history(folder), tqdm.write
        )
        accelerator.trackers = [self.trackers]  # all of them, as one; `end_training` finishes it

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line to metrics.jsonl, and the same to the trackers; on the main process, as all that follows."""
        if not self.accelerator.is_main_process:
            return
        append_metrics(self.folder, step, dict(values))
        self.trackers.log(step, {name: value for name, value in values.items() if math.isfinite(value)})

    def look(self, task: TaskData, logits: NDArray[np.float32], tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes from the logits of an evaluation what is shown of them."""
        if self.accelerator.is_main_process:
            self.seen[task.name] = describe(task, logits, tokenizer)

    def evaluated(self, step: int, results: Results) -> None:
        """Writes the results of an evaluation, and what was taken since the last one."""
        if not self.accelerator.is_main_process:
            return
        self.log(step, evaluation_values(results))
        write_results(self.folder / "metrics.json", step, results, average(results))
        _replace(self.folder / "predictions.json", json.dumps({"step": step, "tasks": self.seen}))
        tables = {f"predictions/{name}": of_task["watched"] for name, of_task in self.seen.items()}
        with (self.folder / "watched.jsonl").open("a") as file:
            file.write(json.dumps({"step": step} | tables) + "\n")
        self.trackers.log(step, tables)
        self.seen = {}

    def report(self) -> None:
        """Writes report/index.html, if there is anything new; the training goes on if it cannot be written."""
        numbers = self.folder / "metrics.jsonl"
        if not self.accelerator.is_main_process or self.reported == numbers.stat().st_size:
            return
        self.reported = numbers.stat().st_size
        from .report import describe_environment, page  # matplotlib takes a while to import

        path = self.folder / "report" / "index.html"
        devices = self.accelerator
        environment = describe_environment(devices.num_processes, devices.device, devices.mixed_precision)
        try:
            path.parent.mkdir(exist_ok=True)
            _replace(path, page(self.folder, self.config, self.shares, environment))
        except Exception as error:  # no picture is worth a run
            if not self.complained:
                tqdm.write(f"note: {path} cannot be written: {first_line(error)}")
            self.complained = True


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _history(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """All that was logged so far: the numbers, then the watched rows."""
    for name in ("metrics.jsonl", "watched.jsonl"):
        with contextlib.suppress(FileNotFoundError), (folder / name).open() as file:
            for line in file:
                values = json.loads(line)
                yield values.pop("step"), values
