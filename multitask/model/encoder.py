"""The encoder that all tasks share: one call for the sequences of all tasks, and the seam to the tasks' heads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from ..data.packing import Packed
from .attention import PACKED
from .segments import Segments, lay_out

# What a call of a whole encoder costs besides its tokens, in tokens that take as long: it reads all weights, and its
# backward pass adds to all gradients. Measured on two CPU cores, 20 to 40. An accelerator is much faster with tokens,
# and the host must launch hundreds of operations for it.
CALL_COST = {"cpu": 32}
CALL_COST_OF_ACCELERATORS = 1024

MOST_PADDED = 1.25  # of the tokens: what padding may cost in memory to save calls

TOLERANCE = 1e-4  # by which hidden states in float32 may differ, relative to the largest


FIRST, LAST = 0, -1  # tokens of a sequence


class Method(Enum):
    """How an encoder computes the sequences of several tasks."""

    PACKED = "packed into one row without padding"
    GROUPED = "computed in groups of about one length, as this family cannot be packed"
    APART = "computed task by task, as the heads of this family tell the encoder something of their own"


class Call(NamedTuple):
    """How an encoder is called.

    Args:
        method: of computing the sequences of several tasks.
        first_position: number of a sequence's first position in a packed row.
        output_class: of what the encoder returns.
        exact_lengths: whether grouped sequences must be of one length, as padding would change their states (the
            convolutions of ConvBERT read it).
    """

    method: Method = Method.APART
    first_position: int = 0
    output_class: type[ModelOutput] = BaseModelOutput
    exact_lengths: bool = False

    def __str__(self) -> str:
        """As the plan of a run says it."""
        if self.method is Method.PACKED:
            return f"{self.method.value}, positions from {self.first_position}"
        return self.method.value.replace("about ", "") if self.exact_lengths else self.method.value


def packed_states(encoder: PreTrainedModel, batch: Packed, first_position: int) -> Tensor:
    """The last hidden state of each token of a packed row, shape (tokens, features), from one call of the encoder."""
    positions = batch.position_ids + first_position if first_position else batch.position_ids
    segments = Segments(batch.lengths, batch.cu_seqlens)
    types = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
    return encoder(input_ids=batch.input_ids, position_ids=positions, segments=segments, **types)[0][0]


def grouped_states(encoder: PreTrainedModel, batch: Packed, exact_lengths: bool) -> tuple[Tensor, int]:
    """The same from one call for each group of about one length; and how many tokens there were with padding."""
    device, padding = batch.input_ids.device, encoder.config.pad_token_id or 0
    cost = 0 if exact_lengths else CALL_COST.get(device.type, CALL_COST_OF_ACCELERATORS)
    layout = lay_out(batch.lengths, cost, device, max_tokens=int(batch.lengths.sum() * MOST_PADDED))
    columns = {"input_ids": batch.input_ids, "token_type_ids": batch.token_type_ids}
    laid_out = {name: c[0][layout.source].split(layout.sizes) for name, c in columns.items() if c is not None}
    states = []
    for number, group in enumerate(layout.groups):
        shape = (group.num_sequences, group.length)
        mask = torch.ones(shape, dtype=torch.int64, device=device) if group.mask is None else group.mask.long()
        inputs = {name: parts[number].view(shape) for name, parts in laid_out.items()}
        inputs["input_ids"] = inputs["input_ids"].masked_fill(mask == 0, padding)
        states.append(encoder(**inputs, attention_mask=mask)[0].flatten(0, 1))
    return torch.cat(states).index_select(0, layout.places), sum(layout.sizes)


class EncoderStub(nn.Module):
    """Stands in a task's model where its encoder was; keeps the task's own pooler.

    Called by the head, it returns the hidden states that it was given (`holding`), and otherwise those that the shared
    encoder computes from what the head passes.

    Args:
        encoder: the shared one.
        own: the task's encoder as it was loaded.
    """

    def __init__(self, encoder: PreTrainedModel, own: PreTrainedModel):
        super().__init__()
        self.pooler = getattr(own, "pooler", None)
        # ALBERT and BigBird keep the pooler's parts in the encoder itself.
        self.activation = getattr(own, "pooler_activation", getattr(own, "activation", None))
        self.shared = [encoder]  # a list, so that its parameters are not counted as this module's
        self.held: ModelOutput | None = None
        self.passed_tensors: set[str] = set()  # names of the encoder's arguments that the head passed as tensors

    def forward(self, *args: Any, **kwargs: Any) -> ModelOutput:
        self.passed_tensors = {name for name, value in kwargs.items() if isinstance(value, Tensor)}
        output = self.shared[0](*args, **kwargs) if self.held is None else self.held
        if self.pooler is not None:
            output["pooler_output"] = self.pooled(output["last_hidden_state"])
        return output

    def pooled(self, states: Tensor) -> Tensor:
        """What the task's pooler makes of hidden states of shape (sequences, tokens, features)."""
        assert self.pooler is not None
        if isinstance(self.pooler, nn.Linear):
            assert self.activation is not None
            return self.activation(self.pooler(states[:, 0]))
        return self.pooler(states)

    @contextmanager
    def holding(self, output: ModelOutput) -> Iterator[None]:
        """Within, the head gets this output of an encoder, and the task's pooler's."""
        self.held = output
        try:
            yield
        finally:
            self.held = None


