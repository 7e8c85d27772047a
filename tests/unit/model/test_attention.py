"""Attention inside segments, against plain attention over one sequence at a time."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from multitask.model import attention
from multitask.model.attention import packed_attention
from multitask.model.segments import Segments

LENGTHS = np.array([5, 1, 9, 5, 3, 9, 30])


def make_segments(lengths=LENGTHS):
    return Segments(lengths, torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32))


def make_heads(heads, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, int(LENGTHS.sum()), 8, generator=generator).to(dtype).requires_grad_()


def one_by_one(query, key, value, scaling=None, window=None):
    parts = []
    for q, k, v in zip(*(x.split(LENGTHS.tolist(), dim=2) for x in (query, key, value)), strict=True):
        tokens = torch.arange(q.shape[2])
        mask = None if window is None else (tokens[:, None] - tokens).abs() < window
        parts.append(F.scaled_dot_product_attention(q, k, v, mask, scale=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 2, 7, 100])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("call_cost", [0, 32, 10**6])
def test_each_sequence_attends_to_itself(monkeypatch, call_cost, scaling, window):
    monkeypatch.setattr("multitask.model.segments.ATTENTION_CALL_COST", call_cost)
    inputs = [make_heads(2, seed=seed) for seed in range(3)]
    output, _ = packed_attention(
        torch.nn.Identity(), *inputs, None, scaling=scaling, sliding_window=window, segments=make_segments()
    )
    expected = one_by_one(*inputs, scaling, window)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(expected)
    found, right = (torch.autograd.grad((x * weights).sum(), inputs) for x in (output, expected))
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_queries_may_share_their_keys():
    query, key, value = make_heads(4), make_heads(2, seed=1), make_heads(2, seed=2)
    output, _ = packed_attention(torch.nn.Identity(), query, key, value, None, segments=make_segments())
    repeated = [x.repeat_interleave(2, dim=1) for x in (key, value)]
    torch.testing.assert_close(output, one_by_one(query, *repeated), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_near_float64(dtype):
    inputs = [make_heads(2, dtype, seed) for seed in range(3)]
    output, _ = packed_attention(torch.nn.Identity(), *inputs, None, segments=make_segments())
    assert output.dtype is dtype
    expected = one_by_one(*(x.double() for x in inputs))
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-6 if dtype is torch.float32 else 0.03)


def test_dropout_drops_the_weights_of_attention():
    query, key = torch.zeros(1, 1, 39, 8), torch.zeros(1, 1, 39, 8)
    value = torch.ones(1, 1, 39, 8)
    lengths = np.array([39])
    segments = Segments(lengths, torch.tensor([0, 39], dtype=torch.int32))
    torch.manual_seed(0)
    output, _ = packed_attention(torch.nn.Identity(), query, key, value, None, dropout=0.5, segments=segments)
    kept = output[0, :, 0, 0] * 39 / 2  # of 39 weights, those that were not dropped
    torch.testing.assert_close(kept, kept.round(), atol=1e-4, rtol=0)
    assert len(set(kept.round().tolist())) > 3 and 15 < kept.mean() < 24


@pytest.mark.parametrize("operator", ["_flash_attention_forward", "_efficient_attention_forward"])
def test_the_kernels_of_a_gpu_get_arguments_that_their_schema_takes(monkeypatch, operator):
    """Without a GPU they cannot compute; PyTorch checks names and types before it looks for a kernel."""
    seen = {}
    overload = getattr(torch.ops.aten, operator).default

    def checked(*args, **kwargs):
        schema = overload._schema
        names = [argument.name for argument in schema.arguments if not argument.kwarg_only]
        assert len(args) <= len(names) and set(kwargs) <= {argument.name for argument in schema.arguments}
        needed = {a.name for a in schema.arguments if not a.has_default_value()}
        given = dict(zip(names, args, strict=False)) | kwargs
        assert needed <= set(given)
        with pytest.raises((NotImplementedError, RuntimeError), match="CUDA|Meta|backend|CPU"):
            overload(*args, **kwargs)  # a wrong type would be a TypeError
        seen.update(given)
        return args[0], None

    monkeypatch.setattr(torch.ops.aten, operator, checked)
    query, key, value = (make_heads(2, torch.float32, seed).transpose(1, 2)[0] for seed in range(3))
    segments = make_segments()
    if operator == "_flash_attention_forward":
        output = attention.flash(query, key, value, segments, 0.1, 0.5, sliding_window=5)
        assert (seen["window_size_left"], seen["window_size_right"]) == (4, 4)
        assert (seen["max_q"], seen["max_k"], seen["is_causal"]) == (30, 30, False)
        assert seen["cum_seq_q"] is seen["cum_seq_k"] is segments.cu_seqlens
    else:
        output = attention.memory_efficient(query, key, value, segments, 0.1, 0.5)
        assert (seen["max_seqlen_q"], seen["max_seqlen_k"], seen["custom_mask_type"]) == (30, 30, 0)
        assert seen["compute_log_sumexp"] and seen["bias"] is None and seen["query"].shape == (1, 62, 2, 8)
    assert (seen["dropout_p"], seen["scale"]) == (0.1, 0.5)
    assert output.shape == (62, 2, 8)
