"""Checkpoints: what a run has learned, and what it takes to use it elsewhere."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .adapters import add_adapters
from .building import build_model, load_tokenizer, save_tokenizer
from .config import Config
from .errors import UserError
from .hub import find_encoder
from .manifest import verify, write_manifest
from .model import MultitaskModel
from .sharding import shared_out, whole
from .tasks import TASK_TYPES, Task

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft")


def save_checkpoint(
    folder: Path,
    model: MultitaskModel,
    optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerBase,
    config: str,
    state: Mapping[str, Any],
    numbers: Sequence[Path] = (),
) -> None:
    """Writes a folder from which the run can go on, and the model be made again; it is there as a whole or not at all.

    It holds `model.safetensors`, each trained weight once; `optimizer.safetensors`; `encoder/`, the encoder's
    configuration and tokenizer; `config.yaml`; `state.json`; the numbers so far; and `manifest.json`, which lists them
    all. The weights of a frozen encoder are not in it.

    Args:
        folder: replaced if it is there.
        model: with its heads and adapters.
        optimizer: of its parameters.
        tokenizer: the encoder's, as it came.
        config: the resolved configuration as YAML.
        state: what else is known of the run: at least `step`, and `labels`, the names of each task's labels.
        numbers: files to copy into it.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: weight.cpu() for name, weight in trained_weights(model).items()}  # XLA's tensors have no address
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    save_optimizer(optimizer, model, partial / "optimizer.safetensors")
    first: Any = next(iter(model.tasks.values()))
    encoder_config = type(first.config).from_dict(first.config.to_dict())
    encoder_config.save_pretrained(partial / "encoder")
    save_tokenizer(tokenizer, partial / "encoder")
    (partial / "config.yaml").write_text(config)
    versions = {package: version(package) for package in PACKAGES}
    (partial / "state.json").write_text(json.dumps({**state, "versions": versions}, indent=2) + "\n")
    for path in numbers:
        shutil.copyfile(path, partial / path.name)
    write_manifest(partial, step=state["step"], versions=versions)
    for path in (*partial.rglob("*"), partial):
        _flush(path)
    delete_checkpoint(folder)
    partial.rename(folder)
    _flush(folder.parent)


def delete_checkpoint(folder: Path) -> None:
    """Takes the name away first, so that what bears it is whole at any moment."""
    if folder.exists():
        shutil.rmtree(folder.rename(folder.with_name(folder.name + ".deleted")))


def _flush(path: Path) -> None:
    """Waits until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def find_checkpoint(location: str) -> Path:
    """The folder of a checkpoint: the one given, or the newest of the run that is given.

    Raises:
        UserError: if there is none.
    """
    folder = Path(location)
    if (folder / "manifest.json").is_file():
        return folder
    found = checkpoints_in(folder)
    if not found:
        what = "is neither a checkpoint nor a run with one" if folder.is_dir() else "is no folder"
        raise UserError(f"--checkpoint: {location} {what} (seen from {Path.cwd()})")
    return found[0]


def checkpoints_in(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, the newest first; a name with an ending is that of something else."""
    found = (path.parent for path in (folder / "checkpoints").glob("step-*/manifest.json"))
    return sorted((path for path in found if not path.suffix), reverse=True)


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
    try:
        verify(folder)
    except ValueError as damage:
        raise UserError(f"--checkpoint: {folder} is damaged: {damage}") from damage
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
    return model.eval(), tasks, load_tokenizer(str(folder / "encoder"), config.model.max_length)


# -- weights, and what the optimizer knows of them --------------------------------------------------------------------


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every trainable parameter once, by name: of a run with adapters these and the heads, without the encoder."""
    return {name: whole(p) for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trained_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts back what `trained_weights` gave.

    Raises:
        ValueError: for the first name that is missing or too many, or the first shape that is another.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name in sorted(own.keys() ^ weights.keys()):
        raise ValueError(f"{name} is {'missing' if name in own else 'not a trainable parameter of this model'}")
    for name, parameter in own.items():
        if weights[name].shape != parameter.shape:
            raise ValueError(f"{name} has shape {tuple(weights[name].shape)}, not {tuple(parameter.shape)}")
    for name, parameter in own.items():
        parameter.copy_(shared_out(weights[name], parameter))


def optimizer_memory(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What an optimizer knows of each parameter, by the parameter's name."""
    return {
        f"{name}/{key}": whole(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def take_part_in_saving(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What the other processes do while the main one saves: give their parts, where each has one."""
    trained_weights(model)
    optimizer_memory(optimizer, model)


def save_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, path: Path) -> None:
    """Writes what an optimizer knows."""
    tensors = {name: value.cpu().contiguous() for name, value in optimizer_memory(optimizer, model).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, path: Path) -> None:
    """Gives an optimizer back what `save_optimizer` wrote."""
    parameters = dict(model.named_parameters())
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path).items():
        name, _, what = key.rpartition("/")
        state.setdefault(name, {})[what] = shared_out(tensor, parameters[name])
    for name, of_parameter in state.items():
        optimizer.state[parameters[name]] = of_parameter
