"""The contenders: the same training with other tools, each well configured, on the same rows and model.

All have the same interface: `contender(options, warmup_steps, steps, folder)` trains on the rows of `steps` steps of
the run that `options` describe, after `warmup_steps` steps that are not timed, and returns the `seconds` and the
number of non-padding `tokens` of the timed steps.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from multitask.data.static_shapes import collate
from multitask.mixture.mixture import Rows
from multitask.tasks.base import example_losses
from multitask.training.distributed import keep_freed_memory
from multitask.training.optimizer import build_optimizer

from . import clocked, workload
from .workload import Workload

Measured = dict[str, float]
PREDECESSOR_BATCH_SIZE = 8  # as in its recipe


class OneTask(NamedTuple):
    """A batch of one task, as most multi-task recipes use in a step."""

    task: str
    inputs: dict[str, Tensor]
    labels: Tensor


def multitask(options: list[str], warmup_steps: int, steps: int, folder: Path) -> Measured:
    """This project: the real training loop with its logging. Also returns the process's `peak_bytes`."""
    run = clocked.train_anew(options, folder, warmup_steps + steps)
    tokens = workload.tokens(options, warmup_steps, warmup_steps + steps)
    return {
        "seconds": clocked.counted_seconds(run, warmup_steps),
        "tokens": tokens,
        "peak_bytes": run["peak_bytes"],
    }


