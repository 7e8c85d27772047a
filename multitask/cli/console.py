"""Console output: tables, the plan of a run, its results, and the verbosity of libraries."""

import io
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import datasets
import transformers

from ..config.schema import TrainingConfig
from ..data.static_shapes import num_graphs, static_lengths
from ..mixture.mixture import Mixture
from ..model.lora import SHARED
from ..model.multitask import MultitaskModel
from ..tasks.base import streams_of
from ..tasks.load import TaskData
from ..tasks.metrics import Results, average

MOST_CLASSES = 10  # shown of a task


def format_table(lines: Sequence[Sequence[str]]) -> str:
    """Formats columns under a ruled header: the first two left-aligned, the others right-aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:]])


def quiet_libraries() -> None:
    """Silences `transformers` and `datasets`, except for the progress bars of `datasets`.

    Without a terminal, stderr shows progress bars as whole lines.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # our own messages include its errors
    if not sys.stderr.isatty():
        sys.stderr = WholeLines(sys.stderr)


class WholeLines(io.TextIOBase):
    """A stream into a log (`kubectl logs`, Cloud Logging, Slurm), which shows nothing before a line ends.

    Progress bars begin with a carriage return and overwrite themselves. Here a bar is shown as a line once in so many
    seconds, and at its end if it was shown before; short ones are not shown. Everything else passes unchanged.

    Args:
        stream: where the lines go.
        seconds: between two lines of progress.
    """

    def __init__(self, stream: TextIO, seconds: float = 30.0):
        self.stream, self.seconds = stream, seconds
        self.bar, self.shown, self.is_shown, self.since = "", "", False, time.monotonic()

    def write(self, text: str) -> int:
        if text.startswith("\r"):
            is_new = not self.bar
            self.bar = text.strip()
            if is_new:
                self.is_shown, self.since = False, time.monotonic()
            elif self.bar and time.monotonic() - self.since >= self.seconds:
                self._show()
        elif text == "\n" and self.bar:  # the end of a bar that stays
            if self.is_shown and self.bar != self.shown:
                self._show()
            self.bar = ""
        else:
            self.stream.write(text)
        return len(text)

    def _show(self) -> None:
        self.stream.write(f"{self.bar}\n")
        self.stream.flush()
        self.is_shown, self.shown, self.since = True, self.bar, time.monotonic()

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding


def plan(
    tasks: Sequence[TaskData],
    model: MultitaskModel,
    mixture: Mixture,
    max_steps: int,
    training: TrainingConfig,
    static_shapes: bool = False,
) -> str:
    """Tables of the tasks and parameters to be trained, with notes on anything unusual."""
    num_examples = {task.name: mixture.given(task.stream, max_steps) for task in tasks}
    notes = [f"note: {note}" for note in slow_adapters(model, training)]
    notes += [
        f"note: {', '.join(names)} read the same rows ({stream}), each drawn and encoded once for all of them"
        for stream, names in streams_of(tasks).items()
        if len(names) > 1
    ]
    notes += [f"note: {note}" for note in oddities(tasks, num_examples, training.max_tokens_per_pass, static_shapes)]
    tables = [tasks_table(tasks, mixture.shares(max_steps), mixture.batch_size, max_steps), parameters_table(model)]
    how = "padded to static shapes, task by task" if static_shapes else str(model.call)
    lines = [schedule_line(max_steps, training, any(task.validation for task in tasks))]
    lines += [line for task in tasks if (line := classes_line(task))]
    return "\n\n".join([*tables, "\n".join([*lines, f"encoder: sequences are {how}", *notes])])


def classes_line(task: TaskData) -> str:
    """How many training rows (of a task of words: words) each class has, the most frequent first."""
    counts = task.type.class_counts(task.train, task.labels)
    if counts is None:
        return ""
    order = sorted(range(len(counts)), key=lambda number: -counts[number])
    shown = [f"{task.labels[number]} {counts[number]:,}" for number in order[:MOST_CLASSES]]
    more = [f"… ({len(order):,} in all, the rarest {counts[order[-1]]:,})"] if len(order) > MOST_CLASSES else []
    return f"classes of {task.name} in train: {', '.join(shown + more)}"


