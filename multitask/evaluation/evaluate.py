"""Evaluation on validation rows; the result does not depend on the number of processes."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..data.packing import labels_of, pack, split_into_passes
from ..data.split import Split
from ..data.static_shapes import collate, split_statically, static_shape
from ..model.multitask import MultitaskModel
from ..tasks.base import TaskType
from ..tasks.calibration import Calibrated, calibrate
from ..tasks.load import TaskData
from ..tasks.metrics import Results
from ..training.signals import Stopped
from ..training.xla import end_graph

LOSS_ROWS = 1024  # at once, which bounds the memory for outputs of each token


Values = Sequence | NDArray  # predictions or references


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Args:
        results: metrics by task.
        losses: mean loss over the validation rows, by task.
        seconds: duration.
        calibrations: of the tasks that have one, as JSON values; see `Calibrated`.
    """

    results: Results
    losses: dict[str, float]
    seconds: float
    calibrations: dict[str, dict[str, Any]] = {}


class Evaluator:
    """Evaluates a run on its validation rows; all processes take part.

    Args:
        model: the model, not wrapped by Accelerate.
        tasks: of the run.
        tokenizer: the encoder's.
        accelerator: of the run.
        max_tokens_per_pass: limit of tokens at a time.
        static_shapes: see `compute_logits`.
        stop: returns the number of the signal that this process received, or 0.
        look: is called with each task, its logits, predictions and references.
    """

    def __init__(
        self,
        model: MultitaskModel,
        tasks: Sequence[TaskData],
        pad_token_id: int,
        accelerator: Accelerator,
        max_tokens_per_pass: int,
        static_shapes: bool,
        stop: Callable[[], int],
        look: Callable[[TaskData, NDArray[np.float32], Values, Values], object],
    ):
        self.model, self.tasks, self.pad_token_id, self.accelerator = model, tasks, pad_token_id, accelerator
        self.max_tokens_per_pass, self.static_shapes = max_tokens_per_pass, static_shapes
        self.stop, self.look = stop, look

    def run(self) -> Evaluation | None:
        """Evaluates all tasks; returns None if a signal arrived, and then has changed nothing."""
        self.model.eval()
        self.losses: dict[str, float] = {}
        self.calibrations: dict[str, dict[str, Any]] = {}
        started = time.perf_counter()
        try:
            with progress_bar(self.tasks, self.accelerator) as self.bar:
                results = evaluate_tasks(self.tasks, self._logits, self.look)
            return Evaluation(results, self.losses, time.perf_counter() - started, self.calibrations)
        except Stopped:
            return None
        finally:
            self.model.train()

    def _logits(self, task: TaskData, split: Split) -> NDArray[np.float32]:
        signal = torch.tensor(self.stop(), device=self.accelerator.device)
        if bool(self.accelerator.reduce(signal)):  # of any process; all agree
            raise Stopped
        logits = predict(
            self.model,
            task.name,
            split,
            self.accelerator,
            self.pad_token_id,
            self.max_tokens_per_pass,
            self.static_shapes,
            self.bar.update,
        )
        self.losses[task.name] = mean_loss(task.type, logits, split)
        if task.calibrate:
            self.calibrations[task.name] = calibrated(task, logits, split).to_json(task.labels)
        return logits


def calibrated(task: TaskData, logits: NDArray[np.float32], split: Split) -> Calibrated:
    """The calibration of a task on the rows of a split, whose logits are `predict`'s."""
    metrics = {name: task.type.metric(name, len(task.labels)) for name in task.metrics}
    references = np.asarray(task.type.references(split, task.labels))
    return calibrate(task.type.calibration_logits(logits, split), references, metrics)


def progress_bar(tasks: Sequence[TaskData], accelerator: Accelerator) -> tqdm:
    """A bar of the validation rows of all tasks, on the main process."""
    total = sum(len(task.validation) for task in tasks if task.validation)
    hidden = not accelerator.is_main_process
    # In the place of the bar of the training, if there is one; a log has no lines to go up to.
    return tqdm(total=total, desc="evaluating", unit="row", disable=hidden, leave=False, mininterval=0.5, position=0)


def mean_loss(task_type: TaskType, logits: NDArray[np.float32], split: Split) -> float:
    """The mean example loss over the rows of a split, without the task's weight.

    Args:
        task_type: the task's type.
        logits: of all rows, as returned by `predict`.
        split: labelled rows.
    """
    total, width = 0.0, logits.shape[1] if task_type.has_token_labels else 0
    for first in range(0, len(split), LOSS_ROWS):
        rows = np.arange(first, min(first + LOSS_ROWS, len(split)))
        total += float(task_type.loss(torch.from_numpy(logits[rows]), labels_of(split, rows, width)).sum())
    return total / len(split)


