"""The configuration: frozen dataclasses, named as in `transformers.TrainingArguments` wherever it has the thing."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import yaml

FILE_FORMATS = {"csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}  # to what `datasets` calls them


# Names of metrics. As this and the next are of a higher floor, `tasks/` fills them.
METRIC_NAMES: set[str] = set()


@dataclass(frozen=True)
class TaskConfig:
    """One task: where its rows come from, which columns it reads, how it is measured.

    Args:
        type: What the head predicts: a number (regression), a class (classification), which of several choices is
            right (multiple_choice), any number of labels (multi_label_classification), a label for each word
            (token_classification), or the part of a context that answers a question (question_answering).
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
        metrics: Metrics of the evaluation, such as accuracy, f1, pearson or mse; empty takes the type's own.
        weight: Factor on the loss of each of this task's examples.
        learning_rate: Peak of the schedule for the task's head and its own adapter; null takes training.learning_rate.
        patience: Stop training the task after so many evaluations in a row in which the mean of its metrics did not
            become better than ever before; its share goes to the others. Null never stops it.
        max_train_examples: Use only the first so many rows for training.
        max_eval_examples: Use only the first so many rows for evaluation.
        adapter: Folder of a PEFT LoRA adapter that this task's own adapter starts from.
    """

    type: str
    dataset: str
    inputs: list[str]
    subset: str | None = None
    data_files: dict[str, str | list[str]] | None = None
    train_split: str = "train"
    validation_split: str | None = "validation"
    label: str = "label"
    choices: str | list[str] | None = None
    choice_labels: str | None = None
    metrics: list[str] = field(default_factory=list)
    weight: float = 1.0
    learning_rate: float | None = None
    patience: int | None = None
    max_train_examples: int | None = None
    max_eval_examples: int | None = None
    adapter: str | None = None


TrackerName = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]


# By type of task, what refuses a configuration: (its key, its configuration) -> None.
TASK_RULES: dict[str, Callable[[str, TaskConfig], None]] = {}


@dataclass(frozen=True)
class ModelConfig:
    """The shared encoder.

    Args:
        encoder: Hub id, local folder, or `package://NAME/FOLDER` inside an installed Python package.
        max_length: Longest sequence in tokens; longer ones are cut, the longest part first.
        dropout: Dropout probability everywhere in the encoder and the heads; null keeps the encoder's own.
        freeze_encoder: Train the heads alone; with adapters the encoder is frozen anyway.
    """

    encoder: str
    max_length: int = 128
    dropout: float | None = None
    freeze_encoder: bool = False


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA adapters in a frozen encoder.

    Args:
        rank: Rank of what is added to each weight matrix.
        alpha: What is added is scaled by alpha / rank.
        dropout: Dropout probability on the adapters' input.
        target_modules: `all-linear`, or the ends of names of linear modules in the encoder, `[query, value]`.
        scope: One adapter for each task (per_task), one for all (shared), or one of each, summed (both).
        merge: Export each task as a plain model with its LoRA merged in; false leaves adapter and head alone,
            without a copy of the encoder.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    scope: Literal["per_task", "shared", "both"] = "per_task"
    merge: bool = True


@dataclass(frozen=True)
class MixtureConfig:
    """How many of a step's examples each task gets.

    Args:
        sampling: Shares by number of rows (proportional), the same for all (uniform), rows to the power 1/temperature
            (temperature), the same for all but where max_epochs forbids it (unimax), or as given (weights).
        temperature: For sampling temperature: 1 is proportional; the higher, the more uniform.
        final_temperature: The temperature changes evenly over the run to this one; null keeps it.
        cap: For sampling proportional and temperature: a task with more rows counts as if it had so many.
        max_epochs: For sampling unimax: how often a task's rows are seen in the run at most.
        weights: For sampling weights: one number a task; a task with 0 is evaluated but not trained.
    """

    sampling: Literal["proportional", "uniform", "temperature", "unimax", "weights"] = "proportional"
    temperature: float | None = None
    final_temperature: float | None = None
    cap: int | None = None
    max_epochs: float | None = None
    weights: dict[str, float] | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation; names are those of `transformers.TrainingArguments`.

    Args:
        output_dir: Folder of the run.
        overwrite_output_dir: Remove an earlier run in `output_dir` and begin anew.
        init_from_checkpoint: A run's folder, or a checkpoint, whose encoder and heads a new run begins with; heads of
            tasks that have the same name and labels. Everything else begins anew.
        seed: Seed of the heads, the order of the data and dropout.
        full_determinism: Deterministic kernels on a GPU, so that a run that is repeated or resumed gives the same
            numbers bit for bit; slower. On a CPU it always does.
        num_train_epochs: Passes over all tasks' rows together; `max_steps` takes precedence.
        max_steps: Optimizer steps.
        batch_size: Examples in one step, over all devices and all tasks.
        max_tokens_per_pass: A device's share of a step that holds more tokens is split into several passes.
        learning_rate: Peak of the schedule.
        weight_decay: AdamW's, on weight matrices; biases and norms have none.
        warmup_ratio: Part of the steps over which the learning rate rises from 0 to its peak.
        lr_scheduler_type: What follows the warm-up: a straight line to 0, half a cosine to 0, or the peak throughout.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them: less memory,
            more time, the same numbers.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them as they are.
        loss_balancing: Factors on the tasks' losses besides their weights: none (static); one over the logarithm of
            the number of classes (size_of_label_space); learned, by how noisy a task is (uncertainty); set after each
            step so that all losses fall at the same rate (famo).
        agreement_steps: Steps between two measurements of whether the tasks' gradients agree; null measures ten times
            over the run, but not with more than 10 tasks, as it needs memory for each; 0 never.
        logging_steps: Steps between two lines in metrics.jsonl.
        eval_steps: Steps between two evaluations; null evaluates at the end only.
        save_steps: Steps between two checkpoints; the last step is always saved, and with null alone.
        save_total_limit: How many checkpoints to keep: the newest, and the best; null keeps all.
        load_best_model_at_end: Export the best checkpoint instead of the last; every evaluation that is better than
            the best so far is saved.
        metric_for_best_model: By what the best is chosen: `average`, the mean over tasks of the mean of each task's
            metrics; `TASK`, the mean of one task's metrics; or `TASK/METRIC`. Of errors (mse) less is better.
        resume_from_checkpoint: What to continue from: `auto`, the newest checkpoint of the same run, here or in
            `checkpoints.remote`; `never`; or a checkpoint, a folder or gs://BUCKET/PREFIX/step-….
        dataloader_num_workers: Processes that prepare batches in the background; 0 prepares them in the loop; null
            takes 1, and 0 where the model computes on the CPU.
        static_shapes: Batches of few shapes and one task in each pass, for compilers that make a program for each
            shape; null uses them on XLA (TPUs) and nowhere else. The results are the same.
    """

    output_dir: str
    overwrite_output_dir: bool = False
    init_from_checkpoint: str | None = None
    seed: int = 0
    full_determinism: bool = False
    num_train_epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 32
    max_tokens_per_pass: int = 16384
    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    warmup_ratio: float = 0.06
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    gradient_checkpointing: bool = False
    max_grad_norm: float = 1.0
    loss_balancing: Literal["static", "size_of_label_space", "uncertainty", "famo"] = "static"
    agreement_steps: int | None = None
    logging_steps: int = 10
    eval_steps: int | None = None
    save_steps: int | None = 500
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = False
    metric_for_best_model: str = "average"
    resume_from_checkpoint: str = "auto"
    dataloader_num_workers: int | None = None
    static_shapes: bool | None = None


