"""What a run leaves to look at: its numbers, its predictions, the report of both, and the trackers' copies."""

import contextlib
import dataclasses
import json
import math
import sys
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
from ..utils import write_atomically
from .run_directory import append_metrics, write_results
from .trackers import Trackers, shareable
from .window import evaluation_values


class RunLogger:
    """Shows a run: the progress bar, metrics.jsonl, the trackers, the report; none of it ends the training.

    Everything is in the run's folder first, and a checkpoint keeps it, so that a resumed run has what was before.

    Args:
        folder: of the run.
        config: of the run.
        shares: each task's share of the examples, as planned.
        run_id: the trackers' name of the run.
        accelerator: whose main process writes.
        max_steps: of the run.
        step: how many are done already.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        shares: Mapping[str, SupportsFloat],
        run_id: str,
        accelerator: Accelerator,
        max_steps: int,
        step: int = 0,
    ):
        self.folder, self.config = folder, shareable(dataclasses.asdict(config))
        self.shares = {task: float(share) for task, share in shares.items()}
        self.accelerator = accelerator
        self.seen: dict[str, dict[str, Any]] = {}
        self.reported, self.complained = 0, False
        names = config.tracking.report_to if accelerator.is_main_process else []
        self.trackers = Trackers(
            names, config.tracking.project, folder, run_id, self.config, _history(folder), tqdm.write
        )
        accelerator.trackers = [self.trackers]  # all of them, as one; `end_training` finishes it

        self.bar = tqdm(
            total=max_steps,
            initial=step,
            desc="training",
            unit="step",
            disable=not accelerator.is_main_process,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # in a log file, a line every half minute
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line to metrics.jsonl, and the same to the trackers; on the main process, as all that follows."""
        if not self.accelerator.is_main_process or not values:
            return
        append_metrics(self.folder, step, dict(values))
        self.trackers.log(step, {name: value for name, value in values.items() if math.isfinite(value)})

    def print(self, text: str) -> None:
        """Prints a line above the bar, on the main process."""
        if self.accelerator.is_main_process:
            self.bar.write(text)

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the means of the last steps, and shows them beside the bar with its next step."""
        self.bar.set_postfix_str(
            f"loss {values['train/loss']:.4f}, lr {values['train/learning_rate']:.2e}, "
            f"{values['train/tokens_per_second']:,.0f} tokens/s",
            refresh=False,
        )
        self.log(step, values)

    def look(self, task: TaskData, logits: NDArray[np.float32], tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes from the logits of an evaluation what is shown of them."""
        if self.accelerator.is_main_process:
            self.seen[task.name] = describe(task, logits, tokenizer)

    def evaluation(self, step: int, results: Results) -> None:
        """Writes the results of an evaluation, and what was taken since the last one."""
        if not self.accelerator.is_main_process:
            return
        self.log(step, evaluation_values(results))
        write_results(self.folder / "metrics.json", step, results, average(results))
        write_atomically(self.folder / "predictions.json", json.dumps({"step": step, "tasks": self.seen}))
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
            write_atomically(path, page(self.folder, self.config, self.shares, environment))
        except Exception as error:  # no picture is worth a run
            if not self.complained:
                tqdm.write(f"note: {path} cannot be written: {first_line(error)}")
            self.complained = True


def _history(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """All that was logged so far: the numbers, then the watched rows."""
    for name in ("metrics.jsonl", "watched.jsonl"):
        with contextlib.suppress(FileNotFoundError), (folder / name).open() as file:
            for line in file:
                values = json.loads(line)
                yield values.pop("step"), values
