"""Calls of an encoder that several tasks' models read: its modules compute once, then answer each of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .grouping import Inputs


def modules_to_call(encoder: nn.ModuleDict) -> list[nn.Module]:
    """The modules with parameters that an encoder calls one after the other."""
    modules: list[nn.Module] = []
    for child in encoder.values():  # ModernBERT's layers are called one by one
        modules += child if isinstance(child, nn.ModuleList) else [child]
    return [module for module in modules if next(module.parameters(), None) is not None]


def compute_together(
    models: Mapping[str, PreTrainedModel],
    modules: Sequence[nn.Module],
    batches: Mapping[str, Inputs],
    groups: Sequence[Inputs],
    places: Mapping[str, Tensor],
) -> dict[str, ModelOutput] | None:
    """What the tasks' models return for their batches, where the encoder computes groups of their sequences.

    Args:
        models: of each task; all of them hold the modules.
        modules: of their encoder, in no particular order.
        batches: keyword arguments of each model.
        groups: keyword arguments of the encoder, shape (sequences, tokens).
        places: of each task's tokens in the groups, as `grouping.regroup` returns them.

    Returns:
        None if this family's models cannot do so: because the encoder goes on computing behind its modules, as
        XLNet's does, which swaps dimensions; or because a head tells the encoder what it must know, as Longformer's
        tells which tokens have global attention.
    """
    answers: dict[nn.Module, Any] = {}

    def noting(module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def compute(*args: Any, **kwargs: Any) -> Any:
            answers[module] = forward(*args, **kwargs)
            return answers[module]

        return compute

    with _computing(modules, noting):
        of_groups = [next(iter(models.values())).base_model(**inputs)[0] for inputs in groups]
    last = of_groups[-1]
    if not any(leaf is last for leaf in tree_leaves(list(answers.values()))):
        return None
    states, outputs = _lay_out(of_groups, places), {}
    for task, model in models.items():
        told: set[str] = set()  # the encoder, by the head
        with _computing(list(answers), partial(_answering, answers, last, states[task])), _noting(model, told):
            outputs[task] = model(**batches[task])
        if not told <= batches[task].keys():
            return None
    return outputs


def _lay_out(of_groups: Sequence[Tensor], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The hidden states of each task, shape (sequences, tokens, features); zeros for padding."""
    padding = of_groups[0].new_zeros(1, of_groups[0].shape[-1])
    every_token = torch.cat([*(of_group.flatten(0, 1) for of_group in of_groups), padding])
    # All at once: the gradient of such a choice is as large as what is chosen from.
    distinct = {id(of_task): of_task for of_task in places.values()}
    chosen = every_token.index_select(0, torch.cat([of_task.flatten() for of_task in distinct.values()]))
    parts = chosen.split([of_task.numel() for of_task in distinct.values()])
    laid_out = {which: part.view(*distinct[which].shape, -1) for which, part in zip(distinct, parts, strict=True)}
    return {task: laid_out[id(of_task)] for task, of_task in places.items()}


def _answering(
    answers: Mapping[nn.Module, Any], last: Tensor, states: Tensor, module: nn.Module
) -> Callable[..., Any]:
    """What a module returned, with these states where it returned the encoder's last ones."""
    answer = answers[module]
    if isinstance(answer, Tensor):  # embeddings, too, of which only the shape will be read
        return lambda *args, **kwargs: states
    replaced = tree_map(lambda leaf: states if leaf is last else leaf, answer)
    return lambda *args, **kwargs: replaced


@contextmanager
def _noting(model: PreTrainedModel, told: set[str]) -> Iterator[None]:
    """Within, notes the names of the tensors that a task's model gives to its encoder."""

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        told.update(name for name, value in kwargs.items() if isinstance(value, Tensor))

    handle = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def words_looked_up(embedding: Any, ids: Sequence[Tensor]) -> Iterator[None]:
    """Within, the encoder finds the embeddings of these tokens looked up already.

    The gradient of a lookup is as large as the vocabulary: there is one in a pass, not one for each call, on which
    a hundred calls would spend a fifth of their time.
    """
    if len(ids) < 2 or not (torch.is_grad_enabled() and embedding.weight.requires_grad):
        yield
        return
    found = embedding(torch.cat([of_call.flatten() for of_call in ids])).split([of_call.numel() for of_call in ids])
    parts = {(of_call.data_ptr(), of_call.numel()): part for of_call, part in zip(ids, found, strict=True)}

    def looking_up(module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def look_up(tokens: Tensor) -> Any:
            part = parts.get((tokens.data_ptr(), tokens.numel()))
            # Some encoders add padding of their own.
            return forward(tokens) if part is None else part.view(*tokens.shape, -1)

        return look_up

    with _computing([embedding], looking_up):
        yield


@contextmanager
def _computing(modules: Sequence[nn.Module], make: Callable[[nn.Module], Callable[..., Any]]) -> Iterator[None]:
    """Within, each of the modules computes what `make(module)` does."""
    for module in modules:
        module.forward = make(module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward  # the one of its class is behind it
