"""Weights of which each process keeps a part (FSDP, version 2): gathered to be written, cut up when they are read."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is shared out, every process must ask for it at the same time."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def shared_out(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut up as a parameter of its shape is; otherwise all, on its device."""
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor
