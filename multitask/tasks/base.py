"""`TaskType`: what differs between types of tasks; each type has a file of its own beside this one."""

import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Value
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config.schema import TASK_RULES, TaskConfig
from ..data import columns, split
from ..data.columns import Layout
from ..data.split import Split
from ..errors import UserError
from .calibration import NONE as NO_CALIBRATION
from .calibration import Calibration
from .labels import column_labels, labelled_rows
from .losses import PLAIN, LossOptions
from .metrics import LocalMetric
from .pictures import Judged


class TaskType(ABC):
    """A type of task: how it reads rows, its head, loss, metrics and error analysis.

    All type-specific behaviour is defined here. To add a type, write a subclass in its own module and add it to the
    registry (`tasks/__init__.py`), or call `register`.

    Attributes:
        name: its name in the configuration.
        auto_class: the `transformers` auto class with this head.
        hub_name: its task name on the hub; also its pipeline in `transformers`, if there is one.
        columns: types of the columns that `encode` adds to the sequences; `label` first.
        metrics: names of the supported metrics, default ones first.
        num_default_metrics: how many of `metrics` are reported by default.
        prediction: `datasets` type of a prediction that a metric takes.
        reference: `datasets` type of a reference that a metric takes.
        num_inputs: minimum and maximum number of columns in `inputs`.
        inputs_wanted: describes these columns in error messages.
        input_names: alternative names of each input in rows to predict; the first is the same for all tasks.
        reads_choices: whether the configuration names columns of choices.
        several_sequences: whether the head takes rows of several sequences, shape (rows, sequences, tokens).
        has_token_labels: whether a row has a label for each of its tokens.
        has_label_names: whether `label_names` may name its labels.
        takes_label_columns: whether `label` may be several columns, one for each label.
        has_teachers: whether a teacher's predictions can be mixed with the labels.
        is_calibrated: whether `calibrate` means something: its logits give probabilities of classes or labels.
        loss_options: settings of the loss that `loss` takes.
        answer_types: Arrow types of the fields that `answers` returns, except probabilities.
        problem_type: `problem_type` in the model's `transformers` configuration.
    """

    name: ClassVar[str]
    auto_class: ClassVar[Any]
    hub_name: ClassVar[str]
    columns: ClassVar[dict[str, Any]] = {"label": Value("int64")}
    metrics: ClassVar[tuple[str, ...]]
    num_default_metrics: ClassVar[int] = 1
    prediction: ClassVar[Any] = Value("int64")
    reference: ClassVar[Any] = Value("int64")
    num_inputs: ClassVar[tuple[int, int]] = (1, 2)
    inputs_wanted: ClassVar[str] = "one or two are possible"
    input_names: ClassVar[tuple[tuple[str, ...], ...]] = (("text",), ("text_pair",))
    reads_choices: ClassVar[bool] = False
    several_sequences: ClassVar[bool] = False
    has_token_labels: ClassVar[bool] = False
    has_label_names: ClassVar[bool] = True
    takes_label_columns: ClassVar[bool] = False
    has_teachers: ClassVar[bool] = False
    is_calibrated: ClassVar[bool] = False
    loss_options: ClassVar[tuple[str, ...]] = ()
    answer_types: ClassVar[dict[str, pa.DataType]] = {"label": pa.string(), "score": pa.float64()}
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
            rows: columns with one value per row.
            numbers: row numbers in the split, for error messages.
            where: task and split, for error messages.
            layout: the columns to read.
            tokenizer: the encoder's.
            max_length: maximum tokens; longer sequences are truncated.

        Returns:
            `input_ids` and what else the encoder reads: a list of sequences a row; `label`, if it is known; `length`,
            tokens of the longest sequence; `tokens` of all sequences; `truncated`, how many sequences were cut; and
            the other columns of `columns`.

        Raises:
            UserError: naming the split and the row, for what is missing or cannot be read.
        """

    def num_sequences(self, layout: Layout) -> int:
        """Sequences in a row."""
        return layout.num_choices or 1

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, options: LossOptions = PLAIN) -> Tensor:
        """The loss of each example, shape (examples,); padding does not count.

        Types without `loss_options` are never given `options`.
        """

    def targets(self, logits: NDArray, split: Split) -> tuple[NDArray, NDArray]:
        """Labels and a teacher's predictions as `data.split.Targets` has them; only for types that `has_teachers`.

        Args:
            logits: the teacher's, shape (rows, outputs).
            split: the rows.
        """
        raise NotImplementedError

    def class_counts(self, split: Split, labels: Sequence[str]) -> NDArray[np.int64] | None:
        """How often each class or label is the right one; None where there are no classes."""
        return None

    def calibration_logits(self, logits: NDArray, split: Split) -> NDArray:
        """The logits that are calibrated; only for types with `is_calibrated`."""
        return logits

    @abstractmethod
    def predictions(self, logits: NDArray, split: Split, names: Sequence[str]) -> Sequence | NDArray:
        """Predictions in the form that the metrics take, one per example.

        Args:
            logits: shape (rows, outputs) or (rows, tokens, outputs).
            split: their rows.
            names: names of the labels.
        """

    def references(self, split: Split, names: Sequence[str]) -> Sequence | NDArray:
        """The references, in the form of `predictions`."""
        return split.row_labels

    @abstractmethod
    def answers(self, logits: NDArray, split: Split, names: Sequence[str]) -> list[dict[str, Any]]:
        """The answers of `--mode predict` and `Predictor`, a mapping per example; arguments as for `predictions`."""

    @abstractmethod
    def metric(self, name: str, num_labels: int) -> Callable[..., float]:
        """One of `metrics` as a function of (references, predictions)."""

    def load_metric(self, name: str, num_labels: int) -> LocalMetric:
        """The same as an `evaluate.Metric`."""
        return LocalMetric(name, self.metric(name, num_labels), self.prediction, self.reference)

    def measurable(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The metrics that can measure these labels."""
        return self.metrics

    def label_names(self, name: str, config: TaskConfig, train: Dataset) -> tuple[str, ...]:
        """Names of a task's labels; empty for a number.

        Raises:
            UserError: if the column has fewer than two labels.
        """
        return tuple(config.label_names) if config.label_names else column_labels(name, config, train)

    def label_numbers(
        self, config: TaskConfig, labels: Sequence[str], feature: Any, values: Callable[[], list]
    ) -> dict[str, int]:
        """The number of each label, by its text in the rows of a split.

        Args:
            config: of the task.
            labels: names of the task's labels.
            feature: type of the split's label; of lists, of their items.
            values: gives the distinct labels of all splits.
        """
        by_name = {label: number for number, label in enumerate(labels)}
        if isinstance(feature, ClassLabel):  # splits may number the same names differently
            return {str(number): by_name[name] for number, name in enumerate(feature.names) if name in by_name}
        return {str(number): number for number in range(len(labels))} | by_name if config.label_names else by_name

    def is_dense(self, config: TaskConfig, train: Dataset) -> bool:
        """Whether a row's label is a list with a number for each label."""
        return False

    def label_columns(self, is_dense: bool) -> dict[str, Any]:
        """`columns`, which differ where a row's label is a number for each label."""
        return self.columns

    def stand_in(self, label: Any, row: dict[str, Any], config: TaskConfig) -> Any:
        """A label for a row that has none, because it is read for other tasks too; it counts nowhere.

        Args:
            label: of another row.
            row: that has no label.
            config: of the task.
        """
        return label

    def labelled(self, dataset: Dataset, config: TaskConfig, labels: Sequence[str]) -> NDArray[np.bool_]:
        """Which rows have a label; the others are left out and counted."""
        return labelled_rows(dataset, config.label_column, tuple(labels))

    def check_config(self, key: str, config: TaskConfig) -> None:
        """Checks that a task's configuration fits this type.

        Args:
            key: key of the task, for the error message.
            config: of the task.

        Raises:
            UserError: naming the key.
        """
        few, most = self.num_inputs
        if not few <= len(config.inputs) <= most:
            raise UserError(f"{key}.inputs: {len(config.inputs)} columns given, {self.inputs_wanted}")
        if self.reads_choices and not config.choices:
            raise UserError(f"{key}.choices: missing; type {self.name} needs the column(s) that hold the choices")
        if isinstance(config.label, list) and not self.takes_label_columns:
            known = ", ".join(name for name, type_ in TASK_TYPES.items() if type_.takes_label_columns)
            raise UserError(f"{key}.label: type {self.name} reads one column; {known} take several")
        if isinstance(config.label, list) and len({*config.label}) < max(2, len(config.label)):
            raise UserError(f"{key}.label: {config.label} must be two or more different columns")
        if config.label_names and isinstance(config.label, list) and len(config.label_names) != len(config.label):
            raise UserError(
                f"{key}.label_names: {len(config.label_names)} names for {len(config.label)} columns ({key}.label)"
            )
        if config.label_names is not None and not self.has_label_names:
            raise UserError(f"{key}.label_names: has no effect with type {self.name}")
        if config.label_names is not None and len({*config.label_names}) < max(2, len(config.label_names)):
            raise UserError(f"{key}.label_names: {config.label_names} must be two or more different names")
        for option in {"class_weights", "label_smoothing_factor", "focal_gamma"} - {*self.loss_options}:
            if getattr(config, option):
                known = ", ".join(name for name, type_ in TASK_TYPES.items() if option in type_.loss_options)
                raise UserError(f"{key}.{option}: has no effect with type {self.name}; it belongs to {known}")
        if config.teacher and not self.has_teachers:
            known = ", ".join(name for name, type_ in TASK_TYPES.items() if type_.has_teachers)
            raise UserError(f"{key}.teacher: has no effect with type {self.name}; it belongs to {known}")
        if config.calibrate and not self.is_calibrated:
            known = ", ".join(name for name, type_ in TASK_TYPES.items() if type_.is_calibrated)
            raise UserError(f"{key}.calibrate: has no effect with type {self.name}; it belongs to {known}")
        if config.calibrate and config.validation_split is None:
            raise UserError(f"{key}.calibrate: needs validation rows, and {key}.validation_split is null")
        if config.teacher and config.focal_gamma:
            raise UserError(f"{key}.focal_gamma: needs one right class, and {key}.teacher gives probabilities")
        for option in () if self.reads_choices else ("choices", "choice_labels"):
            if getattr(config, option):
                raise UserError(f"{key}.{option}: has no effect with type {self.name}; it belongs to multiple_choice")

    def log_label_space(self, labels: Sequence[str], train: Split) -> float:
        """The loss of a uniform guess, by which MUPPET divides losses; 1 for a number."""
        return math.log(max(2, len(labels)))

    def read_input(self, value: Any, field: str, task: str) -> Any:
        """Checks an input of a row to predict and returns it.

        Raises:
            UserError: if it is not an input; the message continues "row N".
        """
        if isinstance(value, (list, dict, bytes)):
            raise UserError(f"holds a {type(value).__name__} in field '{field}', not a text for task {task}")
        return value

    @abstractmethod
    def look(self, split: Split, logits: NDArray, labels: Sequence[str]) -> tuple[dict[str, Any], Judged]:
        """A summary of the predictions (see `error_analysis.describe`) and a judgement of each row, for the report."""

    def shown_label(self, label: str, row: dict[str, Any], layout: Layout) -> str:
        """A label, formatted for reading.

        Args:
            label: label as returned by `look`.
            row: its row of the dataset.
            layout: the columns to read.
        """
        return label

    @abstractmethod
    def usage(self, name: str, num_inputs: int) -> str:
        """Python code that uses an exported model, for its card."""

    def outputs(self, labels: Sequence[str]) -> str:
        """The head's outputs, for the plan of the run."""
        return f"{len(labels)}"

    def source(self) -> str:
        """The source code of the encoding; cached rows are encoded again when it changes."""
        modules = {cls.__module__ for cls in type(self).__mro__} - {"abc", "builtins"}
        modules |= {columns.__name__, split.__name__}
        return "".join(inspect.getsource(sys.modules[module]) for module in sorted(modules))


