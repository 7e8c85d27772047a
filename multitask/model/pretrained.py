"""A pretrained encoder, its tokenizer, and new heads on it."""

import copy
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data.sources import find_in_mirror, go_offline_if_unreachable
from ..errors import UserError, first_line
from ..tasks.base import Task
from ..utils import stable_seed
from .multitask import MultitaskModel


def find_encoder(encoder: str, model_root: str | None = None, option: str = "model.encoder") -> str:
    """The folder or the hub id under which `transformers` finds an encoder.

    Args:
        encoder: hub id, local folder, or `package://NAME/FOLDER` inside an installed package.
        model_root: folder that mirrors hub models; an encoder found there is taken from there.
        option: names the setting in error messages.

    Raises:
        UserError: for a package or folder that is not there.
    """
    if encoder.startswith("package://"):
        package, _, folder = encoder.removeprefix("package://").partition("/")
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{option}: the Python package '{package}' of {encoder} is not installed")
        path = Path(spec.submodule_search_locations[0]) / folder
        if not path.is_dir():
            raise UserError(f"{option}: the Python package '{package}' has no folder '{folder}'")
        return str(path)
    if (mirrored := find_in_mirror(encoder, model_root, "model_root")) is not None:
        return mirrored
    if Path(encoder).is_dir():
        return encoder
    if encoder.startswith((".", "/", "~")) or encoder.count("/") > 1:
        raise UserError(f"{option}: there is no folder {encoder} (seen from {Path.cwd()})")
    go_offline_if_unreachable()
    return encoder


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
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"model.encoder: the tokenizer of '{encoder}' has {len(tokenizer):,} tokens, the encoder knows "
            f"{config.vocab_size:,}; they do not belong together"
        )
    if 2 * len(tokenizer) < config.vocab_size:
        raise UserError(
            f"model.encoder: '{encoder}' has a tokenizer of {len(tokenizer)} tokens where the encoder knows "
            f"{config.vocab_size}; its tokenizer files are missing"
        )
    longest = min(tokenizer.model_max_length, _num_positions(config) or tokenizer.model_max_length)
    if max_length > longest:
        raise UserError(f"model.max_length: {max_length} is more than the {longest} tokens that '{encoder}' reads")
    return tokenizer


def _num_positions(config: PreTrainedConfig) -> int | None:
    """The longest sequence that the encoder's position embeddings allow; None without a limit.

    Families that count from behind the padding token's position are known by their embeddings, which have a padding
    index; the model is built without memory for its weights.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:  # XLNet's is -1
        return None
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config)
    except Exception:  # said where the model is built
        return positions
    tables = [m for name, m in model.named_modules() if "position" in name and isinstance(m, nn.Embedding)]
    offsets = [t.padding_idx + 1 for t in tables if t.padding_idx is not None and t.num_embeddings == positions]
    return positions - max(offsets, default=0)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the tokenizer as it came: what tokenising left in it depends on whether a cache had the rows."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


def build_model(
    encoder: str, tasks: Sequence[Task], dropout: float | None = None, seed: int = 0, pretrained: bool = True
) -> MultitaskModel:
    """Loads the encoder once and puts a new head for each task on it.

    A head's first weights depend on the seed and the task's name alone. A regression head's bias starts at the mean
    of its training labels, so that it does not spend its first steps, and the other tasks', on getting there.

    Args:
        encoder: folder or hub id.
        tasks: what to put heads on for.
        dropout: probability for every dropout of encoder and heads; None keeps the encoder's own.
        seed: of the heads' weights.
        pretrained: whether to load the encoder's weights; without them only its configuration is read.

    Raises:
        UserError: if the encoder cannot be found or has no such head in `transformers`.
    """
    multitask_model = MultitaskModel()
    loaded: dict[tuple, tuple[PreTrainedModel, set[str]]] = {}  # one model for each kind of head
    for task in tasks:
        config = _load_config(encoder)
        if dropout is not None:
            _set_dropout(config, dropout)
        config.problem_type = task.type.problem_type
        names = task.labels or ("score",)
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        torch.manual_seed(stable_seed(seed, task.name))
        if pretrained:
            kind = task.type.auto_class, task.type.problem_type, len(names)
            if kind in loaded:
                model = _another(*loaded[kind], multitask_model, config)
            else:
                model, drawn = _load_pretrained(encoder, task, config)
                loaded[kind] = model, drawn
            _reset_classifier(model)
        else:
            model = task.type.auto_class.from_config(config, dtype=torch.float32)
        if task.type.problem_type == "regression":
            heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
            if heads and heads[-1].bias is not None:
                nn.init.constant_(heads[-1].bias, task.mean)
        multitask_model.add_task(task.name, model, task.rows)
    tasks_by_type = {task.type.name: task for task in tasks}
    try:
        multitask_model.find_call({task.name: task.type.several_sequences for task in tasks_by_type.values()})
    except UserError:
        raise
    except Exception as error:  # whatever a family's code raises where it is called as an encoder is
        family = config.model_type
        raise UserError(f"model.encoder: {family} ('{encoder}') does not compute: {first_line(error)}") from error
    for part, parameter in multitask_model.encoder.named_parameters():
        if not torch.isfinite(parameter.sum()):
            raise UserError(f"model.encoder: '{encoder}' has weights that are not finite, in {part}")
    return multitask_model


def _another(
    model: PreTrainedModel, drawn: set[str], multitask_model: MultitaskModel, config: PreTrainedConfig
) -> PreTrainedModel:
    """Another model with the same encoder and a head like that of a loaded one; a tenth of the time of loading it.

    Args:
        model: one of the multitask model's.
        drawn: the parameters that were drawn at random when it was loaded, and are drawn again.
        multitask_model: whose encoder stays the same object.
        config: names the labels.
    """
    other: Any = copy.deepcopy(model, {id(multitask_model.encoder): multitask_model.encoder})
    other.config.id2label, other.config.label2id = config.id2label, config.label2id
    for name, module in other.named_modules():  # the marks by which transformers knows what to draw
        module._is_hf_initialized = not any(f"{part}.".startswith(f"{name}." if name else "") for part in drawn)
    for name, parameter in other.named_parameters():
        parameter._is_hf_initialized = name not in drawn
    other.initialize_weights()
    return other


def _load_pretrained(encoder: str, task: Task, config: PreTrainedConfig) -> tuple[PreTrainedModel, set[str]]:
    """A task's model, and the names of the parameters that the encoder's folder lacks, which are drawn at random."""
    try:
        model, loading = task.type.auto_class.from_pretrained(
            encoder, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"model.encoder: '{encoder}' for task {task.name}: {first_line(error)}") from error
    encoder_name, pooler = f"{model.base_model_prefix}.", f"{model.base_model_prefix}.pooler."
    not_loaded = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    absent = sorted(key for key in not_loaded if key.startswith(encoder_name) and not key.startswith(pooler))
    if absent:
        raise UserError(
            f"model.encoder: '{encoder}' lacks weights that its configuration asks for: "
            f"{absent[0]} ({len(absent)} in all)"
        )
    return model, set(not_loaded)


def _reset_classifier(model: PreTrainedModel) -> None:
    """Draws the output layers anew, also where the encoder's folder was saved from a task model and had its own."""
    encoder = model.base_model_prefix
    heads = [m for name, m in model.named_children() if name != encoder and any(True for _ in m.parameters())]
    for module in heads[-1].modules() if heads else ():
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