@dataclass(frozen=True)
class CheckpointsConfig:
    """Where checkpoints go besides `training.output_dir`.

    Args:
        remote: `gs://BUCKET/PREFIX` for copies in Google Cloud Storage of checkpoints and exported models, made while
            training goes on; a run on an empty disk goes on from there.
    """

    remote: str | None = None


@dataclass(frozen=True)
class TrackingConfig:
    """Where the numbers go besides the run's folder.

    Args:
        report_to: Any of Accelerate's trackers; wandb without an API key records offline. Empty for none.
        project: What the trackers group runs by.
    """

    report_to: list[TrackerName] = field(default_factory=lambda: ["wandb"])
    project: str = "multitask"


@dataclass(frozen=True)
class Config:
    """One mixture of tasks on one encoder.

    Args:
        model: The shared encoder.
        tasks: The tasks by name; any key can be set with `--tasks.NAME.KEY VALUE`.
        training: The optimisation.
        mixture: How many of a step's examples each task gets.
        adapters: LoRA adapters in a frozen encoder; null trains all of the encoder.
        checkpoints: Copies elsewhere.
        tracking: Where the numbers go besides the run's folder.
        data_root: Folder that mirrors hub datasets (DIR/nyu-mll/glue); also MULTITASK_DATA_ROOT in the environment.
        model_root: Folder that mirrors hub models (DIR/roberta-base); also MULTITASK_MODEL_ROOT in the environment.
        num_proc: Processes that tokenise; null uses one.
    """

    model: ModelConfig
    tasks: dict[str, TaskConfig]
    training: TrainingConfig
    mixture: MixtureConfig = MixtureConfig()
    adapters: AdapterConfig | None = None
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    tracking: TrackingConfig = TrackingConfig()
    data_root: str | None = None
    model_root: str | None = None
    num_proc: int | None = None


def to_yaml(config: Config) -> str:
    """The resolved configuration as a YAML document that `--config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=119)
