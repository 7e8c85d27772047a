"""Checkpoint format: everything needed to resume a run or to rebuild its model elsewhere."""

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
from ..tasks.calibration import read_calibration
from ..training.distributed import shared_out, whole
from ..training.state import SavedState
from ..utils import match_modes
from .manifest import checkpoints_in, verify, write_manifest

LAST_WEIGHTS = "last_weights.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """A copy of a run's state at one step, so that training can continue while it is written."""

    weights: dict[str, Tensor]
    last_weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    encoder_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    state: SavedState
    files: dict[str, bytes]  # contents by file name


def take_snapshot(
    model: MultitaskModel,
    optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerBase,
    config: str,
    state: SavedState,
    numbers: Sequence[Path] = (),
    average: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """Copies the contents of a checkpoint to host memory.

    Args:
        model: model with heads and adapters; each trainable parameter is copied once, frozen ones are not.
        optimizer: optimizer of the model's parameters.
        tokenizer: the encoder's tokenizer, unmodified.
        config: the resolved configuration as YAML.
        state: everything else that is saved.
        numbers: metrics files to include.
        average: of the weights over the last steps, if there is one; it is the checkpoint's model.
    """
    first: Any = next(iter(model.tasks.values()))
    return Snapshot(
        weights=_copied(average or trained_weights(model)),
        last_weights=_copied(trained_weights(model)) if average else {},
        optimizer=_copied(optimizer_tensors(optimizer, model)),
        encoder_config=type(first.config).from_dict(first.config.to_dict()),
        tokenizer=tokenizer,
        state=state,
        files={
            "config.yaml": config.encode(),
            "state.json": state.to_json().encode(),
            **{path.name: path.read_bytes() for path in numbers},
        },
    )


# What the system says of a disk, a quota or a limit on files; it comes in exceptions of several libraries.
FULL = ("No space left", "quota exceeded", "File too large")


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Writes a checkpoint folder, which is either complete or absent.

    It holds `model.safetensors`; `last_weights.safetensors`, from which training goes on, if the model is an average;
    `optimizer.safetensors`; `encoder/`, the encoder's configuration and tokenizer;
    `config.yaml`; `state.json`; the metrics files; and `manifest.json`, which lists them all.

    Args:
        folder: replaced if it exists.
        snapshot: what to write.

    Raises:
        UserError: if it does not fit on the disk.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file(snapshot.weights, partial / "model.safetensors", metadata={"format": "pt"})
        if snapshot.last_weights:
            save_file(snapshot.last_weights, partial / LAST_WEIGHTS, metadata={"format": "pt"})
        save_file(snapshot.optimizer, partial / "optimizer.safetensors", metadata={"format": "pt"})
        snapshot.encoder_config.save_pretrained(partial / "encoder")
        save_tokenizer(snapshot.tokenizer, partial / "encoder")
        for name, content in snapshot.files.items():
            (partial / name).write_bytes(content)
        digest = hashlib.sha256(snapshot.files["config.yaml"]).hexdigest()
        state = snapshot.state
        write_manifest(partial, step=state.step, config_digest=digest, versions=state.versions)
        match_modes(partial, partial / "state.json")
        for path in (*partial.rglob("*"), partial):
            _flush(path)
    except Exception as error:  # safetensors and tokenizers raise their own exception types
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(folder.parent.parent).free
        reason = next((reason for reason in FULL if reason in str(error)), None)
        if reason is None:
            raise
        tensors = (*snapshot.weights.values(), *snapshot.last_weights.values(), *snapshot.optimizer.values())
        needed = sum(t.nbytes for t in tensors) + sum(map(len, snapshot.files.values()))
        raise UserError(
            f"training.output_dir: {folder} needs {needed:,} bytes and does not fit on its disk, which has {free:,} "
            f"left ({reason}); the checkpoints before it are whole: make room and go on"
        ) from error
    earlier = folder.rename(folder.with_name(folder.name + ".deleted")) if folder.exists() else None
    partial.rename(folder)
    _flush(folder.parent)
    if earlier:
        shutil.rmtree(earlier)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def delete_checkpoint(folder: Path) -> None:
    """Deletes a checkpoint; renames it first, so that a folder with a checkpoint's name is always complete."""
    if folder.exists():
        shutil.rmtree(folder.rename(folder.with_name(folder.name + ".deleted")))


def _flush(path: Path) -> None:
    """Flushes a file, or a folder's directory entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def find_checkpoint(location: str) -> Path:
    """The checkpoint folder at `location`, or the newest checkpoint if it is a run's folder.

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
    """Loads the model, tasks and tokenizer of a checkpoint.

    Args:
        folder: the checkpoint.
        config: configuration of its run.

    Raises:
        UserError: if the checkpoint is damaged or does not fit the configuration, or a frozen encoder is not found.
    """
    try:
        verify(folder)
    except ValueError as damage:
        raise UserError(f"--checkpoint: {folder} is damaged: {damage}") from damage
    saved = SavedState.read(folder)
    labels = saved.labels
    for name in config.tasks.keys() ^ labels.keys():
        raise UserError(f"--checkpoint: {folder} has the tasks {', '.join(labels)}; '{name}' is in one of both only")
    tasks = [
        Task(
            name,
            TASK_TYPES[task.type],
            tuple(labels[name]),
            rows=task.rows,
            calibration=read_calibration(saved.calibrations.get(name)),
        )
        for name, task in config.tasks.items()
    ]
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


# -- weights and optimizer state -------------------------------------------------------------------------------------


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Each trainable parameter once, by name; with adapters, only the adapters and the heads."""
    return {name: whole(p) for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trained_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads what `trained_weights` returned.

    Raises:
        ValueError: for the first missing or unexpected name, or the first shape mismatch.
    """
    everything = dict(model.named_parameters())
    own = {name: p for name, p in everything.items() if p.requires_grad}
    # RoFormer's sinusoids are trained where they were loaded, and frozen where they are made from the configuration.
    own |= {name: everything[name] for name in weights.keys() & everything.keys()}
    for name in sorted(own.keys() ^ weights.keys()):
        raise ValueError(f"{name} is {'missing' if name in own else 'not a trainable parameter of this model'}")
    for name, parameter in own.items():
        if weights[name].shape != parameter.shape:
            raise ValueError(f"{name} has shape {tuple(weights[name].shape)}, not {tuple(parameter.shape)}")
    for name, parameter in own.items():
        parameter.copy_(shared_out(weights[name], parameter))


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Optimizer state tensors by `PARAMETER/KEY`."""
    return {
        f"{name}/{key}": whole(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def take_part_in_saving(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Takes part, on the other processes, in gathering sharded tensors while the main process saves."""
    trained_weights(model)
    optimizer_tensors(optimizer, model)


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, path: Path) -> None:
    """Loads optimizer state from a file of the tensors that `optimizer_tensors` returned."""
    parameters = dict(model.named_parameters())
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path).items():
        name, _, what = key.rpartition("/")
        state.setdefault(name, {})[what] = shared_out(tensor, parameters[name])
    for name, of_parameter in state.items():
        optimizer.state[parameters[name]] = of_parameter
