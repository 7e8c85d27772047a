"""One encoder that all tasks share, one head per task, made of the classes that `transformers` ships."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from .errors import UserError, first_line
from .mixture import key_of
from .tasks import Task

# Families that count positions from behind the padding token's.
PADDED_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text")


class MultitaskModel(nn.Module):
    """Task models that hold the same encoder: `model({task: inputs}) -> {task: logits}`.

    Each task model is an ordinary `transformers` model (`model.tasks[NAME]`) whose encoder modules are those of the
    first one, so the encoder's weights exist once. A pooler stays with its task: it is where a head begins, and some
    classes of a family have one where others have not.
    """

    def __init__(self) -> None:
        super().__init__()
        # First, so that the encoder's parameters carry one name that belongs to no task.
        self.encoder = nn.ModuleDict()
        self.tasks = nn.ModuleDict()
        self.adapters: dict[str, list[str]] = {}  # names of the LoRA adapters that each task uses
        self.lora_layers: list[Any] = []  # the encoder's layers that hold them

    def add_task(self, name: str, model: PreTrainedModel) -> None:
        """Takes a task model in; its own encoder gives way to the shared one, which is the first task's."""
        self.tasks[name] = model
        self.share_encoder()

    def share_encoder(self) -> None:
        """Lets every task hold the encoder modules of the first one."""
        first: Any = next(iter(self.tasks.values()))
        for name, child in _shared_children(first):
            self.encoder[name] = child
            for model in self.tasks.values():
                setattr(model.base_model, name, child)

    def forward(self, batches: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Runs the encoder and a task's head on each task's batch.

        Args:
            batches: keyword arguments of each task's model, `input_ids` among them; of no rows where a device has no
                example of a task in this pass.

        Returns:
            Logits of each task, shape (rows, outputs), or (rows, tokens, outputs) from heads that say something of
            each token. Those of no rows still depend on the task's own parameters (on all, if no task has rows), so
            that every process takes part in the same gradient exchange.
        """
        nothing = all(not len(inputs["input_ids"]) for inputs in batches.values())
        logits = {}
        for task, inputs in batches.items():
            if len(inputs["input_ids"]):
                self.use_adapters(self.adapters.get(task, []))
                logits[task] = _logits(self.tasks[task](**inputs))
            else:
                logits[task] = _no_rows(self.parameters() if nothing else self.head_parameters(task))
        return logits

    def use_adapters(self, names: list[str]) -> None:
        """Lets the encoder compute with these adapters; which of them are trained stays as it is."""
        for layer in self.lora_layers:
            layer._active_adapter = names  # PEFT's own way, `set_adapter`, also freezes the others

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of one adapter; none, if there is no such adapter."""
        parts = [part for layer in self.lora_layers for part in (layer.lora_A, layer.lora_B) if name in part]
        return [parameter for part in parts for parameter in part[name].parameters()]

    def head_parameters(self, task: str) -> list[nn.Parameter]:
        """The parameters that only `task` uses, those of its own adapter among them."""
        shared = set(self.encoder.parameters()) - set(self.adapter_parameters(task))
        return [parameter for parameter in self.tasks[task].parameters() if parameter not in shared]


def _shared_children(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in model.base_model.named_children() if name != "pooler"]


def _logits(output: ModelOutput) -> Tensor:
    if "start_logits" in output:
        return torch.stack([output["start_logits"], output["end_logits"]], dim=-1)
    return output["logits"]


def _no_rows(parameters: Iterable[nn.Parameter]) -> Tensor:
    touched = torch.stack([parameter.sum() for parameter in parameters if parameter.requires_grad]).sum()
    return touched.expand(0, 1)


def checkpoint_gradients(model: MultitaskModel) -> None:
    """Lets the encoder's layers compute their activations again in the backward pass instead of keeping them.

    The backward pass comes when all tasks have been computed, so each layer must be told again which adapters it had.

    Raises:
        UserError: if the encoder's family in `transformers` cannot.
    """

    @contextmanager
    def with_adapters(names: list[str]) -> Iterator[None]:
        model.use_adapters(names)
        yield

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        """Called as a layer computes; around its first and its second computation."""
        names = model.lora_layers[0]._active_adapter if model.lora_layers else []
        return nullcontext(), with_adapters(names)

    for task_model in model.tasks.values():
        assert isinstance(task_model, PreTrainedModel)
        if not task_model.supports_gradient_checkpointing:
            family = task_model.config.model_type
            raise UserError(f"training.gradient_checkpointing: {family} does not support it in transformers")
        task_model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        # Meant for `use_reentrant`; it would lead gradients through a frozen encoder down to its embeddings.
        task_model.disable_input_require_grads()


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
    if 2 * len(tokenizer) < config.vocab_size:
        raise UserError(
            f"model.encoder: '{encoder}' has a tokenizer of {len(tokenizer)} tokens where the encoder knows "
            f"{config.vocab_size}; its tokenizer files are missing"
        )
    positions = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    if config.model_type in PADDED_POSITIONS:
        positions -= config.pad_token_id + 1
    longest = min(tokenizer.model_max_length, positions)
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
    multitask_model = MultitaskModel()
    for task in tasks:
        config = _load_config(encoder)
        if dropout is not None:
            _set_dropout(config, dropout)
        config.problem_type = task.type.problem_type
        names = task.labels or ("score",)
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        torch.manual_seed(key_of(seed, task.name))
        try:
            model, loading = task.type.auto_class.from_pretrained(
                encoder, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"model.encoder: '{encoder}' for task {task.name}: {first_line(error)}") from error
        shared = tuple(f"{model.base_model_prefix}.{name}." for name, _ in _shared_children(model))
        not_loaded = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
        absent = sorted(key for key in not_loaded if key.startswith(shared))
        if absent:
            raise UserError(
                f"model.encoder: '{encoder}' lacks weights that its configuration asks for: "
                f"{absent[0]} ({len(absent)} in all)"
            )
        _reset_classifier(model)
        if task.type.name == "regression":
            head = next(m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1)
            nn.init.constant_(head.bias, task.mean)
        multitask_model.add_task(task.name, model)
    return multitask_model


def _reset_classifier(model: PreTrainedModel) -> None:
    """Draws the output layers anew, also where the encoder's folder was saved from a task model and had its own."""
    classifier = getattr(model, "classifier", None) or model.qa_outputs
    assert isinstance(classifier, nn.Module)
    for module in classifier.modules():
        loaded: list[Any] = [module, *module.parameters(recurse=False)]
        for part in loaded:
            part._is_hf_initialized = False  # the mark that makes transformers leave it as it is
        model._init_weights(module)


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
