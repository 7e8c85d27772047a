"""Prediction with a trained model, from Python or on a file of rows."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm import tqdm

from ..checkpoints.format import find_checkpoint, load_checkpoint
from ..config.load import load_config
from ..config.schema import Config
from ..data.columns import Layout
from ..data.split import Split
from ..errors import UserError, hint
from ..evaluation.evaluate import compute_logits
from ..tasks.fields import fields_of, shared_layout
from ..tasks.load import as_split
from ..training.distributed import default_device
from .prediction_files import bad_rows_file, prediction_file, read_input

Answers = dict[str, dict[str, Any]]  # by task: {"rte": {"label": "entailment", "score": 0.9, …}}


CHUNK = 1024  # rows held in memory at a time


class Predictor:
    """Predicts rows for some or all tasks of a run.

        predictor = Predictor("runs/quickstart")
        predictor({"text": "Maria bought a trumpet.", "text_pair": "Maria bought an instrument."}, ["entailment"])

    A row has the fields that a task was trained on, or `text` and `text_pair` instead (`words` or `text` for token
    classification, `question` and `context` for question answering, `choices` for multiple choice). Tasks that read
    the same text with the same adapters share one forward pass of the encoder.

    Args:
        location: a checkpoint folder, or a run's folder, whose newest checkpoint is used.
        device: device to run on; None uses the accelerator if one is available, else the CPU.
        config: replaces the configuration stored in the checkpoint.

    Raises:
        UserError: if there is no checkpoint, or it cannot be read.
    """

    def __init__(self, location: str, device: torch.device | str | None = None, config: Config | None = None):
        folder = find_checkpoint(location)
        self.config = config or load_config(folder / "config.yaml")
        self.model, tasks, self.tokenizer = load_checkpoint(folder, self.config)
        self.model.to(device or default_device())
        self.tasks = {task.name: task for task in tasks}

    def __call__(
        self, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]], tasks: str | Sequence[str] | None = None
    ) -> Answers | list[Answers]:
        """Predictions for one row, or for several rows in order, for all tasks or the given ones.

        Raises:
            UserError: for an unknown task, or for a missing field, naming the row.
        """
        chosen = self.choose([tasks] if isinstance(tasks, str) else tasks)
        answers: list[Answers] = []
        for chunk in _chunks([rows] if isinstance(rows, Mapping) else rows, CHUNK):
            for answer in self.answer(chunk, chosen):
                if isinstance(answer, UserError):
                    raise UserError(f"row {len(answers)} {answer}")
                answers.append(answer)
        return answers[0] if isinstance(rows, Mapping) else answers

    def choose(self, tasks: Sequence[str] | None) -> list[str]:
        """The given tasks, or all.

        Raises:
            UserError: for an unknown task.
        """
        for name in tasks or ():
            if name not in self.tasks:
                raise UserError(f"tasks: there is no task '{name}'{hint(name, self.tasks, 'tasks')}")
        return list(tasks or self.tasks)

    def answer(self, rows: Sequence[Mapping[str, Any] | UserError], tasks: Sequence[str]) -> list[Answers | UserError]:
        """Predictions for a batch of rows; in place of a row that cannot be predicted, its `UserError`."""
        results: list[Any] = list(rows)
        readable: list[int] = []
        fields: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
        for place, row in enumerate(rows):
            if isinstance(row, UserError):
                continue
            try:
                of_row = {
                    task: fields_of(task, self.config.tasks[task], row, len(self.tasks[task].labels)) for task in tasks
                }
            except UserError as mistake:
                results[place] = mistake
                continue
            readable.append(place)
            results[place] = {}
            for task, found in of_row.items():
                fields[task].append(found)
        for group in self._groups(fields) if readable else ():
            sequences = next(iter(group.values()))
            logits = compute_logits(
                self.model,
                list(group),
                sequences,
                np.arange(len(sequences)),
                self.tokenizer.pad_token_id,
                self.config.training.max_tokens_per_pass,
            )
            for name, split in group.items():
                head = self.tasks[name]
                answers = head.answers(logits[name].cpu().numpy(), split)
                for place, answer in zip(readable, answers, strict=True):
                    results[place][name] = answer
        # In the order of `tasks`, however they were grouped.
        return [r if isinstance(r, UserError) else {task: r[task] for task in tasks} for r in results]

    def _groups(self, fields: dict[str, list[dict[str, Any]]]) -> list[dict[str, Split]]:
        """Groups of tasks that read the same sequences with the same adapters, each task with its encoded rows."""
        encoded: list[tuple[Any, Split]] = []
        groups: list[tuple[Split, list[str] | None, dict[str, Split]]] = []
        for name, rows in fields.items():
            layout = shared_layout(self.config.tasks[name], len(self.tasks[name].labels))
            what = (type(self.tasks[name].type).encode, layout, rows)
            split = next((split for known, split in encoded if known == what), None)
            if split is None:
                split = self._encode(name, layout, rows)
                encoded.append((what, split))
            adapters = self.model.adapters.get(name)
            same = (group for of, a, group in groups if a == adapters and split.has_sequences_of(of))
            group = next(same, None)
            if group is None:
                groups.append((split, adapters, group := {}))
            group[name] = split
        return [group for _, _, group in groups]

    def _encode(self, task: str, layout: Layout, rows: list[dict[str, Any]]) -> Split:
        columns = self.tasks[task].type.encode(
            {name: [row[name] for row in rows] for name in rows[0]},
            list(range(len(rows))),
            where=f"tasks.{task}:",
            layout=layout,
            tokenizer=self.tokenizer,
            max_length=self.config.model.max_length,
        )
        task_type = self.tasks[task].type
        return as_split(Dataset.from_dict(columns), task_type.num_sequences(layout), task_type, len(rows))


def predict_file(
    predictor: Predictor,
    tasks: Sequence[str],
    source: str,
    target: str,
    accelerator: Accelerator,
    skip_bad_rows: bool = False,
) -> tuple[int, int]:
    """Predicts the rows of a file in chunks on all processes, and writes the predictions in input order.

    Args:
        predictor: predictor of the run.
        tasks: names of the tasks to predict.
        source: JSON Lines, CSV or Parquet file, or "-" for JSON Lines on stdin.
        target: output file, whose suffix selects the format, or "-" for JSON Lines on stdout. Each line has the row's
            number, its own fields (`fields`) and the answers of each task.
        accelerator: process r of R predicts rows r, r + R, r + 2R… of each chunk.
        skip_bad_rows: skip rows that cannot be predicted and write them to `TARGET.bad.jsonl` with the reason.

    Returns:
        The number of rows predicted, and the number skipped.

    Raises:
        UserError: for a row that cannot be predicted, with its number; the rows before it are in `TARGET.partial`.
    """
    rank, size = accelerator.process_index, accelerator.num_processes
    num_answered = num_bad = 0
    bad_file = Path(bad_rows_file(target))
    if accelerator.is_main_process:
        bad_file.unlink(missing_ok=True)
    nowhere: AbstractContextManager = nullcontext(lambda rows: None)
    progress = tqdm(desc="predicting", unit="row", disable=not accelerator.is_main_process)
    with progress, prediction_file(target) if accelerator.is_main_process else nowhere as write:
        for rows in _chunks(read_input(source), CHUNK * size):
            answers: list[Any] = [None] * len(rows)
            with accelerator.autocast():
                found = gather_object([(rank, predictor.answer(rows[rank::size], tasks))])
            for process, of_process in found:
                answers[process::size] = of_process
            first = num_answered + num_bad
            lines: list[dict[str, Any]] = []
            bad: list[dict[str, Any]] = []
            for number, (row, answer) in enumerate(zip(rows, answers, strict=True), start=first):
                if not isinstance(answer, UserError):
                    lines.append({"row": number, "fields": dict(row)} | answer)
                elif skip_bad_rows:
                    bad.append({"row": number, "error": str(answer), "fields": None if row is answer else row})
                else:
                    write(lines)
                    raise UserError(
                        f"--input: {source} row {number} {answer}; --skip_bad_rows leaves such rows out "
                        f"({len(lines) + num_answered:,} answers before it are in {target}.partial)"
                    )
            write(lines)
            progress.update(len(rows))
            if bad and accelerator.is_main_process:
                with bad_file.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in bad)
            num_answered, num_bad = num_answered + len(lines), num_bad + len(bad)
        if not num_answered:
            raise UserError(f"--input: {source} has no row that can be answered ({num_bad:,} left out)")
    return num_answered, num_bad


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
