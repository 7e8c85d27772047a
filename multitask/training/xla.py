"""What XLA needs: static shapes and the ends of graphs."""

import torch
from accelerate import Accelerator
from accelerate.utils import is_torch_xla_available

from ..errors import UserError


def uses_static_shapes(setting: bool | None, accelerator: Accelerator) -> bool:
    """Whether to use them: as it is set; where it is not, on XLA, and with FSDP.

    There, processes fetch a layer's weights from each other, and so must compute the same layers in the same order.

    Raises:
        UserError: if they are switched off where they are needed.
    """
    if setting is False and accelerator.is_fsdp2:
        raise UserError("training.static_shapes: false is not possible with FSDP; leave it out")
    return accelerator.device.type == "xla" or accelerator.is_fsdp2 if setting is None else setting


def begin_pass(seed: int) -> None:
    """Seeds what is random in a pass; on XLA also sends off what came before as a graph of its own."""
    end_graph()
    torch.manual_seed(seed)
    if is_torch_xla_available():
        import torch_xla.core.xla_model as xm

        xm.set_rng_state(seed)


def end_graph() -> None:
    """On XLA, sends off what has been asked for so far; nothing elsewhere, where all is computed at once.

    Numbers may be wrong that are read one by one of what has not been sent off: PyTorch/XLA takes two graphs of the
    same operations for one, whichever of their arguments they use twice (https://github.com/pytorch/xla/issues/8353).
    """
    if is_torch_xla_available():
        import torch_xla

        torch_xla.sync()
