"""Checkpoints: what a run has learned, and what it takes to use it elsewhere."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..config.schema import Config
from ..errors import UserError
from ..model.lora import freeze_or_adapt
from ..model.multitask import MultitaskModel
from ..model.pretrained import build_model, find_encoder, load_tokenizer, save_tokenizer
from ..tasks.base import TASK_TYPES, Task
from ..training.distributed import shared_out, whole
from ..training.state import SavedState
from .manifest import checkpoints_in, verify, write_manifest


@dataclass(frozen=True)
class Snapshot:
    """A run at one step, copied, so that training can go on while it is written."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    encoder_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    state: SavedState
    texts: dict[str, str]  # by the name of the file


def take_snapshot(
    model: MultitaskModel,
    optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerBase,
    config: str,
    state: SavedState,
    numbers: Sequence[Path] = (),
) -> Snapshot:
    """Copies into the host's memory what a checkpoint holds.

    Args:
        model: with its heads and adapters; each trained weight is taken once, those of a frozen encoder are not.
        optimizer: of its parameters.
        tokenizer: the encoder's, as it came.
        config: the resolved configuration as YAML.
        state: everything else that is kept.
        numbers: files to copy.
    """
    first: Any = next(iter(model.tasks.values()))
    return Snapshot(
        weights=_copied(trained_weights(model)),
        optimizer=_copied(optimizer_tensors(optimizer, model)),
        encoder_config=type(first.config).from_dict(first.config.to_dict()),
        tokenizer=tokenizer,
        state=state,
        texts={
            "config.yaml": config,
            "state.json": state.to_json(),
            **{path.name: path.read_text() for path in numbers},
        },
    )


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Writes a folder from which the run can go on, and the model be made again; it is there as a whole or not at all.

    It holds `model.safetensors`; `optimizer.safetensors`; `encoder/`, the encoder's configuration and tokenizer;
    `config.yaml`; `state.json`; the numbers so far; and `manifest.json`, which lists them all.

    Args:
        folder: replaced if it is there.
        snapshot: what to write.

    Raises:
        UserError: if it does not fit on the disk.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file(snapshot.weights, partial / "model.safetensors", metadata={"format": "pt"})
        save_file(snapshot.optimizer, partial / "optimizer.safetensors", metadata={"format": "pt"})
        snapshot.encoder_config.save_pretrained(partial / "encoder")
        save_tokenizer(snapshot.tokenizer, partial / "encoder")
        for name, text in snapshot.texts.items():
            (partial / name).write_text(text)
        digest = hashlib.sha256(snapshot.texts["config.yaml"].encode()).hexdigest()
        state = snapshot.state
        write_manifest(partial, step=state.step, config_digest=digest, versions=state.versions)
        for path in (*partial.rglob("*"), partial):
            _flush(path)
    except Exception as error:  # safetensors has an exception of its own, and tokenizers another
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(folder.parent.parent).free
        if "No space left" not in str(error):
            raise
        tensors = (*snapshot.weights.values(), *snapshot.optimizer.values())
        needed = sum(t.nbytes for t in tensors) + sum(len(text.encode()) for text in snapshot.texts.values())
        raise UserError(
            f"training.output_dir: {folder} needs {needed:,} bytes and does not fit on its disk, which has {free:,} "
            f"left; the checkpoints before it are whole: make room and go on"
        ) from error
    earlier = folder.rename(folder.with_name(folder.name + ".deleted")) if folder.exists() else None
    partial.rename(folder)
    _flush(folder.parent)
    if earlier:
        shutil.rmtree(earlier)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


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
    if location.startswith("gs://"):
        raise UserError(f"--checkpoint: {location} is not here; fetch it: python -m multitask.checkpoint fetch URL")
    folder = Path(location)
    if (folder / "manifest.json").is_file():
        return folder
    found = checkpoints_in(folder)
    if not found:
        what = "is neither a checkpoint nor a run with one" if folder.is_dir() else "is no folder"
        raise UserError(f"--checkpoint: {location} {what} (seen from {Path.cwd()})")
    return found[0]


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
    labels = SavedState.read(folder).labels
    for name in config.tasks.keys() ^ labels.keys():
        raise UserError(f"--checkpoint: {folder} has the tasks {', '.join(labels)}; '{name}' is in one of both only")
    tasks = [Task(name, TASK_TYPES[task.type], tuple(labels[name])) for name, task in config.tasks.items()]
    lora = config.adapters
    is_frozen = config.model.freeze_encoder or lora is not None
    encoder = find_encoder(config.model.encoder, config.model_root) if is_frozen else str(folder / "encoder")
    model = build_model(encoder, tasks, config.model.dropout, config.training.seed, pretrained=is_frozen)
    freeze_or_adapt(model, config.model.freeze_encoder, lora)
    if config.training.loss_balancing == "uncertainty":
        model.add_log_variances()
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


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What an optimizer knows of each parameter, by the parameter's name."""
    return {
        f"{name}/{key}": whole(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def take_part_in_saving(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What the other processes do while the main one saves: give their parts, where each has one."""
    trained_weights(model)
    optimizer_tensors(optimizer, model)


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, path: Path) -> None:
    """Gives an optimizer back what `optimizer_tensors` gave, from a file."""
    parameters = dict(model.named_parameters())
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path).items():
        name, _, what = key.rpartition("/")
        state.setdefault(name, {})[what] = shared_out(tensor, parameters[name])
    for name, of_parameter in state.items():
        optimizer.state[parameters[name]] = of_parameter
