"""Batches of few shapes, for XLA, which compiles a program for each shape that it meets and keeps it.

A task's sequences are padded to a length of a small set, its sub-batches to a number of rows that depends on that
length alone, and a pass holds one task. So a run has as many graphs of passes as its tasks have lengths.
"""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import is_torch_xla_available

from .data import Split
from .errors import UserError

SHORTEST = 16  # below, a graph of its own saves nothing


def uses_static_shapes(setting: bool | None, accelerator: Accelerator) -> bool:
    """Whether to use them: as it is set; where it is not, on XLA, and with FSDP.

    There, processes fetch a layer's weights from each other, and so must compute the same layers in the same order.

    Raises:
        UserError: if they are switched off where they are needed.
    """
    if setting is False and accelerator.is_fsdp2:
        raise UserError("training.static_shapes: false is not possible with FSDP; leave it out")
    return accelerator.device.type == "xla" or accelerator.is_fsdp2 if setting is None else setting


def static_lengths(split: Split) -> list[int]:
    """Tokens to which a split's sequences are padded: powers of two, and the length of the longest."""
    longest = int(split.length.max())
    powers = [2**n for n in range(SHORTEST.bit_length() - 1, longest.bit_length())]
    return [length for length in powers if length < longest] + [longest]


def static_shape(split: Split, longest: int, most_rows: int, max_tokens: int) -> tuple[int, int]:
    """The rows and the tokens of the sub-batch that a row travels in.

    Args:
        split: what the row is of.
        longest: tokens of its longest sequence.
        most_rows: as many as ever come together.
        max_tokens: of one pass; a row that is longer by itself gets a pass of its own.
    """
    length = next(length for length in static_lengths(split) if length >= longest)
    return max(1, min(most_rows, max_tokens // (length * split.sequences))), length


def num_graphs(splits: Mapping[str, Split]) -> int:
    """How many shapes the passes over these splits can have: lengths, summed over the tasks."""
    return sum(len(static_lengths(split)) for split in splits.values())


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