def schedule_line(max_steps: int, training: TrainingConfig, is_evaluated: bool) -> str:
    """How many steps, evaluations and checkpoints a run will have."""

    def times(every: int | None) -> str:
        count = math.ceil(max_steps / every) if every else 1  # the last step is always among them
        return "once" if count == 1 else f"{count:,} times"

    evaluated = f"evaluated {times(training.eval_steps)}" if is_evaluated else "not evaluated"
    averaged = math.floor(training.weight_averaging * max_steps)
    weights = f", weights averaged over the last {averaged:,}" if averaged else ""
    steps = f"{max_steps:,} step{'s' * (max_steps != 1)}"
    return (
        f"run: {steps}{weights}, {evaluated}, saved {times(training.save_steps)}; the time that is left stands beside "
        f"the progress once steps have been done"
    )


def tasks_table(tasks: Sequence[TaskData], shares: Mapping[str, float], batch_size: int, max_steps: int) -> str:
    """One row per task: training rows, tokens, share of the examples, examples per step, passes over the rows."""
    lines = [("task", "type", "outputs", "rows", "validation", "tokens", "share", "examples/step", "passes")]
    for task in tasks:
        share = shares[task.stream]
        lines.append(
            (
                task.name,
                task.type.name,
                task.type.outputs(task.labels),
                f"{task.train.num_labelled:,}",
                f"{task.validation.num_examples:,}" if task.validation else "none",
                f"{task.train.tokens.sum():,}",
                f"{share:.1%}",
                f"{share * batch_size:.2f}",
                f"{share * batch_size * max_steps / len(task.train):.2f}",
            )
        )
    return format_table(lines)


def parameters_table(model: MultitaskModel) -> str:
    """Trainable and frozen parameters of the encoder, of each adapter and of each head."""
    adapters = {name: model.adapter_parameters(name) for name in (SHARED, *model.streams.values())}
    adapted = {parameter for parameters in adapters.values() for parameter in parameters}
    parts = [("encoder", "", [p for p in model.encoder.parameters() if p not in adapted])]
    parts.append(("all tasks", "adapter", adapters[SHARED]))
    for task, stream in model.streams.items():
        parts.append((stream, "adapter", adapters.pop(stream, [])))
        parts.append((task, "head", [p for p in model.head_parameters(task) if p not in adapted]))
    lines = [("part", "", "trainable", "frozen", "bytes")]
    for name, kind, parameters in parts:
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        frozen = sum(p.numel() for p in parameters if not p.requires_grad)
        size = sum(p.numel() * p.element_size() for p in parameters)
        lines += [(name, kind, f"{trainable:,}", f"{frozen:,}", f"{size:,}")] if parameters else []
    return format_table(lines)


