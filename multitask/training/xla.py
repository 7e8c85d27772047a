"""XLA (TPUs): static shapes, and where graphs end."""

import torch
from accelerate import Accelerator
from accelerate.utils import is_torch_xla_available

from ..errors import UserError


def uses_static_shapes(setting: bool | None, accelerator: Accelerator) -> bool:
    """Whether to use static shapes: as configured, by default on XLA, and always with FSDP.

    With FSDP, processes exchange the weights of a layer, so all must compute the same layers in the same order.

    Raises:
        UserError: if they are switched off with FSDP.
    """
    if setting is False and accelerator.is_fsdp2:
        raise UserError("training.static_shapes: false is not possible with FSDP; leave it out")
    return accelerator.device.type == "xla" or accelerator.is_fsdp2 if setting is None else setting


def begin_pass(seed: int) -> None:
    """Seeds the random numbers of a pass; on XLA also ends the graph before it."""
    end_graph()
    torch.manual_seed(seed)
    if is_torch_xla_available():
        import torch_xla.core.xla_model as xm

        xm.set_rng_state(seed)


def end_graph() -> None:
    """On XLA, ends the current graph; elsewhere does nothing.

    Without it, values read one by one may be wrong: PyTorch/XLA treats two graphs with the same operations as one even
    if they use different arguments twice (https://github.com/pytorch/xla/issues/8353).
    """
    if is_torch_xla_available():
        import torch_xla

        torch_xla.sync()