# -- what an encoder and a head can do, found out by trying -----------------------------------------------------------


@torch.no_grad()
def find_call(encoder: PreTrainedModel, models: Sequence[PreTrainedModel], several_sequences: Sequence[bool]) -> Call:
    """How to call an encoder; nothing is random, nothing is changed but the kind of attention.

    Args:
        encoder: the shared one, in float32.
        models: the task models, with stubs in them.
        several_sequences: whether each takes rows of several sequences.
    """
    with _evaluating([encoder, *models]):
        output_class = type(encoder(**_few_tokens(encoder)))
        if not all(map(takes_states, models, several_sequences)):
            return Call(Method.APART, output_class=output_class)
        first = first_packed_position(encoder)
        if first is None:
            return Call(Method.GROUPED, 0, output_class, exact_lengths=reads_padding(encoder))
    return Call(Method.PACKED, first, output_class)


def takes_states(model: PreTrainedModel, several_sequences: bool) -> bool:
    """Whether a head says the same of hidden states that it is handed as of those that it asks the encoder for.

    Not if it passes the encoder what only the head knows (Longformer's heads choose the tokens with global attention).
    """
    stub, inputs = stub_of(model), _few_tokens(model)
    shaped = {name: tensor[None] if several_sequences else tensor for name, tensor in inputs.items()}
    expected = first_tensor(model(**shaped))
    if not stub.passed_tensors <= {"input_ids", "attention_mask", "token_type_ids"}:
        return False
    output = stub.shared[0](**inputs)
    with stub.holding(type(output)(last_hidden_state=output[0])):
        found = first_tensor(model(**shaped))
    return bool(torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE))


def reads_padding(encoder: PreTrainedModel) -> bool:
    """Whether a sequence's states depend on padding behind it."""
    inputs = _few_tokens(encoder)
    alone = encoder(**inputs)[0]
    padding = {"input_ids": encoder.config.pad_token_id or 0, "attention_mask": 0}
    padded = encoder(**{name: F.pad(tensor, (0, 4), value=padding[name]) for name, tensor in inputs.items()})[0]
    return bool((padded[:, :5] - alone).abs().max() > TOLERANCE * alone.abs().max())


