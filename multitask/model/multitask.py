"""The model: one shared encoder and one head per task, made of classes of `transformers`."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..data.packing import Inputs, Packed
from ..errors import UserError
from .encoder import (
    FIRST,
    Call,
    EncoderStub,
    Method,
    find_call,
    find_only_token,
    grouped_states,
    packed_states,
    stub_of,
)
from .routing import Route, Routing, route_to


class MultitaskModel(nn.Module):
    """Task models around one encoder: `model(packed) -> {task: logits}`.

    Each task model is an ordinary `transformers` model (`model.tasks[NAME]`) with a stub in place of its encoder. A
    pooler belongs to its task's head, as some classes of a family have one and others do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder: Any
        self.register_module("encoder", None)  # before the tasks, so that its parameters come first
        self.tasks = nn.ModuleDict()
        self.log_variances = nn.ModuleDict()  # one number for each task, where losses are weighted by uncertainty
        self.streams: dict[str, str] = {}  # the rows that each task reads
        self.adapters: dict[str, list[str]] = {}  # names of the LoRA adapters of each task
        self.lora_layers: list[Any] = []  # the encoder's layers that hold them
        self.routing = Routing()  # which adapters the tokens go through
        self.call = Call()  # how the encoder is called
        self.only_token: dict[
            str, int
        ] = {}  # of tasks whose heads read one token of a sequence: the first or the last
        self.computed_tokens = 0  # by the encoder so far, padding included

    def add_task(self, name: str, model: PreTrainedModel, rows: str | None = None) -> None:
        """Adds a task model. Its encoder is replaced by the shared one, which is that of the first task.

        Args:
            name: of the task.
            model: an ordinary model of `transformers`.
            rows: name of the rows, if several tasks read them; they share an adapter.

        Raises:
            UserError: if the family builds its head on another encoder than the tasks before.
        """
        own: Any = model.base_model
        if self.encoder is not None and type(own) not in (type(self.encoder), EncoderStub):
            raise UserError(
                f"model.encoder: {own.config.model_type} has one encoder for task {name} ({type(own).__name__}) and "
                f"another for those before it ({type(self.encoder).__name__}); they cannot share one"
            )
        if self.encoder is None:
            self.encoder = own
            stacks = [module for module in own.modules() if isinstance(module, nn.ModuleList)]
            # Where Accelerate looks for the layers that FSDP shards; `transformers` names those of some families only.
            self._no_split_modules = sorted({type(layer).__name__ for stack in stacks for layer in stack})
        if not isinstance(own, EncoderStub):
            setattr(model, model.base_model_prefix, EncoderStub(self.encoder, own))
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = nn.Identity()  # some families call it without asking whether there is one
        self.tasks[name] = model
        self.streams[name] = rows or name

    def find_call(self, several_sequences: Mapping[str, bool]) -> None:
        """Finds out how the encoder is called, before the training, so that all steps compute in the same way.

        Args:
            several_sequences: one task of each type, and whether its rows have several sequences.
        """
        models: Any = [self.tasks[task] for task in several_sequences]
        self.call = find_call(self.encoder, models, list(several_sequences.values()))
        if self.call.method is not Method.APART:
            tried = zip(models, several_sequences.values(), strict=True)
            tokens = {type(model): find_only_token(model, several) for model, several in tried}
            found = {task: tokens.get(type(model)) for task, model in self.tasks.items()}
            self.only_token = {task: token for task, token in found.items() if token is not None}

    def encoder_fingerprint(self) -> str:
        """Changes with the encoder's weights; the first numbers of each parameter count."""
        digest = hashlib.blake2b(digest_size=8)
        for name, parameter in self.encoder.named_parameters():
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().flatten()[:1024].float().cpu().numpy())
        return digest.hexdigest()

    def add_log_variances(self) -> None:
        """Adds a learned log variance per task, initialised to 0 (uncertainty weighting)."""
        for name in self.tasks:
            self.log_variances[name] = nn.ParameterList([nn.Parameter(torch.zeros(1))])

    def log_variance(self, task: str) -> nn.Parameter:
        """The log variance of a task, shape (1,)."""
        (parameter,) = self.log_variances[task].parameters()
        return parameter

    def forward(self, batch: Packed | Mapping[str, Inputs], apart: bool = False) -> dict[str, Tensor]:
        """Runs the encoder, and each task's head on its own sequences.

        Args:
            batch: packed sequences; or padded keyword arguments of each task's model, each computed by itself.
            apart: computes the tasks of a packed batch one by one, so that their gradients can be told apart.

        Returns:
            Logits by task, shape (rows, outputs), or (rows, tokens, outputs) for token-level heads, whose values at
            padding are undefined. The logits of a task without rows still depend on its own parameters (on all
            parameters, if no task has rows), so that every process takes part in the same gradient exchange.
        """
        if isinstance(batch, Packed):
            names = list(batch.spans)
            filled = {task for task, span in batch.spans.items() if span.num_rows}
            logits = self._packed_logits(batch, filled, apart)
        else:
            names = list(batch)
            filled = {task for task, inputs in batch.items() if len(inputs["input_ids"])}
            logits = {task: self._padded_logits(task, batch[task]) for task in filled}
        for task in names:
            if task not in filled:
                own = [*self.head_parameters(task), *self.adapter_parameters(self.streams[task])]
                logits[task] = _no_rows(own if filled else self.parameters())
        return {task: logits[task] for task in names}

    def _padded_logits(self, task: str, inputs: Inputs) -> Tensor:
        """Of one task that is computed by itself."""
        self.computed_tokens += inputs["input_ids"].numel()
        with route_to(self.routing, [(self.adapters.get(task, []), 0)]):
            return logits_of(self.tasks[task](**inputs))

    def _packed_logits(self, batch: Packed, tasks: set[str], apart: bool) -> dict[str, Tensor]:
        names = [task for task in batch.spans if task in tasks]
        if self.call.method is Method.APART:
            return {task: self._padded_logits(task, self._padded(batch, task)) for task in names}
        # Groups of about one length mix the tasks, whose tokens are then no ranges for their adapters.
        is_mixed = self.call.method is Method.GROUPED and len({tuple(a) for a in self.adapters.values()}) > 1
        if (apart or is_mixed) and len(tasks) > 1:
            parts = [self._packed_logits(batch.only(task), {task}, apart) for task in names]
            return {task: logits for part in parts for task, logits in part.items()}
        if not tasks:
            return {}
        with route_to(self.routing, self._route(batch, tasks)):
            if self.call.method is Method.PACKED:
                states = packed_states(self.encoder, batch, self.call.first_position)
                computed = batch.input_ids.numel()
            else:
                states, computed = grouped_states(self.encoder, batch, self.call.exact_lengths)
        self.computed_tokens += computed
        return self._head_logits(batch, states, names)

    def _head_logits(self, batch: Packed, states: Tensor, tasks: list[str]) -> dict[str, Tensor]:
        """The heads' answers to hidden states of shape (tokens, features)."""
        places = {task: self._places(batch, task) for task in tasks}
        # One choice for all tasks: the gradient of each would be as large as all states.
        chosen = states.index_select(0, torch.cat([index.flatten() for index, _ in places.values()]))
        parts = chosen.split([index.numel() for index, _ in places.values()])
        logits = {}
        for task, own in zip(tasks, parts, strict=True):
            model: Any = self.tasks[task]
            index, mask = places[task]
            inputs = self._head_inputs(batch, task, index, mask)
            with stub_of(model).holding(self.call.output_class(last_hidden_state=own.view(*index.shape, -1))):
                logits[task] = logits_of(model(**inputs))
        return logits

    def _places(self, batch: Packed, task: str) -> tuple[Tensor, Tensor]:
        """Where the tokens of a task's sequences are, shape (sequences, tokens), and which of them are no padding."""
        sequences = batch.spans[task].sequences
        bounds = batch.cu_seqlens[sequences.start : sequences.stop + 1].long()
        firsts, ends = bounds[:-1, None], bounds[1:, None]
        if task in self.only_token:
            index = firsts if self.only_token[task] == FIRST else ends - 1
            return index, torch.ones_like(index, dtype=torch.bool)
        index = firsts + torch.arange(int(batch.lengths[sequences].max()), device=bounds.device)
        return torch.where(index < ends, index, firsts), index < ends

    def _head_inputs(self, batch: Packed, task: str, index: Tensor, mask: Tensor) -> Inputs:
        span = batch.spans[task]
        ids = batch.input_ids[0][index].masked_fill(~mask, self.encoder.config.pad_token_id or 0)
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        if span.per_row == 1:
            return inputs
        return {name: tensor.view(span.num_rows, span.per_row, -1) for name, tensor in inputs.items()}

    def _padded(self, batch: Packed, task: str) -> Inputs:
        """A task's sequences as its model takes them by itself."""
        index, mask = self._places(batch, task)
        inputs = self._head_inputs(batch, task, index, mask)
        if batch.token_type_ids is not None:
            types = batch.token_type_ids[0][index].masked_fill(~mask, 0)
            inputs["token_type_ids"] = types.view_as(inputs["input_ids"])
        return inputs

    def _route(self, batch: Packed, tasks: set[str]) -> Route:
        """The adapters that each task's tokens go through; tasks with the same rows have the same."""
        first_of = {span.first: task for task, span in reversed(batch.spans.items()) if task in tasks}
        names = {task: self.adapters.get(task, []) for _, task in sorted(first_of.items())}
        if len({tuple(of_task) for of_task in names.values()}) == 1:
            return [(next(iter(names.values())), 0)]
        route = [(of_task, int(batch.lengths[batch.spans[task].sequences].sum())) for task, of_task in names.items()]
        assert sum(count for _, count in route) == batch.lengths.sum(), (
            "tasks with adapters of their own share no rows"
        )
        return route

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of one adapter; none, if there is no such adapter."""
        parts = [part for layer in self.lora_layers for part in (layer.lora_A, layer.lora_B) if name in part]
        return [parameter for part in parts for parameter in part[name].parameters()]

    def parameters_only_of(self, tasks: Collection[str]) -> list[nn.Parameter]:
        """The parameters that no other task uses: heads, and adapters that all tasks that use them are among."""
        used = {name for task, names in self.adapters.items() if task not in tasks for name in names}
        own = {name for task in tasks for name in self.adapters.get(task, ())} - used
        heads = [parameter for task in tasks for parameter in self.head_parameters(task)]
        return heads + [parameter for name in sorted(own) for parameter in self.adapter_parameters(name)]

    def head_parameters(self, task: str) -> list[nn.Parameter]:
        """The parameters that only `task` uses, those of its own adapter among them."""
        own = [*self.tasks[task].parameters(), *self.adapter_parameters(task)]
        return own + ([self.log_variance(task)] if task in self.log_variances else [])


def logits_of(output: ModelOutput) -> Tensor:
    """The logits as one tensor; for question answering, start and end logits are stacked in the last dimension."""
    if "start_logits" in output:
        return torch.stack([output["start_logits"], output["end_logits"]], dim=-1)
    return output["logits"]


def _no_rows(parameters: Iterable[nn.Parameter]) -> Tensor:
    # With FSDP a layer's parameters are whole within the layer alone, which exchanges their gradients by itself.
    trained = [parameter for parameter in parameters if parameter.requires_grad and not isinstance(parameter, DTensor)]
    # The factor gives each parameter a gradient of its own, of zeros. That of a sum alone is one number, expanded, and
    # PyTorch/XLA keeps it as a view: what other passes add to it ends up summed in that number, for all parameters.
    return torch.stack([(0 * parameter).sum() for parameter in trained]).sum().expand(0, 1)


def checkpoint_gradients(model: MultitaskModel) -> None:
    """Turns on gradient checkpointing: the encoder's layers recompute their activations in the backward pass.

    Recomputation uses the adapters of the first computation.

    Raises:
        UserError: if the encoder's family does not support it in `transformers`.
    """

    @contextmanager
    def routed_again(route: Any) -> Iterator[None]:
        with route_to(model.routing, route):
            yield

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        """Called as a layer computes; around its first and its second computation."""
        return nullcontext(), routed_again(model.routing.route)

    encoder = model.encoder
    if not encoder.supports_gradient_checkpointing:
        family = encoder.config.model_type
        raise UserError(f"training.gradient_checkpointing: {family} does not support it in transformers")
    encoder.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    # Meant for `use_reentrant`; it would lead gradients through a frozen encoder down to its embeddings.
    encoder.disable_input_require_grads()
