"""Checkpoints: what a run has learned, and what it takes to use it elsewhere."""

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .adapters import add_adapters
from .building import build_model, save_tokenizer
from .config import Config
from .errors import UserError
from .hub import find_encoder
from .model import MultitaskModel
from .tasks import TASK_TYPES, Task

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft")


def save_checkpoint(
    folder: Path, model: MultitaskModel, tokenizer: PreTrainedTokenizerBase, config: str, state: Mapping[str, Any]
) -> None:
    """Writes a folder from which the model can be made again.

    It holds `model.safetensors`, each trained weight once; `encoder/`, the encoder's configuration and tokenizer;
    `config.yaml` and `state.json`. The weights of a frozen encoder are not in it.

    Args:
        folder: replaced if it is there.
        model: with its heads and adapters.
        tokenizer: the encoder's, as it came.
        config: the resolved configuration as YAML.
        state: what else is known of the run: at least `step`, and `labels`, the names of each task's labels.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(trained_weights(model), partial / "model.safetensors", metadata={"format": "pt"})
    first: Any = next(iter(model.tasks.values()))
    encoder_config = type(first.config).from_dict(first.config.to_dict())
    encoder_config.save_pretrained(partial / "encoder")
    save_tokenizer(tokenizer, partial / "encoder")
    (partial / "config.yaml").write_text(config)
    versions = {package: version(package) for package in PACKAGES}
    (partial / "state.json").write_text(json.dumps({**state, "versions": versions}, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def find_checkpoint(location: str) -> Path:
    """The folder of a checkpoint: the one given, or the newest of the run that is given.

    Raises:
        UserError: if there is none.
    """
    folder = Path(location)
    if (folder / "state.json").is_file():
        return folder
    found = sorted((folder / "checkpoints").glob("step-*/state.json"))
    if not found:
        what = "is neither a checkpoint nor a run with one" if folder.is_dir() else "is no folder"
        raise UserError(f"--checkpoint: {location} {what} (seen from {Path.cwd()})")
    return found[-1].parent


def read_state(folder: Path) -> dict[str, Any]:
    """What is known of the run that a checkpoint was made in: step, command, versions, labels, results.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return json.loads((folder / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--checkpoint: {folder / 'state.json'} cannot be read: {error}") from error


def load_checkpoint(folder: Path, config: Config) -> tuple[MultitaskModel, list[Task], PreTrainedTokenizerBase]:
    """The model of a checkpoint, its tasks and its tokenizer.

    Args:
        folder: of the checkpoint.
        config: of its run.

    Raises:
        UserError: for a frozen encoder that is not found, and for weights that do not belong to this configuration.
    """
    labels = read_state(folder)["labels"]
    for name in config.tasks.keys() ^ labels.keys():
        raise UserError(f"--checkpoint: {folder} has the tasks {', '.join(labels)}; '{name}' is in one of both only")
    tasks = [Task(name, TASK_TYPES[task.type], tuple(labels[name])) for name, task in config.tasks.items()]
    lora = config.adapters
    is_frozen = config.model.freeze_encoder or lora is not None
    encoder = find_encoder(config.model.encoder, config.model_root) if is_frozen else str(folder / "encoder")
    model = build_model(encoder, tasks, config.model.dropout, config.training.seed, pretrained=is_frozen)
    if config.model.freeze_encoder:
        model.encoder.requires_grad_(False)
    if lora:
        add_adapters(model, lora.rank, lora.alpha, lora.dropout, lora.target_modules, lora.scope)
    try:
        load_trained_weights(model, load_file(folder / "model.safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"--checkpoint: {folder / 'model.safetensors'} does not fit: {error}") from error
    return model.eval(), tasks, AutoTokenizer.from_pretrained(folder / "encoder")


# -- weights ----------------------------------------------------------------------------------------------------------


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every trainable parameter once, by name: of a run with adapters these and the heads, without the encoder."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trained_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts back what `trained_weights` gave.

    Raises:
        ValueError: for the first name that is missing or too many, or the first shape that is another.
    """
    own = trained_weights(model)
    for name in sorted(own.keys() ^ weights.keys()):
        raise ValueError(f"{name} is {'missing' if name in own else 'not a trainable parameter of this model'}")
    for name, parameter in own.items():
        if weights[name].shape != parameter.shape:
            raise ValueError(f"{name} has shape {tuple(weights[name].shape)}, not {tuple(parameter.shape)}")
    for name, parameter in own.items():
        parameter.copy_(weights[name])