def calibration_lines(calibrations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the calibration of each task changes on the rows that it was fitted on, and on rows that it was not."""
    lines = []
    for name, found in calibrations.items():
        errors, metrics = found["errors"], found["metrics"]
        changes = [("calibration error", errors)]
        changes += [(name, {when: of[name] for when, of in metrics.items()}) for name in metrics.get("after", {})]
        shown = ", ".join(
            f"{what} {of['before']:.4f} -> {of['after']:.4f} (cross-fitted {of['crossfitted']:.4f})"
            for what, of in changes
        )
        lines.append(f"calibration of {name}: temperature {found['temperature']:.3g}, {shown}")
    return ["", *lines] if lines else []


def slow_adapters(model: MultitaskModel, training: TrainingConfig) -> list[str]:
    """A note on a learning rate that is usual for a whole encoder and low for LoRA.

    Hu et al. 2021 (https://arxiv.org/abs/2106.09685, table 9) use 4e-4 to 5e-4 for RoBERTa on GLUE.
    """
    if not any(model.adapters.values()) or training.learning_rate >= 1e-4:
        return []
    return [
        f"training.learning_rate {training.learning_rate:g} is low for adapters, which usually learn best with 2e-4 "
        f"to 1e-3"
    ]


def oddities(
    tasks: Sequence[TaskData], num_examples: Mapping[str, int], max_tokens_per_pass: int, static_shapes: bool = False
) -> list[str]:
    """Notes on what is unusual about a run, to be read before it starts.

    Args:
        tasks: tasks of the run.
        num_examples: examples of each task in the whole run.
        max_tokens_per_pass: `training.max_tokens_per_pass`.
        static_shapes: whether static shapes are used.
    """
    notes = []
    if static_shapes:
        train = {task.name: task.train for task in tasks}
        lengths = ", ".join(f"{name} {static_lengths(split)}" for name, split in train.items())
        notes.append(f"static shapes: {num_graphs(train)} graphs of training passes, lengths by task: {lengths}")
    for task in tasks:
        if not num_examples[task.name]:
            notes.append(f"{task.name}: its share is too small for a single example in this run; it is not trained")
        splits = [split for split in (task.train, task.validation) if split]
        cut, sequences = sum(s.truncated for s in splits), sum(len(s) * s.sequences for s in splits)
        if cut:
            notes.append(
                f"{task.name}: {cut:,} of {sequences:,} sequences ({cut / sequences:.1%}) are cut at max_length"
            )
        if len(task.train) > task.train.num_examples:
            notes.append(
                f"{task.name}: {task.train.num_examples:,} rows of train make {len(task.train):,} windows of at most "
                f"max_length tokens; each counts as an example"
            )
        if len(task.labels) > max(100, task.train.num_examples // 2):
            rows = task.train.num_examples
            notes.append(f"{task.name}: the label has {len(task.labels):,} classes in {rows:,} rows; is it an id?")
        notes += [f"{task.name}: {note}" for note in task.notes]
        if task.validation is not None:
            counts = task.type.class_counts(task.validation, task.labels)
            lacking = [] if counts is None else [name for name, n in zip(task.labels, counts, strict=True) if not n]
            if lacking:
                some = ", ".join(lacking[:MOST_CLASSES]) + (", …" if len(lacking) > MOST_CLASSES else "")
                notes.append(f"{task.name}: validation has none of {some}, so nothing measures how well it is learned")
        if task.validation is None:
            notes.append(f"{task.name}: no validation rows with labels; it is trained and not evaluated")
        longest = int(task.train.length.max()) * task.train.sequences
        if longest > max_tokens_per_pass:
            notes.append(
                f"{task.name}: its longest example has {longest:,} tokens, more than max_tokens_per_pass "
                f"{max_tokens_per_pass:,}, and gets a pass of its own; raise it if memory allows"
            )
    return notes


def what_is_where(folder: Path, remote: str | None) -> str:
    """The last line of a run: where its models, report and numbers are.

    Args:
        folder: of the run.
        remote: bucket that has copies of them, if any.
    """
    copies = f"; copies in {remote}" if remote else ""
    return (
        f"One model per task in {folder / 'export'}, the report in {folder / 'report' / 'index.html'}, the numbers in "
        f"{folder / 'metrics.json'}{copies}"
    )


def defined(value: float) -> str:
    """A metric for a table."""
    return f"{value:.4f}" if math.isfinite(value) else "undefined"


def results_table(results: Results, tasks: Sequence[TaskData]) -> str:
    """Task, metric, value and number of validation rows, with the average in the last row."""
    num_rows = {task.name: task.validation.num_examples for task in tasks if task.validation}
    lines = [("task", "metric", "value", "rows")]
    for task, metrics in results.items():
        lines += [(task, name, defined(value), f"{num_rows[task]:,}") for name, value in metrics.items()]
    lines.append(("average", "", defined(average(results)), ""))
    return format_table(lines)
