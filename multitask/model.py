"""One encoder that all tasks share, one head per task, made of the classes that `transformers` ships."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .data import Task
from .errors import UserError, first_line
from .mixture import key_of


class MultitaskModel(nn.Module):
    """Task models that hold the same encoder: `model({task: inputs}) -> {task: logits}`.

    Each task model is an ordinary `transformers` model (`model.tasks[NAME]`) whose encoder modules are those of the
    first one, so the encoder's weights exist once. A pooler stays with its task: it is where a head begins, and some
    classes of a family have one where others have not.
    """

    def __init__(self, models: Mapping[str, PreTrainedModel]):
        super().__init__()
        shared, *others = models.values()
        for model in others:
            for name, _ in _shared_children(model):
                setattr(model.base_model, name, getattr(shared.base_model, name))
        # Registered first, so that the encoder's parameters carry one name that belongs to no task.
        self.encoder = nn.ModuleDict(dict(_shared_children(shared)))
        self.tasks = nn.ModuleDict(models)

    def forward(self, batches: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Runs the encoder and a task's head on each task's batch.

        Args:
            batches: keyword arguments of each task's model, `input_ids` among them; of no rows where a device has no
                example of a task in this pass.

        Returns:
            Logits of each task, shape (rows, outputs). Those of no rows still depend on the task's own parameters
            (on all, if no task has rows), so that every process takes part in the same gradient exchange.
        """
        nothing = all(not len(inputs["input_ids"]) for inputs in batches.values())
        return {
            task: self.tasks[task](**inputs).logits
            if len(inputs["input_ids"])
            else _no_rows(self.parameters() if nothing else self.head_parameters(task))
            for task, inputs in batches.items()
        }

    def head_parameters(self, task: str) -> list[nn.Parameter]:
        """The parameters that only `task` uses."""
        shared = set(self.encoder.parameters())
        return [parameter for parameter in self.tasks[task].parameters() if parameter not in shared]


def _shared_children(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in model.base_model.named_children() if name != "pooler"]


def _no_rows(parameters: Iterable[nn.Parameter]) -> Tensor:
    touched = torch.stack([parameter.sum() for parameter in parameters if parameter.requires_grad]).sum()
    return touched.expand(0, 1)


# -- building it ------------------------------------------------------------------------------------------------------


def load_tokenizer(encoder: str, max_length: int) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer.

    Args:
        encoder: folder or hub id.
        max_length: longest sequence that will be asked for, in tokens.

    Raises:
        UserError: if there is none, it has no fast implementation, or the encoder reads no sequences that long.
    """
    config = _load_config(encoder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model.encoder: '{encoder}' has no tokenizer that loads: {first_line(error)}") from error
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        lacks = "padding token" if tokenizer.is_fast else "fast tokenizer"
        raise UserError(f"model.encoder: '{encoder}' has no {lacks}, which training needs")
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", tokenizer.model_max_length))
    if max_length > longest:
        raise UserError(f"model.max_length: {max_length} is more than the {longest} tokens that '{encoder}' reads")
    return tokenizer


def build_model(encoder: str, tasks: Sequence[Task], dropout: float | None = None, seed: int = 0) -> MultitaskModel:
    """Loads the encoder once and puts a new head for each task on it.

    A head's first weights depend on the seed and the task's name alone. A regression head's bias starts at the mean
    of its training labels, so that it does not spend its first steps, and the other tasks', on getting there.

    Args:
        encoder: folder or hub id.
        tasks: what to put heads on for.
        dropout: probability for every dropout of encoder and heads; None keeps the encoder's own.
        seed: of the heads' weights.

    Raises:
        UserError: if the encoder cannot be found or has no such head in `transformers`.
    """
    models = {}
    for task in tasks:
        config = _load_config(encoder)
        if dropout is not None:
            _set_dropout(config, dropout)
        if task.type.problem_type:
            config.problem_type = task.type.problem_type
            names = task.labels or ("score",)
            config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        torch.manual_seed(key_of(seed, task.name))
        try:
            model, loading = task.type.auto_class.from_pretrained(
                encoder, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
        except (OSError, ValueError) as error:
            raise UserError(f"model.encoder: '{encoder}' for task {task.name}: {first_line(error)}") from error
        shared = tuple(f"{model.base_model_prefix}.{name}." for name, _ in _shared_children(model))
        absent = sorted(str(key) for key in loading["missing_keys"] if str(key).startswith(shared))
        if absent:
            raise UserError(
                f"model.encoder: '{encoder}' lacks weights of its encoder: {absent[0]} ({len(absent)} in all)"
            )
        if config.problem_type == "regression":
            head = next(m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1)
            nn.init.constant_(head.bias, float(np.mean(task.train.rows["label"])))
        models[task.name] = model
    return MultitaskModel(models)


def _load_config(encoder: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(encoder)
    except (OSError, ValueError) as error:
        raise UserError(f"model.encoder: '{encoder}': {first_line(error)}") from error


def _set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    """Sets every dropout probability that the family's configuration has, whatever it calls it."""
    for key, value in config.to_dict().items():
        if "dropout" in key and (value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))):
            setattr(config, key, dropout)
