"""Console output: tables, the plan of a run, its results, and the verbosity of libraries."""

import sys
from collections.abc import Mapping, Sequence

import datasets
import transformers

from ..data.packing import num_graphs, static_lengths
from ..mixture.mixture import Mixture
from ..model.lora import SHARED
from ..model.multitask import MultitaskModel
from ..tasks.load import TaskData
from ..tasks.metrics import Results, average


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
    """Silences `transformers` and `datasets`, except for the progress bars of `datasets` in a terminal."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # our own messages include its errors
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def plan(
    tasks: Sequence[TaskData],
    model: MultitaskModel,
    mixture: Mixture,
    max_steps: int,
    max_tokens_per_pass: int,
    static_shapes: bool = False,
) -> str:
    """Tables of the tasks and parameters to be trained, with notes on anything unusual."""
    num_examples = {task.name: mixture.given(task.name, max_steps) for task in tasks}
    notes = [f"note: {note}" for note in oddities(tasks, num_examples, max_tokens_per_pass, static_shapes)]
    tables = [tasks_table(tasks, mixture.shares(max_steps), mixture.batch_size, max_steps), parameters_table(model)]
    return "\n\n".join([*tables, "\n".join(notes)])


def tasks_table(tasks: Sequence[TaskData], shares: Mapping[str, float], batch_size: int, max_steps: int) -> str:
    """One row per task: training rows, tokens, share of the examples, examples per step, passes over the rows."""
    lines = [("task", "type", "outputs", "rows", "validation", "tokens", "share", "examples/step", "passes")]
    for task in tasks:
        share = shares[task.name]
        lines.append(
            (
                task.name,
                task.type.name,
                task.type.outputs(task.labels),
                f"{len(task.train):,}",
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
    adapters = {name: model.adapter_parameters(name) for name in (SHARED, *model.tasks)}
    adapted = {parameter for parameters in adapters.values() for parameter in parameters}
    parts = [("encoder", "", [p for p in model.encoder.parameters() if p not in adapted])]
    parts.append(("all tasks", "adapter", adapters[SHARED]))
    for task in model.tasks:
        parts.append((task, "adapter", adapters[task]))
        parts.append((task, "head", [p for p in model.head_parameters(task) if p not in adapted]))
    lines = [("part", "", "trainable", "frozen", "bytes")]
    for name, kind, parameters in parts:
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        frozen = sum(p.numel() for p in parameters if not p.requires_grad)
        size = sum(p.numel() * p.element_size() for p in parameters)
        lines += [(name, kind, f"{trainable:,}", f"{frozen:,}", f"{size:,}")] if parameters else []
    return format_table(lines)


def oddities(
    tasks: Sequence[TaskData], num_examples: Mapping[str, int], max_tokens_per_pass: int, static_shapes: bool = False
) -> list[str]:
    """Notes on what is unusual about a run, to be read before it starts.

    Args:
        tasks: tasks of the run.
        num_examples: examples of each task in the whole run.
        max_tokens_per_pass: in padded tokens.
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
        if task.validation is None:
            notes.append(f"{task.name}: no validation rows with labels; it is trained and not evaluated")
        longest = int(task.train.length.max()) * task.train.sequences
        if longest > max_tokens_per_pass:
            notes.append(
                f"{task.name}: its longest example has {longest:,} tokens, more than max_tokens_per_pass "
                f"{max_tokens_per_pass:,}, and gets a pass of its own; raise it if memory allows"
            )
    return notes


def results_table(results: Results, tasks: Sequence[TaskData]) -> str:
    """Task, metric, value and number of validation rows, with the average in the last row."""
    num_rows = {task.name: task.validation.num_examples for task in tasks if task.validation}
    lines = [("task", "metric", "value", "rows")]
    for task, metrics in results.items():
        lines += [(task, name, f"{value:.4f}", f"{num_rows[task]:,}") for name, value in metrics.items()]
    lines.append(("average", "", f"{average(results):.4f}", ""))
    return format_table(lines)
