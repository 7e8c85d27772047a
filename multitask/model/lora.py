"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) on the shared encoder, created, read and written by PEFT.

The encoder is frozen; each adapted linear layer computes W x + alpha / rank * B A x, with A and B of the
adapters of the token's task (`routing.py`).
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..config.schema import AdapterConfig
from ..errors import UserError, first_line, hint
from ..utils import stable_seed
from .multitask import MultitaskModel
from .routing import RoutedLinear

SHARED = "_shared"  # the adapter of all tasks; a task's name begins with a letter or a digit


# Settings of PEFT that make an adapter something else than B A; the starting values of A and B count as long as
# they leave the encoder's weights alone.
VARIANTS = ("use_rslora", "use_dora", "use_qalora", "alora_invocation_tokens", "rank_pattern", "alpha_pattern")


PLAIN_STARTS = (True, False, "gaussian", "orthogonal")


def freeze_or_adapt(
    model: MultitaskModel,
    freeze: bool,
    lora: AdapterConfig | None,
    start: Mapping[str, str] | None = None,
    seed: int = 0,
) -> None:
    """Makes the encoder trainable, freezes it, or adds LoRA adapters to it.

    Args:
        model: with all its tasks; changed in place.
        freeze: freezes the encoder; without LoRA only the heads are trained.
        lora: adapters to add.
        start: see `add_adapters`.
        seed: see `add_adapters`.
    """
    if freeze:
        model.encoder.requires_grad_(False)
    if lora:
        add_adapters(model, lora.rank, lora.alpha, lora.dropout, lora.target_modules, lora.scope, start, seed)


def add_adapters(
    model: MultitaskModel,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = "all-linear",
    scope: Literal["per_task", "shared", "both"] = "per_task",
    start: Mapping[str, str] | None = None,
    seed: int = 0,
) -> None:
    """Freezes the encoder and adds LoRA adapters; heads and poolers stay trainable.

    The initial weights of an adapter depend only on the seed and its name; B is zero, so it changes nothing at first.

    Args:
        model: with all its tasks; changed in place.
        rank: rows of A, columns of B.
        alpha: the scaling is alpha / rank.
        dropout: dropout probability before A.
        target_modules: "all-linear", or endings of the names of linear modules in the encoder.
        scope: one adapter per task, one for all tasks, or the sum of both.
        start: folders of PEFT adapters with initial weights, by task.
        seed: seed of the initial weights.

    Raises:
        UserError: for unknown target modules, or an adapter in `start` that does not fit.
    """
    encoder = model.encoder
    targets = _target_names(encoder, target_modules)
    model.adapters = {task: [] for task in model.tasks}
    for task, names in model.adapters.items():
        names += [SHARED] * (scope != "per_task") + [model.streams[task]] * (scope != "shared")
    for name in dict.fromkeys(name for names in model.adapters.values() for name in names):
        torch.manual_seed(stable_seed(seed, "adapter", name))
        config = LoraConfig(r=rank, lora_dropout=dropout, target_modules=targets)
        config.lora_alpha = alpha  # type: ignore[assignment]  # PEFT asks for a whole number and takes any
        config._register_custom_module({nn.Linear: RoutedLinear})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is meant
            inject_adapter_in_model(config, encoder, name)
    model.lora_layers = list(_lora_layers(encoder).values())
    for layer in model.lora_layers:
        layer.routing = model.routing
    encoder.requires_grad_(False)
    for name in encoder.peft_config:
        for parameter in model.adapter_parameters(name):
            parameter.requires_grad_(True)
    for task, folder in (start or {}).items():
        _load_adapter(encoder, str(model.tasks[task].base_model_prefix), task, folder, rank, alpha)


def _target_names(encoder: PreTrainedModel, target_modules: str | Sequence[str]) -> list[str]:
    """Full names of the adapted modules."""
    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    if target_modules == "all-linear":
        return linear
    endings = [target_modules] if isinstance(target_modules, str) else target_modules
    valid = {"all-linear", *(name.split(".")[-1] for name in linear)}
    for ending in endings:
        if not any(f".{name}".endswith(f".{ending}") for name in linear):
            of = f"of '{encoder.name_or_path}'"
            raise UserError(f"adapters.target_modules: '{ending}' is no linear module {of}{hint(ending, valid)}")
    return [name for name in linear if f".{name}".endswith(tuple(f".{ending}" for ending in endings))]


# -- an adapter made elsewhere ----------------------------------------------------------------------------------------