TASK_TYPES: dict[str, TaskType] = {}


def register(task_type: TaskType) -> TaskType:
    """Registers a type under its name."""
    TASK_TYPES[task_type.name] = task_type
    TASK_RULES[task_type.name] = task_type.check_config
    return task_type


def example_losses(
    task_type: TaskType,
    logits: Tensor,
    labels: Tensor,
    is_row: Tensor | None = None,
    options: LossOptions = PLAIN,
) -> Tensor:
    """The loss of each example, shape (examples,); of no example, an empty tensor that still depends on the head.

    Args:
        task_type: of the task.
        logits: of the examples.
        labels: of the examples, as `data.packing.Pass` has them.
        is_row: false for examples that do not count; their loss is 0.
        options: of the task's loss; only for types that have `loss_options`.
    """
    special = [] if options == PLAIN else [options]
    losses = task_type.loss(logits.float(), labels, *special) if len(labels) else logits.flatten()
    return losses if is_row is None else losses * is_row


def pipeline_usage(hub_name: str, name: str, call: str) -> str:
    """The code of a pipeline in `transformers`, and a call of it."""
    return f'from transformers import pipeline\n\npipe = pipeline("{hub_name}", model="{name}")\n{call}'


def model_usage(auto_class: Any, name: str, code: str) -> str:
    """The code that loads a model and its tokenizer, and what to do with them."""
    auto = auto_class.__name__
    return (
        f"from transformers import {auto}, AutoTokenizer\n\n"
        f'model = {auto}.from_pretrained("{name}")\ntokenizer = AutoTokenizer.from_pretrained("{name}")\n{code}'
    )


