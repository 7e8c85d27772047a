"""Attention inside the segments of a packed row of shape (1, tokens).

Registered with `transformers.AttentionInterface`
(https://huggingface.co/docs/transformers/attention_interface). A model with this attention that is called with
`segments=Segments(…)` lets each token attend to its own sequence alone; called without, it computes ordinary
scaled-dot-product attention over a padded batch.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .segments import Layout, Segments

PACKED = "packed"  # the name under which `transformers` knows it
FLASH_HEAD_SIZE = 256  # PyTorch's flash kernel takes no larger heads
FLASH_CAPABILITY = (8, 0)  # nor GPUs before Ampere


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as `transformers` calls it.

    Args:
        module: the attention layer.
        query: shape (1, heads, tokens, head size); as are `key` and `value`, which may have fewer heads.
        key: see `query`.
        value: see `query`.
        attention_mask: for padded batches; a packed row has none.
        dropout: probability, on the attention weights.
        scaling: of the products of queries and keys; None for one over the root of the head size.
        segments: the sequences of a packed row; None for a padded batch.
        sliding_window: tokens less than this far from each other attend to each other; None for all of a sequence.
        kwargs: what else the family passes; unused in a packed row.

    Returns:
        Shape (1, tokens, heads, head size), and no attention weights.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if query.is_cuda and torch.is_autocast_enabled("cuda"):  # rotary embeddings leave float32 behind
        query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    query, key, value = (x.transpose(1, 2)[0] for x in (query, key, value))
    if groups > 1:  # grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245)
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    is_local = sliding_window is not None and sliding_window < segments.max_length
    if query.is_cuda and can_use_flash(query):
        output = flash(query, key, value, segments, dropout, scaling, sliding_window if is_local else None)
    elif query.is_cuda and not is_local and query.shape[-1] % 8 == 0:
        output = memory_efficient(query, key, value, segments, dropout, scaling)
    else:
        output = in_groups(query, key, value, segments, dropout, scaling, sliding_window if is_local else None)
    return output[None], None


def can_use_flash(query: Tensor) -> bool:
    """Whether PyTorch's flash kernel takes such queries."""
    return (
        query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] <= FLASH_HEAD_SIZE
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= FLASH_CAPABILITY
    )


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """FlashAttention-2 over segments (Dao 2023, arXiv:2307.08691); tensors of shape (tokens, heads, head size)."""
    reach = None if sliding_window is None else sliding_window - 1
    return torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        segments.cu_seqlens,
        segments.cu_seqlens,
        segments.max_length,
        segments.max_length,
        dropout,
        False,  # causal
        False,  # debug mask
        scale=scaling,
        window_size_left=reach,
        window_size_right=reach,
    )[0]


def memory_efficient(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, dropout: float, scaling: float | None
) -> Tensor:
    """The same by PyTorch's memory-efficient kernel (Rabe and Staats 2021, arXiv:2112.05682), also in float32."""
    return torch.ops.aten._efficient_attention_forward(
        query[None],
        key[None],
        value[None],
        None,  # bias
        segments.cu_seqlens,
        segments.cu_seqlens,
        segments.max_length,
        segments.max_length,
        dropout,
        0,  # no mask
        torch.is_grad_enabled(),  # the sums of exponentials, for the backward pass
        scale=scaling,
    )[0][0]


def in_groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """The same by PyTorch's scaled-dot-product attention, which takes padded batches: segments of about one length."""
    layout = segments.layout
    placed = [_Spread.apply(x, layout) for x in (query, key, value)]
    answers = []
    for group, *parts in zip(layout.groups, *(x.split(layout.sizes) for x in placed), strict=True):
        q, k, v = (x.unflatten(0, (group.num_sequences, group.length)).transpose(1, 2) for x in parts)
        mask = None if group.mask is None else group.mask[:, None, None]
        if sliding_window is not None and sliding_window < group.length:
            token = torch.arange(group.length, device=q.device)
            is_near = (token[:, None] - token).abs() < sliding_window
            mask = is_near if mask is None else mask & is_near
            # Queries of padding that see no token at all: their answers are not read, and must not be NaN.
            mask = mask | (token[:, None] == token)
        answer = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling)
        answers.append(answer.transpose(1, 2).flatten(0, 1))
    return _Collect.apply(torch.cat(answers), layout)


class _Spread(torch.autograd.Function):
    """From tokens one behind the other to their places in padded groups; padding repeats a token and is masked.

    Both ways are a choice by index. The backward pass of `index_select` would add rows to zeros one by one.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return tokens.index_select(0, layout.source)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.layout.places), None


class _Collect(torch.autograd.Function):
    """The way back from padded groups to tokens; what stands in the places of padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return padded.index_select(0, layout.places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layout = ctx.layout
        return gradient.index_select(0, layout.source).index_fill_(0, layout.padding, 0), None


def _mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """None for a packed row, which comes without a mask; otherwise that of scaled-dot-product attention."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _mask)
