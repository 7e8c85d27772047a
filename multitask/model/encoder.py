"""One encoder for several tasks: sequences of about one length are computed together, whatever their task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

# What a call of the encoder costs besides its tokens, in tokens that take as long: it reads all weights, and its
# backward pass adds to all gradients. Measured on two CPU cores, 20 to 40; an accelerator must also be given hundreds
# of operations to do, one by one, and is much faster with tokens.
CALL_COST = {"cpu": 32}


CALL_COST_OF_ACCELERATORS = 1024


Inputs = Mapping[str, Tensor]


def group_by_length(lengths: NDArray, call_cost: int, max_tokens: int) -> list[NDArray]:
    """Cuts sequences into groups of about one length: of all ways, the one that costs least.

    A group costs `call_cost` and the tokens that it has once its sequences are padded to the longest of them. As
    lengths stay in order, the best groups up to one length follow from the best ones up to each length before.

    Args:
        lengths: tokens of each sequence; at least one.
        call_cost: of a group, in tokens.
        max_tokens: limit of padded tokens in all groups together, kept by making more groups than were best.

    Returns:
        For each group the places of its sequences in `lengths`; groups of shorter ones first.
    """
    kinds, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(counts)])
    least, begins = np.zeros(len(ends)), np.zeros(len(ends), np.int64)
    for end in range(1, len(ends)):
        costs = least[:end] + kinds[end - 1] * (ends[end] - ends[:end]) + call_cost
        begins[end] = np.argmin(costs)
        least[end] = costs[begins[end]]
    groups: list[NDArray] = []
    order, end = np.argsort(lengths, kind="stable"), len(kinds)
    while end:
        groups.insert(0, order[ends[begins[end]] : ends[end]])
        end = begins[end]
    if call_cost and least[-1] - call_cost * len(groups) > max_tokens:
        return group_by_length(lengths, call_cost // 2, max_tokens)
    return groups


def regroup(
    batches: Mapping[str, Inputs], pad_token_id: int, max_tokens: int | None
) -> tuple[list[Inputs], dict[str, Tensor]]:
    """Lays the sequences of several tasks into groups of about one length.

    Args:
        batches: of each task, the keyword arguments of an encoder, shape (…, tokens), `input_ids` and `attention_mask`
            among them; padding is on the right. What is the same object for several tasks is laid out once.
        pad_token_id: fills `input_ids`.
        max_tokens: as `group_by_length` takes it; None leaves the batches as they are.

    Returns:
        The groups, with the same keyword arguments, shape (sequences, tokens); and for each task, where its tokens are
        among those of all groups, one after the other, or the number of these for padding; shape (sequences, tokens).
    """
    flat = {id(i): {name: tensor.flatten(0, -2) for name, tensor in i.items()} for i in batches.values()}
    shapes = [inputs["input_ids"].shape for inputs in flat.values()]
    width = max(tokens for _, tokens in shapes)
    columns: dict[str, list[Tensor]] = {}
    for inputs in flat.values():
        for name, tensor in inputs.items():
            fill = pad_token_id if name == "input_ids" else 0
            columns.setdefault(name, []).append(F.pad(tensor, (0, width - tensor.shape[-1]), value=fill))
    everything = {name: torch.cat(tensors) for name, tensors in columns.items()}
    mask = everything["attention_mask"]
    groups: list[Inputs] = []
    places, taken = torch.zeros_like(mask, dtype=torch.int64), 0
    for rows, longest in _rows_of_groups(mask, shapes, max_tokens):
        groups.append({name: tensor[rows, :longest] for name, tensor in everything.items()})
        shape = groups[-1]["input_ids"].shape
        places[rows, :longest] = torch.arange(taken, taken + shape.numel(), device=mask.device).view(shape)
        taken += shape.numel()
    places = torch.where(mask.bool(), places, taken)
    of_inputs = {
        which: of_batch[:, :tokens]
        for which, of_batch, (_, tokens) in zip(flat, places.split([n for n, _ in shapes]), shapes, strict=True)
    }
    return groups, {task: of_inputs[id(inputs)] for task, inputs in batches.items()}


def _rows_of_groups(
    mask: Tensor, shapes: Sequence[torch.Size], max_tokens: int | None
) -> Iterator[tuple[Tensor, int]]:
    """Of each group the numbers of its sequences and the length of the longest."""
    if max_tokens is None:
        numbers = torch.arange(len(mask), device=mask.device).split([n for n, _ in shapes])
        yield from zip(numbers, (tokens for _, tokens in shapes), strict=True)
        return
    lengths, cost = mask.sum(dim=-1).cpu().numpy(), CALL_COST.get(mask.device.type, CALL_COST_OF_ACCELERATORS)
    for numbers in group_by_length(lengths, cost, max_tokens):
        yield torch.from_numpy(numbers).to(mask.device), int(lengths[numbers].max())


def modules_to_call(encoder: nn.ModuleDict | Mapping[str, nn.Module]) -> list[nn.Module]:
    """The modules with parameters that an encoder calls one after the other."""
    modules: list[nn.Module] = []
    for child in encoder.values():  # ModernBERT's layers are called one by one
        modules += child if isinstance(child, nn.ModuleList) else [child]
    return [module for module in modules if next(module.parameters(), None) is not None]


def can_compute_together(model: Any, modules: Sequence[nn.Module], is_multiple_choice: bool) -> bool:
    """Whether `compute_together` does what a task's model does by itself; tried on five tokens, nothing is random.

    Not if the encoder goes on computing behind its modules (XLNet's swaps dimensions), or if the head tells it what
    it must know (Longformer's tell which tokens have global attention).

    Args:
        model: of a task, as its class in `transformers`.
        modules: those of the encoder.
        is_multiple_choice: whether the model takes rows of several sequences.
    """
    named = getattr(model.config, "sep_token_id", None)  # few configurations do, some of a word that is not there
    separator = named if isinstance(named, int) and 0 <= named < model.config.vocab_size else 0
    ids = torch.full((1, 5), int(separator == 0), device=model.device)
    ids[0, [1, 3, 4]] = separator  # where a question ends, and a text: some heads look for it
    answers: dict[nn.Module, Any] = {}
    told: set[str] = set()  # the encoder, by the head

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        told.update(name for name, value in kwargs.items() if isinstance(value, Tensor))

    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    was_training = model.training
    model.eval()
    with torch.no_grad(), _noting(modules, answers):
        last = model.base_model(**inputs)[0]
        handle = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
        found = any(leaf is last for leaf in tree_leaves(list(answers.values())))
        model(**{name: tensor[None] if is_multiple_choice else tensor for name, tensor in inputs.items()})
        handle.remove()
    model.train(was_training)
    return found and told <= inputs.keys()


def compute_together(
    models: Mapping[str, PreTrainedModel],
    modules: Sequence[nn.Module],
    batches: Mapping[str, Inputs],
    groups: Sequence[Inputs],
    places: Mapping[str, Tensor],
) -> dict[str, ModelOutput]:
    """What the tasks' models return for their batches, where the encoder computes groups of their sequences.

    Args:
        models: of each task; all of them hold the modules, and `can_compute_together`.
        modules: those of the encoder.
        batches: keyword arguments of each model.
        groups: keyword arguments of the encoder, shape (sequences, tokens).
        places: of each task's tokens in the groups, as `grouping.regroup` returns them.
    """
    answers: dict[nn.Module, Any] = {}
    with _noting(modules, answers):
        of_groups = [next(iter(models.values())).base_model(**inputs)[0] for inputs in groups]
    states, outputs = _lay_out(of_groups, places), {}
    for task, model in models.items():
        with _computing(list(answers), partial(_answering, answers, of_groups[-1], states[task])):
            outputs[task] = model(**batches[task])
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
def _noting(modules: Sequence[nn.Module], answers: dict[nn.Module, Any]) -> Iterator[None]:
    """Within, notes what each of the modules returns last."""

    def noting(module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def compute(*args: Any, **kwargs: Any) -> Any:
            answers[module] = forward(*args, **kwargs)
            return answers[module]

        return compute

    with _computing(modules, noting):
        yield


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
