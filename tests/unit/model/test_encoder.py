"""Which sequences the encoder computes together, and that it changes nothing."""

import random
from itertools import combinations

import numpy as np
import pytest
import torch
import transformers
from helpers.encoders import ENCODER_CONFIGS
from helpers.lanes import fast_if
from helpers.tasks import ALL_TASKS, batch_of

from multitask.data.packing import collate
from multitask.model import encoder as grouping
from multitask.model.encoder import can_compute_together, group_by_length, modules_to_call, regroup
from multitask.model.lora import add_adapters
from multitask.model.multitask import checkpoint_gradients, shared_children
from multitask.model.pretrained import build_model

FAMILIES = sorted(ENCODER_CONFIGS)


def cost_of(groups, lengths, call_cost):
    return sum(call_cost + len(numbers) * lengths[numbers].max() for numbers in groups)


def cheapest(lengths, call_cost):
    """By trying all ways to cut the ordered lengths."""
    ordered = np.sort(lengths)
    costs = []
    for count in range(len(ordered)):
        for cuts in combinations(range(1, len(ordered)), count):
            parts = np.split(ordered, cuts)
            costs.append(sum(call_cost + len(part) * part.max() for part in parts))
    return min(costs)


@pytest.mark.parametrize("call_cost", [0, 1, 7, 30, 1000])
def test_no_other_way_to_cut_costs_less(call_cost):
    rng = random.Random(call_cost)
    for _ in range(20):
        lengths = np.array([rng.choice([3, 4, 5, 9, 10, 17, 40]) for _ in range(rng.randint(1, 10))])
        groups = group_by_length(lengths, call_cost, 10**9)
        assert sorted(np.concatenate(groups)) == list(range(len(lengths)))  # each once
        assert [lengths[numbers].max() for numbers in groups] == sorted(lengths[numbers].max() for numbers in groups)
        assert cost_of(groups, lengths, call_cost) == cheapest(lengths, call_cost)


def test_padding_is_given_up_for_memory():
    lengths = np.array([10] * 10 + [20, 40])
    padded = {
        limit: cost_of(group_by_length(lengths, 1000, limit), lengths, 0) for limit in (480, 479, 239, 199, 160, 0)
    }
    assert padded[480] == 480 and all(padded[limit] <= limit for limit in (479, 239, 199, 160))
    assert padded[0] == lengths.sum() == 160  # there is nothing left to give up


def test_every_token_is_found_in_its_place(make):
    _, tasks, _ = make("bert", ALL_TASKS)
    batches = {task.name: collate(task.train, range(6), pad_token_id=25)["inputs"] for task in tasks}
    for max_tokens in (0, 500, 10**6, None):
        groups, places = regroup(batches, 25, max_tokens)
        assert all((of_group["input_ids"][of_group["attention_mask"] == 0] == 25).all() for of_group in groups)
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            tokens = torch.cat([*(of_group[name].flatten() for of_group in groups), torch.tensor([0])])
            for task, inputs in batches.items():
                real = inputs["attention_mask"].flatten(0, -2).bool()
                assert torch.equal(tokens[places[task]][real], inputs[name].flatten(0, -2)[real])
                assert (places[task][~real] == len(tokens) - 1).all()
        padded = sum(of_group["input_ids"].numel() for of_group in groups)
        if max_tokens is None:
            assert [g["input_ids"].shape for g in groups] == [
                i["input_ids"].flatten(0, -2).shape for i in batches.values()
            ]
        else:
            assert padded <= max(max_tokens, sum(int(i["attention_mask"].sum()) for i in batches.values()))


def results_of(model, batches, max_tokens):
    """Logits of each task, of real tokens where they are of tokens; and all gradients."""
    model.zero_grad()
    logits = model(batches, max_tokens)
    for name, of_task in logits.items():
        if of_task.ndim == 3:
            logits[name] = of_task[batches[name]["attention_mask"].bool()]
    factors = torch.linspace(1, 2, len(logits))
    sum(factor * of_task.square().sum() for factor, of_task in zip(factors, logits.values(), strict=True)).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits, gradients


def assert_nothing_changes(model, batches):
    """Whether tasks are computed apart or together."""
    model.double()  # numbers added in another order differ little
    apart, together = results_of(model, batches, None), results_of(model, batches, 10**6)
    for expected, found in zip(apart, together, strict=True):
        assert expected.keys() == found.keys() and expected
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-9, msg=name)


@pytest.fixture(params=[2, 10**5], ids=["many_groups", "one_group"])
def call_cost(request, monkeypatch):
    monkeypatch.setitem(grouping.CALL_COST, "cpu", request.param)
    return request.param