def _load_adapter(
    model: PreTrainedModel, name_in_task_model: str, task: str, folder: str, rank: int, alpha: float
) -> None:
    """Loads a task's adapter from a PEFT folder, saved from an encoder or from a model with a head."""
    key, path, encoder = f"tasks.{task}.adapter", Path(folder), str(model.name_or_path)
    if not path.is_dir():
        raise UserError(f"{key}: there is no folder {folder} (seen from {Path.cwd()})")
    for files in (["adapter_config.json"], ["adapter_model.safetensors", "adapter_model.bin"]):
        if not any((path / file).is_file() for file in files):
            raise UserError(f"{key}: {folder} has no {files[0]}; a folder that PEFT saved has one")
    try:
        config = PeftConfig.from_pretrained(folder)
        weights = load_peft_weights(folder, device="cpu")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        EOFError,
        SafetensorError,
        UnpicklingError,
    ) as error:
        raise UserError(f"{key}: {folder} does not load: {first_line(error)}") from error
    if not isinstance(config, LoraConfig):
        kind = str(config.peft_type).removeprefix("PeftType.")
        raise UserError(f"{key}: {folder} is of type {kind}; only LORA can be started from")
    variants = [name for name in VARIANTS if getattr(config, name)]
    variants += ["init_lora_weights"] if config.init_lora_weights not in PLAIN_STARTS else []
    if variants:
        value = getattr(config, variants[0])
        raise UserError(f"{key}: {folder} has {variants[0]}: {value}; only plain LoRA can be started from")
    for name, there, here in (("rank", config.r, rank), ("alpha", config.lora_alpha, alpha)):
        if there != here:
            raise UserError(f"{key}: {folder} has {name} {there}, adapters.{name} is {here}; they must be the same")
    base = config.base_model_name_or_path
    if base and Path(base).name != Path(encoder).name:
        raise UserError(f"{key}: {folder} was made for the encoder '{base}', model.encoder is '{encoder}'")

    prefix = f"base_model.model.{name_in_task_model}."
    if not any(name.startswith(prefix) for name in weights):  # around the encoder alone; otherwise heads are left out
        prefix = "base_model.model."
    found = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    needed = {
        f"{name}.{part}.weight": getattr(layer, part)[task].weight.shape
        for name, layer in _lora_layers(model).items()
        for part in ("lora_A", "lora_B")
    }
    for name in sorted(found.keys() ^ needed.keys()):
        what = "lacks" if name in needed else "has"
        raise UserError(f"{key}: {folder} {what} {name}, unlike adapters.target_modules; they must be the same")
    for name, shape in needed.items():
        if found[name].shape != shape:
            raise UserError(
                f"{key}: {folder} has {name} of shape {tuple(found[name].shape)}, '{encoder}' needs {tuple(shape)}"
            )
    set_peft_model_state_dict(model, found, task)


# -- what is written --------------------------------------------------------------------------------------------------


def save_adapter(model: MultitaskModel, adapters: Sequence[str], encoder: str, folder: Path) -> None:
    """Writes the adapters of a task as one PEFT adapter, for `PeftModel.from_pretrained(AutoModel…, folder)`.

    Two adapters become one with the sum of their ranks: [B1 B2] [A1; A2] = B1 A1 + B2 A2. The alphas are added too, so
    alpha / rank stays the same.

    Args:
        model: the model with its adapters.
        adapters: names of the task's adapters.
        encoder: name of the encoder, written into the configuration; of a local folder only its name.
        folder: target folder.
    """
    layers = _lora_layers(model.encoder)
    tensors = {}
    for name, layer in layers.items():
        a, b = ([getattr(layer, part)[adapter].weight for adapter in adapters] for part in ("lora_A", "lora_B"))
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.cat(a).detach().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.cat(b, dim=1).detach().contiguous()
    config = LoraConfig(
        r=sum(layer.r[adapter] for adapter in adapters),
        lora_alpha=sum(layer.lora_alpha[adapter] for adapter in adapters),
        lora_dropout=getattr(layer.lora_dropout[adapters[0]], "p", 0.0),
        # A path of this machine means nothing to others.
        base_model_name_or_path=Path(encoder).name if Path(encoder).exists() else encoder.removeprefix("package://"),
        inference_mode=True,
    )
    config.target_modules = sorted(layers)  # a list, as PEFT would write a set in any order
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def merged_weights(model: MultitaskModel, task: str) -> dict[str, Tensor]:
    """The state dict of an ordinary model for a task, with its adapters merged.

    Args:
        model: the trained model, which is not changed.
        task: name of a task, with or without adapters.
    """
    task_model: Any = model.tasks[task]
    encoder = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.encoder.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in _lora_layers(model.encoder).items():
        deltas = [layer.get_delta_weight(adapter) for adapter in model.adapters[task]]
        encoder[f"{name}.weight"] = encoder[f"{name}.weight"] + sum(deltas)
    prefix = task_model.base_model_prefix
    return {f"{prefix}.{name}": tensor for name, tensor in encoder.items()} | task_model.state_dict()


def _lora_layers(module: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
