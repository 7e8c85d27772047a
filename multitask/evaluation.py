"""How good the model is on each task's validation rows: exact on any number of processes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch.nn import functional as F

from .batches import collate, split_into_passes
from .data import Split, TaskData
from .metrics import load_metric
from .model import MultitaskModel

# Metrics of each task: {"rte": {"accuracy": 0.61}}.
Results = dict[str, dict[str, float]]


@torch.inference_mode()
def predict(
    model: MultitaskModel,
    task: str,
    split: Split,
    accelerator: Accelerator,
    pad_token_id: int,
    max_tokens_per_pass: int,
) -> NDArray[np.float32]:
    """The task's logits for every row of a split.

    Device r of R computes rows r, r + R, r + 2R… in order of length. A result travels with its row's number, so that
    none is lost or counted twice, however the rows divide.

    Returns:
        Logits of shape (rows, outputs), or (rows, tokens, outputs) with zeros behind a sequence's end, in the order of
        the split, the same on every process.

    Raises:
        FloatingPointError: if one of them is infinite or not a number.
    """
    by_length = np.argsort(split.length, kind="stable")
    own = by_length[accelerator.process_index :: accelerator.num_processes]
    own = own if len(own) else by_length[:1]  # a device too many computes a row again
    logits, numbers = [], []
    for part in split_into_passes({task: own}, {task: split}, max_tokens_per_pass):
        inputs = send_to_device(collate(split, part[task], pad_token_id)["inputs"], accelerator.device)
        of_part = model({task: inputs})[task].float()
        if of_part.ndim == 3:  # an output for each token
            of_part = F.pad(of_part, (0, 0, 0, int(split.length.max()) - of_part.shape[1]))
        logits.append(of_part)
        numbers.append(torch.as_tensor(part[task].copy(), device=accelerator.device))
    every_number = accelerator.gather(accelerator.pad_across_processes(torch.cat(numbers), pad_index=-1)).cpu().numpy()
    every_logit = accelerator.gather(accelerator.pad_across_processes(torch.cat(logits))).cpu().numpy()
    in_order = np.full((len(split), *every_logit.shape[1:]), np.nan, np.float32)
    in_order[every_number[every_number >= 0]] = every_logit[every_number >= 0]
    assert len(np.unique(every_number[every_number >= 0])) == len(split), "a row was lost"
    if not np.isfinite(in_order).all():
        raise FloatingPointError(f"the outputs for task {task} are not finite; a lower learning rate often helps")
    return in_order


def evaluate_tasks(tasks: Sequence[TaskData], logits_of: Callable[[TaskData, Split], NDArray[np.float32]]) -> Results:
    """Every metric of every task that has validation rows.

    Args:
        tasks: those to evaluate.
        logits_of: (task, its validation rows) -> logits as `predict` returns them.
    """
    results: Results = {}
    for task in tasks:
        if task.validation is not None:
            logits = logits_of(task, task.validation)
            predictions = task.type.predictions(logits, task.validation, task.labels)
            references = task.type.references(task.validation, task.labels)
            results[task.name] = {}
            for name in task.metrics:
                metric = load_metric(task.type.name, name, len(task.labels))
                results[task.name] |= metric.compute(predictions=predictions, references=references)
    return results


def average(results: Results) -> float:
    """The mean over tasks of the mean of each task's metrics, as GLUE averages; NaN without any."""
    return float(np.mean([float(np.mean(list(metrics.values()))) for metrics in results.values()] or [np.nan]))
