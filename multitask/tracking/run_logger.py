"""Logging of a run: progress bar, metrics.jsonl, predictions, trackers and the report."""

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

from ..config.schema import Config
from ..errors import first_line
from ..evaluation.error_analysis import describe
from ..evaluation.evaluate import Evaluation, Values
from ..evaluation.validation_rows import NAME as VALIDATION_ROWS
from ..evaluation.validation_rows import RowPredictions, of_task, write_rows
from ..tasks.load import TaskData
from ..tasks.metrics import HIGHER_IS_BETTER, Results, average, undefined
from ..training.early_stopping import score
from ..training.state import TrainState
from ..utils import write_atomically
from .origin import describe_origin, duration
from .run_directory import append_metrics, write_results
from .trackers import Trackers, for_trackers, shareable
from .window import evaluation_values


class RunLogger:
    """Logs a run to the progress bar, metrics.jsonl, the trackers and the report; failures do not stop the training.

    Everything is written to the run's folder first and saved with each checkpoint, so a resumed run has its history.

    Args:
        folder: of the run.
        config: of the run.
        shares: planned share of the examples, by task.
        state: state of the run: its id, length, steps and time.
        accelerator: its main process writes.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        shares: Mapping[str, SupportsFloat],
        state: TrainState,
        accelerator: Accelerator,
    ):
        self.folder, self.config, self.state = folder, shareable(dataclasses.asdict(config)), state
        self.tracking = config.tracking
        self.origin = shareable(describe_origin(state.command))
        self.best_scores = best_scores(folder)
        total = sum(map(float, shares.values()))  # more than 1 where tasks have the same rows
        self.shares = {task: float(share) / total for task, share in shares.items()}
        self.accelerator = accelerator
        self.seen: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, RowPredictions] = {}
        self.reported, self.complained = 0, False
        names = config.tracking.report_to if accelerator.is_main_process else []
        self.trackers = Trackers(
            names,
            config.tracking.project,
            folder,
            state.run_id,
            self.config | {"run": self.origin},
            ((step, self._for_trackers(values)) for step, values in _history(folder)),
            tqdm.write,
        )
        accelerator.trackers = [self.trackers]  # all of them, as one; `end_training` finishes it

        self.bar = tqdm(
            total=state.max_steps,
            initial=state.step,
            desc="training",
            unit="step",
            disable=not accelerator.is_main_process,
            mininterval=0.5,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends values to metrics.jsonl and sends them to the trackers, on the main process."""
        if not self.accelerator.is_main_process or not values:
            return
        append_metrics(self.folder, step, dict(values))
        self.trackers.log(step, self._for_trackers({n: value for n, value in values.items() if math.isfinite(value)}))

    def length(self) -> None:
        """Reports a change of the run's length since it was saved."""
        state = self.state
        if state.planned_steps and state.planned_steps != state.max_steps:
            self.print(
                f"step {state.step:,}: the run has {state.max_steps:,} steps now (it had {state.planned_steps:,}); "
                f"the learning rate follows the new length from here on"
            )
            self.log(state.step, {"run/max_steps": state.max_steps})

    def print(self, text: str) -> None:
        """Prints a line above the bar, on the main process."""
        if self.accelerator.is_main_process:
            self.bar.write(text)

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the means over the last steps and shows them in the progress bar."""
        self.bar.set_postfix_str(
            f"loss {values['train/loss']:.4f}, lr {values['train/learning_rate']:.2e}, "
            f"{values['train/tokens_per_second']:,.0f} tokens/s",
            refresh=False,
        )
        self.log(step, values)

    def close(self) -> None:
        """Closes the bar; what stands beside it is printed where a log does not show it."""
        self.bar.close()
        if self.accelerator.is_main_process and self.bar.postfix and not sys.stderr.isatty():
            self.print(f"step {self.state.step:,} of {self.state.max_steps:,}: {self.bar.postfix}")

    def look(self, task: TaskData, logits: NDArray[np.float32], predictions: Values, references: Values) -> None:
        """Keeps an evaluation's predictions, and what the report shows of them."""
        if self.accelerator.is_main_process:
            self.seen[task.name] = describe(task, logits)
            self.rows[task.name] = of_task(task, predictions, references)

    def evaluation(self, step: int, found: Evaluation) -> None:
        """Prints and logs an evaluation, and writes the predictions collected for it."""
        if not self.accelerator.is_main_process:
            return
        self.bar.write(evaluation_lines(step, found, self.best_scores))
        self.log(step, evaluation_values(found))
        more: dict[str, Any] = {"losses": found.losses, "run_seconds": self.state.elapsed()}
        if found.calibrations:
            more["calibrations"] = found.calibrations
            for name, of_task in found.calibrations.items():
                self.seen[name]["calibration"] = of_task
        write_results(self.folder / "metrics.json", step, found.results, average(found.results), **more)
        write_atomically(self.folder / "predictions.json", json.dumps({"step": step, "tasks": self.seen}))
        write_rows(self.folder / VALIDATION_ROWS, self.rows)
        tables = {f"predictions/{name}": of_task["watched"] for name, of_task in self.seen.items()}
        with (self.folder / "watched.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | tables) + "\n")
        self.trackers.log(step, self._for_trackers(tables))
        self.seen, self.rows = {}, {}

    def _for_trackers(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What `tracking` lets out of the run's folder."""
        chosen = for_trackers(values, self.tracking.agreement)
        is_shared = self.tracking.log_predictions
        return {name: value for name, value in chosen.items() if is_shared or not isinstance(value, list)}

    def report(self) -> None:
        """Writes report/index.html if there are new numbers; an error is reported once and does not stop the run."""
        numbers = self.folder / "metrics.jsonl"
        if not self.accelerator.is_main_process or self.reported == numbers.stat().st_size:
            return
        self.reported = numbers.stat().st_size
        from .report import describe_environment, page  # matplotlib takes a while to import

        path = self.folder / "report" / "index.html"
        devices = self.accelerator
        environment = dict(self.origin)
        environment |= describe_environment(devices.num_processes, devices.device, devices.mixed_precision)
        seconds = duration(self.state.elapsed())
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, page(self.folder, self.config, self.shares, environment, seconds))
        except Exception as error:  # no picture is worth a run
            if not self.complained:
                tqdm.write(f"note: {path} cannot be written: {first_line(error)}")
            self.complained = True


def evaluation_lines(step: int, found: Evaluation, best: dict[str, float]) -> str:
    """Formats an evaluation with one line per task; improvements over all earlier evaluations are marked.

    Args:
        step: step of the evaluation.
        found: its result.
        best: best score so far by task, and of the average; updated in place.
    """
    lines, is_first = [f"step {step:,}: evaluated in {found.seconds:.1f} s"], not best
    width = max(map(len, [*found.results, "average"]))
    for name in [*found.results, "average"]:
        value = score(found.results, name)
        is_best = value > best.get(name, -math.inf)
        shown = found.results.get(name, {"": average(found.results)})
        parts = [f"{metric} {_shown(number)}".strip() for metric, number in shown.items()]
        parts += [f"loss {found.losses[name]:.4f}"] if name in found.losses else []
        lines.append(
            f"  {name.ljust(width)}  {', '.join(parts)}{'  (best so far)' if is_best and not is_first else ''}"
        )
        best[name] = max(value, best.get(name, -math.inf))
    if names := undefined(found.results):
        lines.append(
            f"  note: {', '.join(names)} not defined, as all predictions or all labels are the same; left out of "
            f"averages"
        )
    return "\n".join(lines)


def _shown(number: float) -> str:
    return f"{number:.4f}" if math.isfinite(number) else "undefined"


def best_scores(folder: Path) -> dict[str, float]:
    """The best score of each task and of the average in a run's logged evaluations."""
    best: dict[str, float] = {}
    for _, values in _history(folder):
        results: Results = {}
        for name, value in values.items():
            kind, _, rest = name.partition("/")
            task, _, metric = rest.rpartition("/")
            if kind == "eval" and task and metric in HIGHER_IS_BETTER and value is not None:
                results.setdefault(task, {})[metric] = value
        for name in [*results, "average"] if results else []:
            best[name] = max(score(results, name), best.get(name, -math.inf))
    return best


def _history(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Everything logged so far: the numbers, then the sample rows."""
    for name in ("metrics.jsonl", "watched.jsonl"):
        with contextlib.suppress(FileNotFoundError), (folder / name).open(encoding="utf-8") as file:
            for line in file:
                values = json.loads(line)
                values.pop("time", None)
                yield values.pop("step"), values