def example_texts(num_inputs: int) -> str:
    """One text or two for the code on a card."""
    return '{"text": "One text.", "text_pair": "Another."}' if num_inputs == 2 else '"A text."'


def by_name(probabilities: NDArray, names: Sequence[str]) -> dict[str, float]:
    """Each label's probability."""
    return dict(zip(names, probabilities.tolist(), strict=True))


@dataclass(frozen=True)
class Task:
    """A task as the model needs it.

    Args:
        name: its name in the configuration.
        type: its head, loss and metrics.
        labels: names of the classes or labels; of the choices' positions; "start" and "end"; empty for regression.
        mean: mean training label, the initial bias of a regression head.
        rows: what its rows are called, if several tasks read them.
        calibration: of a trained model.
    """

    name: str
    type: TaskType
    labels: tuple[str, ...]
    mean: float = 0.0
    rows: str | None = None
    calibration: Calibration = NO_CALIBRATION

    def predictions(self, logits: NDArray, split: Split) -> Sequence | NDArray:
        """Calibrated predictions in the form that the metrics take, as `TaskType.predictions`."""
        return self.type.predictions(self.calibration.applied(logits), split, self.labels, *self._thresholds())

    def answers(self, logits: NDArray, split: Split) -> list[dict[str, Any]]:
        """Calibrated answers of `--mode predict` and `Predictor`, a mapping per example."""
        return self.type.answers(self.calibration.applied(logits), split, self.labels, *self._thresholds())

    def _thresholds(self) -> list[Sequence[float]]:
        """The last argument of types whose labels have thresholds."""
        return [] if self.calibration.thresholds is None else [self.calibration.thresholds]

    @property
    def stream(self) -> str:
        """The stream of rows that the mixture draws from: its own, or that of several tasks."""
        return self.rows or self.name


def streams_of(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """The tasks that read each stream of rows."""
    streams: dict[str, list[str]] = {}
    for task in tasks:
        streams.setdefault(task.stream, []).append(task.name)
    return streams
