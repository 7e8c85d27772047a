"""XLA support: static shapes and graph boundaries."""

import torch
from accelerate import Accelerator
from accelerate.utils import is_torch_xla_available

from ..errors import UserError


def uses_static_shapes(setting: bool | None, accelerator: Accelerator) -> bool:
    """Whether to use static shapes: the setting, or by default on XLA and with FSDP.

    With FSDP, processes gather each layer's weights together, so all must run the same layers in the same order.

    Raises:
        UserError: if the setting disables static shapes with FSDP.
    """
    if setting is False and accelerator.is_fsdp2:
        raise UserError("training.static_shapes: false is not possible with FSDP; leave it out")
    return accelerator.device.type == "xla" or accelerator.is_fsdp2 if setting is None else setting


def begin_pass(seed: int) -> None:
    """Seeds the random numbers of a pass; on XLA, first executes the pending operations as a separate graph."""
    end_graph()
    torch.manual_seed(seed)
    if is_torch_xla_available():
        import torch_xla.core.xla_model as xm

        xm.set_rng_state(seed)


def end_graph() -> None:
    """On XLA, executes the operations traced so far; elsewhere execution is eager and this does nothing.

    Reading values one at a time from a pending graph can give wrong numbers: PyTorch/XLA treats two graphs with the
    same operations as one, whichever arguments they use twice (https://github.com/pytorch/xla/issues/8353).
    """
    if is_torch_xla_available():
        import torch_xla

        torch_xla.sync()
