"""Beginning a new run with what an earlier one has learned."""

from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import nn

from ..config.load import load_config
from ..config.schema import Config
from ..errors import UserError
from ..model.multitask import MultitaskModel
from ..tasks.base import Task
from ..training.distributed import shared_out
from ..training.state import SavedState
from .format import find_checkpoint
from .manifest import verify

KEY = "training.init_from_checkpoint"


@torch.no_grad()
def warm_start(model: MultitaskModel, tasks: Sequence[Task], location: str, config: Config) -> str:
    """Puts the encoder of an earlier run, and the heads of tasks with the same name, type and labels, into a model.

    Args:
        model: of the new run; changed in place.
        tasks: of the new run.
        location: a run's folder, of which the newest checkpoint is taken, or a checkpoint.
        config: of the new run.

    Returns:
        A line that says what was taken and which heads are new, with the reason.

    Raises:
        UserError: if there is no whole checkpoint, or its encoder is another.
    """
    try:
        folder = find_checkpoint(location)
        verify(folder)
    except (UserError, ValueError) as error:
        raise UserError(f"{KEY}: {str(error).removeprefix('--checkpoint: ')}") from error
    earlier, state = load_config(folder / "config.yaml"), SavedState.read(folder)
    weights = load_file(folder / "model.safetensors")
    own = dict(model.named_parameters())

    was_frozen = earlier.model.freeze_encoder or earlier.adapters is not None
    is_frozen = config.model.freeze_encoder or config.adapters is not None
    if is_frozen and not was_frozen:
        raise UserError(
            f"{KEY}: {location} has trained its encoder, which this run leaves frozen and would not save; to put "
            f"adapters or heads on it, use an exported model: --model.encoder {location}/export/TASK"
        )
    if was_frozen and earlier.model.encoder != config.model.encoder:
        raise UserError(
            f"{KEY}: {location} is around the frozen encoder '{earlier.model.encoder}', model.encoder is "
            f"'{config.model.encoder}'; they must be the same"
        )
    of_encoder = {name for name, parameter in own.items() if name.startswith("encoder.") and parameter.requires_grad}
    taken = of_encoder & weights.keys()
    if not was_frozen:
        for name in sorted(of_encoder):
            there = tuple(weights[name].shape) if name in weights else "none"
            if there != tuple(own[name].shape):
                raise UserError(
                    f"{KEY}: {location} has another encoder: {name} has shape {tuple(own[name].shape)} here, {there} "
                    f"there; model.encoder was '{earlier.model.encoder}'"
                )
    new: list[str] = []
    for task in tasks:
        names = {name for name in own if name.startswith(f"tasks.{task.name}.")}
        if task.name not in state.labels:
            new.append(f"{task.name} (not in that run)")
        elif earlier.tasks[task.name].type != task.type.name:
            new.append(f"{task.name} (a {earlier.tasks[task.name].type} there)")
        elif tuple(state.labels[task.name]) != task.labels:
            new.append(f"{task.name} (other labels there)")
        elif any(name not in weights or weights[name].shape != own[name].shape for name in names):
            new.append(f"{task.name} (another head there)")
        else:
            taken |= names
    for name in taken:
        if weights[name].shape == own[name].shape:
            _put(own[name], weights[name])
    heads = [task.name for task in tasks if not any(entry.startswith(f"{task.name} ") for entry in new)]
    return f"begins with the encoder of {folder}, and with the heads of {', '.join(heads) or 'no task'}" + (
        f"; new heads: {', '.join(new)}" if new else ""
    )


def _put(parameter: nn.Parameter, weight: torch.Tensor) -> None:
    parameter.copy_(shared_out(weight, parameter))