def limit(options: list[str], warmup_steps: int, steps: int, folder: Path) -> Measured:
    """The upper limit: the model alone, on prepared dense batches of the same sizes, mean lengths and tokens.

    Forward, backward, clipping and update without padding, mask, loading or logging; freed memory is kept as in (a).
    """
    keep_freed_memory()
    load = workload.load(options)
    model, tasks = load.build_model().train(), {task.name: task for task in load.tasks}
    optimizer = build_optimizer(model, 1e-5, 0.01)
    batches, tokens = [], []
    for step in range(warmup_steps + steps):
        batches.append(_dense(load, load.mixture(step)))
        tokens.append(sum(b.inputs["input_ids"].numel() for b in batches[-1]))
    for step, batch in enumerate(batches):
        if step == warmup_steps:
            started = time.perf_counter()
        logits = model({of_task.task: of_task.inputs for of_task in batch})
        sums = [
            tasks[name].weight * example_losses(tasks[name].type, logits[name], labels).sum()
            for name, _, labels in batch
        ]
        (sum(sums) / load.config.training.batch_size).backward()
        nn.utils.clip_grad_norm_(model.parameters(), load.config.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return {"seconds": time.perf_counter() - started, "tokens": sum(tokens[warmup_steps:])}


def _dense(load: Workload, rows: dict[str, Rows]) -> list[OneTask]:
    """Batches with as many sequences of each task as in `rows`, all of the rows' mean length."""
    batch = []
    for task in load.tasks:
        if not len(of_task := rows[task.name]):
            continue
        mean = round(task.train.tokens[of_task].sum() / (len(of_task) * task.train.sequences))
        like, labels = collate(task.train, of_task, load.tokenizer.pad_token_id)
        shape = (*like["input_ids"].shape[:-1], mean)
        ids = torch.from_numpy(np.resize(like["input_ids"][like["attention_mask"].bool()], shape))
        inputs = {name: torch.zeros(shape, dtype=torch.int64) for name in like if name == "token_type_ids"}
        batch.append(OneTask(task.name, {"input_ids": ids} | inputs, labels))
    return batch


def predecessor(options: list[str], warmup_steps: int, steps: int, folder: Path) -> Measured:
    """The recipe of this project's predecessor: rows padded to the maximum length, 8 rows of one task per step."""
    load = workload.load(options)
    model = load.build_model().train()
    optimizer = build_optimizer(model, 1e-5, 0.01)
    scheduler = transformers.get_scheduler("linear", optimizer, 10, 1000)
    types = {task.name: task.type for task in load.tasks}

    def train(rows: dict[str, Rows]) -> int:
        tokens = 0
        for task, inputs, labels in _padded_batches(load, rows):
            tokens += int(inputs["attention_mask"].sum())
            loss = example_losses(types[task], model({task: inputs})[task], labels).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            loss.item()  # for the log
        return tokens

    train(load.rows(0, 1))
    batches = load.rows(warmup_steps, warmup_steps + steps)
    started = time.perf_counter()
    tokens = train(batches)
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


def _padded_batches(load: Workload, rows: dict[str, Rows]) -> Iterator[OneTask]:
    loaders = {}
    for task in load.tasks:
        inputs, labels = collate(task.train, rows[task.name], load.tokenizer.pad_token_id)
        missing = load.config.model.max_length - inputs["input_ids"].shape[-1]
        data = TensorDataset(*(nn.functional.pad(column, (0, missing)) for column in inputs.values()), labels)
        loaders[task.name] = list(inputs), DataLoader(data, PREDECESSOR_BATCH_SIZE, shuffle=True)
    order = [name for name, (_, loader) in loaders.items() for _ in range(len(loader))]
    batches = {name: iter(loader) for name, (_, loader) in loaders.items()}
    for name in np.random.default_rng(0).permutation(order):
        *columns, labels = next(batches[name])
        yield OneTask(str(name), dict(zip(loaders[name][0], columns, strict=True)), labels)


def trainer(options: list[str], warmup_steps: int, steps: int, folder: Path, batch_size: int) -> Measured:
    """The Trainer of `transformers`: batches of one task, padded to their longest."""
    return train_with_trainer(options, warmup_steps, steps, folder, batch_size, is_grouped=False)


def grouped_trainer(options: list[str], warmup_steps: int, steps: int, folder: Path, batch_size: int) -> Measured:
    """The same with rows grouped by length, as its `group_by_length` does: no goal, but what one would try next."""
    return train_with_trainer(options, warmup_steps, steps, folder, batch_size, is_grouped=True)


class _LossModel(nn.Module):
    """A model that returns its loss, as the Trainer requires."""

    def __init__(self, load: Workload):
        super().__init__()
        self.model, self.types = load.build_model(), {task.name: task.type for task in load.tasks}

    def forward(self, task: str, labels: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        logits = self.model({task: inputs})[task]
        return {"loss": example_losses(self.types[task], logits, labels).mean(), "logits": logits}


class _Batches(torch.utils.data.Dataset):
    """Batches of rows of one task, collated on access."""

    def __init__(self, load: Workload, batches: list[tuple[str, Rows]]):
        self.splits = {task.name: task.train for task in load.tasks}
        self.batches, self.pad_token_id = batches, load.tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        task, rows = self.batches[index]
        inputs, labels = collate(self.splits[task], rows, self.pad_token_id)
        return {"task": task, "labels": labels, **inputs}


class _Clock(transformers.TrainerCallback):
    def __init__(self, after_batch: Callable[[int], object]) -> None:
        self.marks: list[float] = []
        self.after_batch = after_batch

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.after_batch(len(self.marks) + 1)
        self.marks.append(time.perf_counter())


def train_with_trainer(
    options: list[str],
    warmup_steps: int,
    steps: int,
    folder: Path,
    batch_size: int,
    is_grouped: bool,
    on_gpu: bool = False,
    more_steps: int = 0,
    after_batch: Callable[[int, int], object] = lambda batch, counted: None,
) -> Measured:
    """The Trainer on the rows of some steps.

    Args:
        options: of the run.
        warmup_steps: that are not counted.
        steps: that are.
        folder: for its output.
        batch_size: rows in a batch, all of one task.
        is_grouped: whether a batch's rows are of about one length.
        on_gpu: in bf16 there, with batches prepared by two workers; otherwise on the CPU.
        more_steps: that follow, not counted.
        after_batch: gets the number of a batch, 0 for the last that counts, and how many count.
    """
    load = workload.load(options)
    splits = {task.name: task.train for task in load.tasks}
    rng = np.random.default_rng(load.config.training.seed)

    def batches_of(rows: dict[str, Rows]) -> list[tuple[str, Rows]]:
        batches = []
        for task, of_task in rows.items():
            if is_grouped:
                of_task = of_task[np.argsort(splits[task].length[of_task], kind="stable")]
            batches += [(task, of_task[i : i + batch_size]) for i in range(0, len(of_task), batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    total = warmup_steps + steps
    warmup, sample = batches_of(load.rows(0, warmup_steps)), batches_of(load.rows(warmup_steps, total))
    more = batches_of(load.rows(total, total + more_steps)) if more_steps else []
    batches = _Batches(load, warmup + sample + more)

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self) -> DataLoader:
            # On a CPU in the loop, as (a) does.
            data = DataLoader(batches, batch_size=None, num_workers=2 * on_gpu, pin_memory=on_gpu)
            return self.accelerator.prepare(data) if on_gpu else data

    clock = _Clock(lambda done: after_batch(done - len(warmup) - len(sample), len(sample)))
    Trainer(
        model=_LossModel(load),
        args=transformers.TrainingArguments(
            output_dir=str(folder),
            use_cpu=not on_gpu,
            bf16=on_gpu,
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            learning_rate=1e-5,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
        ),
        train_dataset=batches,
        callbacks=[clock],
    ).train()
    tokens = sum(int(splits[task].tokens[rows].sum()) for task, rows in sample)
    seconds = clock.marks[len(warmup) + len(sample) - 1] - clock.marks[len(warmup) - 1]
    return {"seconds": seconds, "tokens": tokens}