@torch.no_grad()
def find_only_token(model: PreTrainedModel, several_sequences: bool) -> int | None:
    """The one token whose state a head reads, `FIRST` or `LAST`, or None for more; tried with NaN in all others."""
    stub, inputs = stub_of(model), _few_tokens(model)
    shaped = {name: tensor[None] if several_sequences else tensor for name, tensor in inputs.items()}
    with _evaluating([stub.shared[0], model]):
        output = stub.shared[0](**inputs)
        states = output[0]
        for token in (FIRST, LAST):
            spoiled = torch.full_like(states, torch.nan)
            spoiled[:, token] = states[:, token]
            alone = {name: tensor[..., [token]] for name, tensor in shaped.items()}
            answers = []
            for held, arguments in ((states, shaped), (spoiled, shaped), (states[:, [token]], alone)):
                with stub.holding(type(output)(last_hidden_state=held)):
                    answers.append(first_tensor(model(**arguments)))
            if all(a.shape == answers[0].shape and torch.equal(a, answers[0]) for a in answers):
                return token
    return None


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, was_training in zip(models, modes, strict=True):
            model.train(was_training)


def first_tensor(output: ModelOutput) -> Tensor:
    """The logits of a model's output; of question answering those of starts."""
    return next(value for value in output.values() if isinstance(value, Tensor))


def stub_of(model: PreTrainedModel) -> EncoderStub:
    """The stub in a task's model."""
    stub = model.base_model
    assert isinstance(stub, EncoderStub)
    return stub


def _few_tokens(model: PreTrainedModel) -> dict[str, Tensor]:
    # Some configurations name a token that does not exist; BART has an end of text alone.
    named = getattr(model.config, "sep_token_id", None) or getattr(model.config, "eos_token_id", None)
    separator = named if isinstance(named, int) and 0 <= named < model.config.vocab_size else 0
    ids = torch.full((1, 5), int(separator == 0), device=model.device)
    ids[0, [1, 3, 4]] = separator  # ends of a question and of a text, which some heads look for
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def first_packed_position(encoder: PreTrainedModel) -> int | None:
    """The number of the first position with which a packed row gives the states of its sequences one by one.

    None if neither 0 nor the one behind the padding's (RoBERTa) does: the family's attention does not go through
    `transformers.AttentionInterface`, its positions are not told by `position_ids`, or it mixes neighbouring tokens.
    On success the encoder keeps the packed attention; otherwise its attention is as it was.
    """
    config = encoder.config
    before = config._attn_implementation
    if not encoder._can_set_attn_implementation():
        return None
    lengths = [3, 7, 2]
    window = getattr(config, "sliding_window", None)
    if isinstance(window, int) and 0 < window < 1024:
        lengths.append(min(2 * window + 3, getattr(config, "max_position_embeddings", 512)))
    generator = torch.Generator().manual_seed(0)
    special = {t for t in (config.pad_token_id, getattr(config, "sep_token_id", None)) if isinstance(t, int)}
    usual = torch.tensor([token for token in range(min(config.vocab_size, 1000)) if token not in special])
    sequences = [usual[torch.randint(len(usual), (n,), generator=generator)].to(encoder.device) for n in lengths]
    expected = torch.cat(
        [encoder(input_ids=s[None], attention_mask=torch.ones_like(s[None]))[0][0] for s in sequences]
    )
    sizes = np.array(lengths)
    packed = Packed(
        input_ids=torch.cat(sequences)[None],
        token_type_ids=None,
        position_ids=torch.cat([torch.arange(n, device=encoder.device) for n in lengths])[None],
        cu_seqlens=torch.tensor([0, *np.cumsum(sizes).tolist()], dtype=torch.int32, device=encoder.device),
        lengths=sizes,
        spans={},
    )
    encoder.set_attn_implementation(PACKED)
    behind_padding = config.pad_token_id + 1 if isinstance(config.pad_token_id, int) else 0
    for first in dict.fromkeys((0, behind_padding)):
        try:
            found = packed_states(encoder, packed, first)
        except (TypeError, ValueError, IndexError, RuntimeError):  # it takes no such arguments
            continue
        if found.shape == expected.shape and (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
            return first
    encoder.set_attn_implementation(before)
    return None
