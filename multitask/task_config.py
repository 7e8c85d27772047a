"""What the configuration says of one task."""

from dataclasses import dataclass, field
from typing import Literal

FILE_FORMATS = {"csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}  # to what `datasets` calls them
TaskTypeName = Literal[
    "regression",
    "classification",
    "multiple_choice",
    "multi_label_classification",
    "token_classification",
    "question_answering",
]
MetricName = Literal[
    "accuracy",
    "exact_match",
    "f1",
    "f1_macro",
    "f1_micro",
    "matthews_correlation",
    "mse",
    "pearson",
    "precision",
    "recall",
    "spearmanr",
]


@dataclass(frozen=True)
class TaskConfig:
    """One task: where its rows come from, which columns it reads, how it is measured.

    Args:
        type: What the head predicts: a number, a class, which of several choices is right, any number of labels,
            a label for each word, or the part of a context that answers a question.
        dataset: Hub id, local folder, or the format of `data_files`: csv, json (also JSON Lines) or parquet.
        inputs: One or two columns with text; dots lead into nested rows (`question.stem`). For token_classification
            the column with the list of words; for question_answering those of the question and its context.
        subset: The dataset's configuration, where it has several.
        data_files: Local files per split, `{train: FILE, validation: FILE}`.
        train_split: Split to train on.
        validation_split: Split to evaluate on; null evaluates on none.
        label: Column with the number, the class, the right choice, the list of labels, the list with a label for each
            word, or the answers (as SQuAD has them, or a text).
        choices: For multiple_choice: a column that holds the list of choices, or a list of columns, one a choice.
        choice_labels: For multiple_choice: column with the choices' names, among which `label` is looked up;
            without it `label` is the index of the right choice, from 0.
        metrics: Metrics of the evaluation; empty takes the type's own.
        weight: Factor on the loss of each of this task's examples.
        learning_rate: Peak of the schedule for the task's head and its own adapter; null takes training.learning_rate.
        patience: Stop training the task after so many evaluations in a row in which the mean of its metrics did not
            become better than ever before; its share goes to the others. Null never stops it.
        max_train_examples: Use only the first so many rows for training.
        max_eval_examples: Use only the first so many rows for evaluation.
        adapter: Folder of a PEFT LoRA adapter that this task's own adapter starts from.
    """

    type: TaskTypeName
    dataset: str
    inputs: list[str]
    subset: str | None = None
    data_files: dict[str, str | list[str]] | None = None
    train_split: str = "train"
    validation_split: str | None = "validation"
    label: str = "label"
    choices: str | list[str] | None = None
    choice_labels: str | None = None
    metrics: list[MetricName] = field(default_factory=list)
    weight: float = 1.0
    learning_rate: float | None = None
    patience: int | None = None
    max_train_examples: int | None = None
    max_eval_examples: int | None = None
    adapter: str | None = None
