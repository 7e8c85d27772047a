"""Frozen configuration dataclasses, with the names of `transformers.TrainingArguments` where it has the option."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import yaml

FILE_FORMATS = {"csv": "csv", "tsv": "tsv", "json": "json", "jsonl": "json", "parquet": "parquet"}  # to their readers


# Valid metric names. `tasks/` fills this and TASK_RULES, because this module may not import it.
METRIC_NAMES: set[str] = set()


@dataclass(frozen=True)
class TaskConfig:
    """One task: its dataset, the columns it reads, its metrics and training settings.

    Args:
        type: What the head predicts: a number (regression), a class (classification), which of several choices is
            right (multiple_choice), any number of labels (multi_label_classification), a label for each word
            (token_classification), or the part of a context that answers a question (question_answering).
        dataset: Hub id, local folder, or the format of `data_files`: csv, tsv, json (also JSON Lines) or
            parquet. Columns that the task does not read are ignored, and texts are taken as they stand in the file.
        inputs: One or two text columns; dots select nested fields (`question.stem`). For token_classification, the
            column with the list of words; for question_answering, the question and context columns.
        subset: Name of the dataset's configuration, if it has several.
        data_files: Files per split, `{train: FILE, validation: FILE}`; here or at gs://BUCKET/OBJECT, also with `*`.
        train_split: Split to train on.
        validation_split: Split to evaluate on; null disables evaluation.
        label: Column with the target: a number, a class, the right choice, a list of labels, a list with one label
            per word, or the answers (in SQuAD format, or a string). For classification also a list of probabilities,
            for multi_label_classification a list with 0, 1 or a probability for each label; or a list of columns
            instead, one per class or label.
        label_names: Names of the labels that rows have as numbers from 0, or as a list with a number for each; null
            takes them from the data.
        choices: For multiple_choice: a column that holds the list of choices, or a list of columns, one per choice.
        choice_labels: For multiple_choice: column with the names of the choices, in which `label` is looked up;
            without it, `label` is the position of the right choice, from 0 or 1, its letter, or its text.
        metrics: Evaluation metrics, such as accuracy, f1, pearson or mse; empty uses the defaults of the type.
        weight: Factor on the loss of each of this task's examples.
        class_weights: Factors on the loss of a class, a tag or a label: `balanced`, so that each counts the same in
            all, or by name, `{rare: 5}`; 1 for the others.
        label_smoothing_factor: Share of the target that goes to all classes alike.
        focal_gamma: Focal loss: examples that the model is sure of count less, by (1 - probability) to this power.
        teacher: Folder of a trained model of this task (its export), or a hub id: what it predicts for the training
            rows is the target at first, and gives way to the labels step by step.
        calibrate: Fit a temperature, and for several labels a threshold for each, on the validation rows; predictions
            of the trained model use them.
        learning_rate: Peak learning rate of the task's head and its own adapter; null uses training.learning_rate.
        patience: Stop training the task after this many consecutive evaluations without a new best mean of its
            metrics; its share goes to the other tasks. Null never stops it.
        max_train_examples: Train on this many rows, a sample that is always the same.
        max_eval_examples: Evaluate on this many rows, a sample that is always the same.
        adapter: Folder of a PEFT LoRA adapter to initialise this task's own adapter from.
        rows: Tasks with the same name here predict several things of the same rows: a row is drawn and encoded once
            for all of them. `labels: {NAME: {type: …, label: …}}` under a task writes them together.
    """

    type: str
    dataset: str
    inputs: list[str]
    subset: str | None = None
    data_files: dict[str, str | list[str]] | None = None
    train_split: str = "train"
    validation_split: str | None = "validation"
    label: str | list[str] = "label"
    label_names: list[str] | None = None
    choices: str | list[str] | None = None
    choice_labels: str | None = None
    metrics: list[str] = field(default_factory=list)
    weight: float = 1.0
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    label_smoothing_factor: float = 0.0
    focal_gamma: float = 0.0
    teacher: str | None = None
    calibrate: bool = False
    learning_rate: float | None = None
    patience: int | None = None
    max_train_examples: int | None = None
    max_eval_examples: int | None = None
    adapter: str | None = None
    rows: str | None = None

    @property
    def label_column(self) -> str:
        """The column with the target; of several columns, the one that they are joined in."""
        return self.label if isinstance(self.label, str) else ", ".join(self.label)


# What tasks with the same rows have in common.
ROW_KEYS = (
    *("dataset", "inputs", "subset", "data_files", "train_split", "validation_split"),
    *("choices", "choice_labels", "max_train_examples", "max_eval_examples"),
)


TrackerName = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]


# Validators by task type, called with the task's key and configuration; they raise UserError.
TASK_RULES: dict[str, Callable[[str, TaskConfig], None]] = {}


@dataclass(frozen=True)
class ModelConfig:
    """The shared encoder.

    Args:
        encoder: Hub id, local folder, or `package://NAME/FOLDER` inside an installed Python package.
        max_length: Maximum sequence length in tokens; longer ones are truncated, the longest part first.
        dropout: Dropout probability everywhere in the encoder and the heads; null keeps the encoder's own.
        freeze_encoder: Train only the heads; with adapters the encoder is always frozen.
    """

    encoder: str
    max_length: int = 128
    dropout: float | None = None
    freeze_encoder: bool = False


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA adapters in a frozen encoder.

    Args:
        rank: Rank of the update added to each weight matrix.
        alpha: What is added is scaled by alpha / rank.
        dropout: Dropout probability on the adapters' input.
        target_modules: `all-linear`, or name suffixes of linear modules in the encoder, such as `[query, value]`.
        scope: One adapter per task (per_task), one for all tasks (shared), or the sum of the two (both).
        merge: Export each task as a plain model with its LoRA weights merged; false exports only the adapter and the
            head, without a copy of the encoder.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    scope: Literal["per_task", "shared", "both"] = "per_task"
    merge: bool = True


@dataclass(frozen=True)
class MixtureConfig:
    """How a step's examples are divided among the tasks.

    Args:
        sampling: Task shares: by number of rows (proportional), equal (uniform), rows to the power 1/temperature
            (temperature), equal within the limit of max_epochs (unimax), or given (weights).
        temperature: For sampling temperature: 1 is proportional; higher is more uniform.
        final_temperature: Temperature at the end of the run, reached linearly; null keeps it constant.
        cap: For sampling proportional and temperature: a task with more rows counts as having this many.
        max_epochs: For sampling unimax: maximum number of passes over a task's rows.
        weights: For sampling weights: one number per task; a task with 0 is evaluated but not trained.
    """

    sampling: Literal["proportional", "uniform", "temperature", "unimax", "weights"] = "proportional"
    temperature: float | None = None
    final_temperature: float | None = None
    cap: int | None = None
    max_epochs: float | None = None
    weights: dict[str, float] | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """Training settings, named as in `transformers.TrainingArguments`.

    Args:
        output_dir: Folder of the run; `{config}` stands for the file's name and `{training.learning_rate}` (any key)
            for a value.
        overwrite_output_dir: Remove an earlier run in `output_dir` and start a new one.
        init_from_checkpoint: A run's folder, or a checkpoint, whose encoder a new run starts with, and whose heads for
            tasks that have the same name, type and labels.
        full_determinism: Use deterministic kernels on a GPU: slower, but a repeated or resumed run gives the same
            numbers bit for bit, as it always does on a CPU.
        seed: Seed of head initialisation, data order and dropout.
        num_train_epochs: Passes over the rows of all tasks together; `max_steps` takes precedence.
        max_steps: Number of optimizer steps.
        batch_size: Examples per step, over all devices and all tasks.
        max_tokens_per_pass: A device's share of a step that holds more tokens is split into several passes.
        learning_rate: Peak learning rate.
        weight_decay: AdamW weight decay of weight matrices; biases and norms have none.
        warmup_ratio: Fraction of the steps over which the learning rate rises from 0 to its peak.
        lr_scheduler_type: Schedule after the warm-up: linear to 0, half a cosine to 0, or constant at the peak.
        gradient_checkpointing: Recompute activations in the backward pass instead of storing them: less memory, more
            time, the same results.
        max_grad_norm: Gradients are clipped to this norm; 0 disables clipping.
        layerwise_lr_decay: Factor on the learning rate from each layer of the encoder to the one below it; the heads
            have the whole rate, the embeddings the lowest. 1 is the same rate for all.
        weight_averaging: Share of the steps, the last ones, over which the weights are averaged; the average is what
            is evaluated, saved and exported. 0 takes the last weights.
        loss_balancing: Factors on the task losses besides their weights: none (static); 1 / log(number of classes)
            (size_of_label_space); learned from the noise of each task (uncertainty); updated after each step so that
            all losses fall at the same rate (famo).
        agreement_steps: Steps between two measurements of the similarity of the tasks' gradients; null measures ten
            times over the run, or never with more than 10 tasks, as each task needs memory; 0 never.
        logging_steps: Steps between two lines in metrics.jsonl.
        eval_steps: Steps between two evaluations; null evaluates only at the end.
        save_steps: Steps between two checkpoints; the last step is always saved. Null saves only the last step.
        save_total_limit: Keep this many of the newest checkpoints, and the best one; null keeps all.
        load_best_model_at_end: Export the best checkpoint instead of the last; every evaluation that improves on the
            best so far is saved.
        metric_for_best_model: How the best checkpoint is chosen: `average`, the mean over tasks of each task's mean
            metric; `TASK`, the mean of one task's metrics; or `TASK/METRIC`. For errors (mse) lower is better.
        resume_from_checkpoint: `auto` resumes from the newest checkpoint of the same run, local or in
            `checkpoints.remote`; `never` starts anew; or a checkpoint: a folder or gs://BUCKET/PREFIX/step-….
        allow_changed_data: Resume a run although its training rows or the encoder's weights have changed since.
        dataloader_num_workers: Processes that prepare batches in the background; 0 prepares them in the training loop;
            null uses 1, or 0 where the model runs on the CPU.
        static_shapes: Use few distinct batch shapes and one task per pass, for compilers that compile one graph per
            shape; null does so only on XLA (TPUs). The results are the same.
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
    layerwise_lr_decay: float = 1.0
    weight_averaging: float = 0.0
    loss_balancing: Literal["static", "size_of_label_space", "uncertainty", "famo"] = "static"
    agreement_steps: int | None = None
    logging_steps: int = 10
    eval_steps: int | None = None
    save_steps: int | None = 500
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = False
    metric_for_best_model: str = "average"
    resume_from_checkpoint: str = "auto"
    allow_changed_data: bool = False
    dataloader_num_workers: int | None = None
    static_shapes: bool | None = None