@torch.no_grad()  # XLA has no inference mode
def compute_logits(
    model: MultitaskModel,
    tasks: Sequence[str],
    split: Split,
    rows: NDArray,
    pad_token_id: int,
    max_tokens_per_pass: int,
    static_shapes: bool = False,
    num_passes: int = 0,
    done: Callable[[int], object] = lambda rows: None,
) -> dict[str, Tensor]:
    """Computes the logits of tasks that read the same sequences with the same adapters, in one run of the encoder.

    Args:
        model: in evaluation mode.
        tasks: names of the tasks.
        split: their rows.
        rows: numbers of the rows to compute.
        pad_token_id: fills `input_ids`.
        max_tokens_per_pass: limit of tokens at a time.
        static_shapes: whether to compute in the few shapes of `static_shapes.py`.
        num_passes: minimum number of passes, with static shapes.
        done: is called with the number of rows after each pass.

    Returns:
        For each task a tensor of shape (rows, outputs), or (rows, tokens, outputs) with zeros behind a sequence's end,
        in the order of `rows`.
    """
    device = next(model.parameters()).device
    by_length = rows[np.argsort(split.length[rows], kind="stable")]
    parts: dict[str, list[Tensor]] = {task: [] for task in tasks}
    computed: list[NDArray] = []
    if static_shapes:
        passes = split_statically(by_length, split, len(rows), max_tokens_per_pass)
        passes += [by_length[:0]] * (num_passes - len(passes))
    else:
        passes = [of_pass[""] for of_pass in split_into_passes({"": by_length}, {"": split}, max_tokens_per_pass)]
    for numbers in passes:
        if static_shapes:
            longest = int(split.length[numbers].max(initial=0))
            shape = static_shape(split, longest, len(rows), max_tokens_per_pass)
            inputs: Any = dict.fromkeys(tasks, collate(split, numbers, pad_token_id, shape)[0])
        else:
            inputs = pack({tasks[0]: numbers}, {tasks[0]: split}).inputs
            inputs = inputs._replace(spans=dict.fromkeys(tasks, inputs.spans[tasks[0]]))
        logits = model(send_to_device(inputs, device, non_blocking=True))
        end_graph()
        for task, of_task in logits.items():
            if of_task.ndim == 3:  # an output for each token
                of_task = F.pad(of_task, (0, 0, 0, int(split.length.max()) - of_task.shape[1]))
            # Rows that fill up a static shape are cut off on the host.
            parts[task].append(of_task.float().cpu()[: len(numbers)] if static_shapes else of_task.float())
        computed.append(numbers)
        done(len(numbers))
    order = np.concatenate(computed)
    sorter = np.argsort(order)
    back = torch.from_numpy(sorter[np.searchsorted(order, rows, sorter=sorter)])
    return {task: torch.cat(of_task)[back.to(of_task[0].device)].to(device) for task, of_task in parts.items()}


def predict(
    model: MultitaskModel,
    task: str,
    split: Split,
    accelerator: Accelerator,
    pad_token_id: int,
    max_tokens_per_pass: int,
    static_shapes: bool = False,
    done: Callable[[int], object] = lambda rows: None,
) -> NDArray[np.float32]:
    """Computes a task's logits for every row of a split on all processes.

    Device r of R computes rows r, r + R, r + 2R… in order of length. Results are gathered with the numbers of their
    rows, so none is lost or counted twice when the rows do not divide evenly.

    Args:
        done: is called with the approximate number of rows that all processes computed in a pass.

    Returns:
        Logits as `compute_logits` gives them, in the order of the split, the same on every process.

    Raises:
        FloatingPointError: if one of them is infinite or not a number.
    """
    by_length = np.argsort(split.length, kind="stable")
    # A device too many computes a row again.
    shares = [by_length[number :: accelerator.num_processes] for number in range(accelerator.num_processes)]
    shares = [share if len(share) else by_length[:1] for share in shares]
    own = shares[accelerator.process_index]
    most = max(len(split_statically(share, split, len(share), max_tokens_per_pass)) for share in shares)
    logits = compute_logits(
        model,
        [task],
        split,
        own,
        pad_token_id,
        max_tokens_per_pass,
        static_shapes,
        most,
        lambda rows: done(rows * accelerator.num_processes),
    )[task]
    numbers = torch.as_tensor(own.copy(), device=accelerator.device)
    every_number = accelerator.gather(accelerator.pad_across_processes(numbers, pad_index=-1)).cpu().numpy()
    every_logit = accelerator.gather(accelerator.pad_across_processes(logits)).cpu().numpy()
    in_order = np.full((len(split), *every_logit.shape[1:]), np.nan, np.float32)
    in_order[every_number[every_number >= 0]] = every_logit[every_number >= 0]
    assert len(np.unique(every_number[every_number >= 0])) == len(split), "a row was lost"
    if not np.isfinite(in_order).all():
        raise FloatingPointError(f"the outputs for task {task} are not finite; a lower learning rate often helps")
    return in_order


def evaluate_tasks(
    tasks: Sequence[TaskData],
    logits_of: Callable[[TaskData, Split], NDArray[np.float32]],
    look: Callable[[TaskData, NDArray[np.float32], Values, Values], object] = lambda *_: None,
) -> Results:
    """Computes all metrics of the tasks that have validation rows.

    Args:
        tasks: tasks to evaluate.
        logits_of: maps a task and its validation rows to logits, as returned by `predict`.
        look: as of `Evaluator`.
    """
    results: Results = {}
    for task in tasks:
        if task.validation is not None:
            logits = logits_of(task, task.validation)
            predictions = task.predictions(logits, task.validation)
            references = task.type.references(task.validation, task.labels)
            look(task, logits, predictions, references)
            results[task.name] = {}
            for name in task.metrics:
                metric = task.type.load_metric(name, len(task.labels))
                results[task.name] |= metric.compute(predictions=predictions, references=references)
    return results