@pytest.mark.parametrize("family", fast_if(["bert", "modernbert"], FAMILIES))
def test_tasks_computed_together_get_what_they_get_apart(make, family, call_cost):
    model, tasks, tokenizer = make(family, ALL_TASKS, dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():  # poolers of their own that differ
            parameter.add_(0.05 * torch.randn_like(parameter))
    batches = {name: batch["inputs"] for name, batch in batch_of(tasks, tokenizer).items()}
    calls = []
    inside = [module for module in model.encoder.modules() if module not in model.encoder.values()]
    layer = next(module for module in inside if isinstance(module, torch.nn.Linear))
    layer.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[:-1].numel()))
    assert_nothing_changes(model, batches)
    assert model.is_groupable
    apart, together = calls[: len(tasks)], calls[len(tasks) :]
    assert (len(together) == 1) if call_cost == 10**5 else (len(together) > len(tasks))
    assert sum(calls) == model.computed_tokens
    assert sum(apart) == sum(inputs["input_ids"].numel() for inputs in batches.values())
    assert (sum(together) > sum(apart)) if call_cost == 10**5 else (sum(together) < sum(apart))
    assert all("forward" not in vars(module) for module in model.modules())  # nothing is left behind
    calls.clear()
    with torch.no_grad():
        model(batches, 1)
    assert sum(calls) <= sum(apart)  # as many as there are are always allowed


@pytest.mark.parametrize("scope", fast_if(["both"], ["per_task", "shared", "both"]))
def test_tasks_come_together_where_they_use_the_same_adapters(make, scope, call_cost):
    model, tasks, tokenizer = make("bert", ALL_TASKS, dropout=0.0)
    add_adapters(model, 2, 16.0, scope=scope)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    batches = {name: batch["inputs"] for name, batch in batch_of(tasks, tokenizer).items()}
    assert_nothing_changes(model, batches)


@pytest.mark.parametrize("family", ["bert", "modernbert"])  # ModernBERT's layers are called one by one
def test_layers_that_compute_again_know_what_they_had(make, family, call_cost):
    model, tasks, tokenizer = make(family, ALL_TASKS, dropout=0.0)
    batches = {name: batch["inputs"] for name, batch in batch_of(tasks, tokenizer).items()}
    _, expected = results_of(model.train().double(), batches, None)
    checkpoint_gradients(model)
    assert_nothing_changes(model, batches)
    _, found = results_of(model, batches, 10**6)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_tasks_that_ask_about_the_same_are_computed_once(make):
    model, tasks, tokenizer = make("bert", ["similar", "animal", "topics"])
    inputs = batch_of(tasks, tokenizer)["similar"]["inputs"]
    for max_tokens in (None, 10**6):
        model.computed_tokens = 0
        logits = model.eval()(dict.fromkeys(model.tasks, inputs), max_tokens)
        assert model.computed_tokens <= inputs["input_ids"].numel()
        for task in model.tasks:
            torch.testing.assert_close(logits[task], model({task: inputs})[task], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", [["similar", "animal"], ["find"], ["choice"]])
def test_heads_that_tell_the_encoder_something_are_computed_apart(make, tmp_path, names):
    """Longformer's say which tokens have global attention."""
    _, tasks, tokenizer = make("roberta", names)
    settings = ENCODER_CONFIGS["roberta"].to_diff_dict() | {"attention_window": 8, "sep_token_id": 3}
    transformers.AutoModel.from_config(transformers.LongformerConfig(**settings)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = build_model(str(tmp_path), tasks, dropout=0.0)
    assert not model.is_groupable
    if len(names) == 2:  # the other heads want exactly three separators, which this tokenizer does not give
        assert_nothing_changes(model, {name: batch["inputs"] for name, batch in batch_of(tasks, tokenizer).items()})


def test_an_encoder_that_goes_on_behind_its_layers_is_noticed(make, monkeypatch):
    model = make("bert", ["animal"])[0].tasks["animal"]
    modules, forward = modules_to_call(dict(shared_children(model))), model.base_model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.last_hidden_state = 2 * output.last_hidden_state
        return output

    assert can_compute_together(model, modules, False)
    monkeypatch.setattr(model.base_model, "forward", scaled)
    assert not can_compute_together(model, modules, False)


def test_finding_out_draws_nothing_and_leaves_nothing(make):
    model = make("bert", ["choice"])[0].tasks["choice"]
    modules = modules_to_call(dict(shared_children(model)))
    for is_training in (True, False):
        model.train(is_training)
        before = torch.get_rng_state()
        assert can_compute_together(model, modules, True)
        assert torch.equal(torch.get_rng_state(), before) and model.training == is_training
    assert all("forward" not in vars(module) for module in model.modules())
    assert not model.base_model._forward_pre_hooks and all(p.grad is None for p in model.parameters())