@dataclass(frozen=True)
class CheckpointsConfig:
    """Where checkpoints are copied besides `training.output_dir`.

    Args:
        remote: `gs://BUCKET/PREFIX` in Google Cloud Storage, to which checkpoints and exported models are copied
            during training; a run on an empty disk resumes from there. With placeholders as in `training.output_dir`.
    """

    remote: str | None = None


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics are reported besides the run's folder.

    Args:
        report_to: Any of Accelerate's trackers; wandb without an API key records offline. Empty for none.
        project: Project name under which the trackers group runs.
        agreement: What trackers show of the similarity of the tasks' gradients: its average over all pairs of tasks,
            also each pair (pairs), or also each pair in each layer (layers). The report shows all of it.
        log_predictions: Send sample rows with their predictions to W&B; false keeps the data's texts out of trackers.
    """

    report_to: list[TrackerName] = field(default_factory=lambda: ["wandb"])
    project: str = "multitask"
    agreement: Literal["average", "pairs", "layers"] = "average"
    log_predictions: bool = True


@dataclass(frozen=True)
class CardConfig:
    """What the cards of the exported models say besides what the run knows.

    Args:
        license: License of the models, by its identifier on the hub, such as apache-2.0.
        language: Languages of the data, by their codes, such as `[en, de]`.
    """

    license: str | None = None
    language: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    """One mixture of tasks on one encoder.

    Args:
        model: The shared encoder.
        tasks: The tasks by name; any key can be set with `--tasks.NAME.KEY VALUE`.
        training: Training settings.
        mixture: How a step's examples are divided among the tasks.
        adapters: LoRA adapters in a frozen encoder; null trains the whole encoder.
        checkpoints: Where checkpoints are copied besides the run's folder.
        tracking: Where metrics are reported besides the run's folder.
        card: License and language on the cards of the exported models.
        data_root: Folder that mirrors hub datasets (DIR/nyu-mll/glue); also MULTITASK_DATA_ROOT in the environment.
        model_root: Folder that mirrors hub models (DIR/roberta-base); also MULTITASK_MODEL_ROOT in the environment.
        num_proc: Number of tokenisation processes; null uses one.
    """

    model: ModelConfig
    tasks: dict[str, TaskConfig]
    training: TrainingConfig
    mixture: MixtureConfig = MixtureConfig()
    adapters: AdapterConfig | None = None
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    tracking: TrackingConfig = TrackingConfig()
    card: CardConfig = CardConfig()
    data_root: str | None = None
    model_root: str | None = None
    num_proc: int | None = None


def to_yaml(config: Config) -> str:
    """The resolved configuration as a YAML document that `--config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=119)
