"""`TaskType`: what differs between types of tasks; each type has a file of its own beside this one."""

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from datasets import Value
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data import columns, split
from ..data.columns import Layout
from ..data.split import Split


class TaskType(ABC):
    """A type of task: how a row is read, the head, the loss, what is measured and shown.

    Everything that depends on the type asks it. A new type is a subclass in a file of its own and a line in the
    registry (`tasks/__init__.py`), or a call of `register`.

    Attributes:
        name: what the configuration calls it.
        auto_class: the `transformers` class that puts this head on an encoder.
        hub_name: what the hub calls it; also the name of a pipeline in `transformers`, where there is one.
        columns: types of the columns that `encode` adds to the sequences; `label` first.
        metrics: names of the metrics that can measure it, its usual ones first.
        num_default_metrics: how many of those it reports unless told otherwise.
        problem_type: what `transformers` calls it in a model's configuration.
    """

    name: ClassVar[str]
    auto_class: ClassVar[Any]
    hub_name: ClassVar[str]
    columns: ClassVar[dict[str, Any]] = {"label": Value("int64")}
    metrics: ClassVar[tuple[str, ...]]
    num_default_metrics: ClassVar[int] = 1
    problem_type: ClassVar[
        Literal["regression", "single_label_classification", "multi_label_classification"] | None
    ] = None

    @abstractmethod
    def encode(
        self,
        rows: dict[str, list],
        numbers: list[int],
        *,
        where: str,
        layout: Layout,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> dict[str, list]:
        """Tokenises a batch of rows.

        Args:
            rows: columns with one value a row.
            numbers: each row's number in its split, for error messages.
            where: the task and the split, for error messages.
            layout: where in a row the things are.
            tokenizer: the encoder's.
            max_length: in tokens; longer sequences are cut.

        Returns:
            `input_ids` and what else the encoder reads: a list of sequences a row; `label`, if it is known; `length`,
            tokens of the longest sequence; `tokens` of all sequences; `truncated`, how many sequences were cut; and
            the other columns of `columns`.

        Raises:
            UserError: naming the split and the row, for what is missing or cannot be read.
        """

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each example, shape (examples,); of the examples alone, not of their padding."""

    @abstractmethod
    def predictions(self, logits: NDArray, split: Split, names: Sequence[str]) -> Sequence | NDArray:
        """What the metrics take, one for each example.

        Args:
            logits: shape (rows, outputs) or (rows, tokens, outputs).
            split: the rows that they belong to.
            names: of the labels.
        """

    def references(self, split: Split, names: Sequence[str]) -> Sequence | NDArray:
        """What is right, in the form of `predictions`."""
        return np.asarray(split.rows["label"])

    @abstractmethod
    def answers(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
        """What a user is told, a mapping for each example; arguments as of `predictions`."""

    def outputs(self, labels: Sequence[str]) -> str:
        """What the plan says of the head's outputs."""
        return f"{len(labels)}"

    def source(self) -> str:
        """The code that turns rows into columns; what is cached of them is made anew when it changes."""
        modules = {cls.__module__ for cls in type(self).__mro__} - {"abc", "builtins"}
        modules |= {columns.__name__, split.__name__}
        return "".join(inspect.getsource(sys.modules[module]) for module in sorted(modules))


TASK_TYPES: dict[str, TaskType] = {}


def register(task_type: TaskType) -> TaskType:
    """Makes a type known under its name."""
    TASK_TYPES[task_type.name] = task_type
    return task_type


def example_losses(task_type: TaskType, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """The loss of each example, shape (examples,); of no example, an empty tensor that still depends on the head.

    Args:
        task_type: of the task.
        logits: of the batch.
        batch: as `collate` makes it; the loss of what is no row is 0.
    """
    losses = task_type.loss(logits.float(), batch["labels"]) if len(batch["labels"]) else logits.flatten()
    return losses * batch["is_row"] if "is_row" in batch else losses


def by_name(probabilities: NDArray, names: Sequence[str]) -> dict[str, float]:
    """Each label's probability."""
    return dict(zip(names, probabilities.tolist(), strict=True))


@dataclass(frozen=True)
class Task:
    """A task as a model sees it.

    Args:
        name: its name in the configuration.
        type: its head, loss and metrics.
        labels: names of the classes or labels; of the choices' positions; "start" and "end"; empty for regression.
        mean: mean of its training labels, where a regression begins.
    """

    name: str
    type: TaskType
    labels: tuple[str, ...]
    mean: float = 0.0
