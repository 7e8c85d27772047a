import math

import pytest
import torch
from transformers import AutoModel

from multitask.training.optimizer import build_optimizer, layer_rates, lr_schedule


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup_ratio", "warmup_steps"), [(0.0, 0), (0.06, 6), (0.25, 25)])
def test_the_rate_rises_to_its_peak_and_then_follows_its_formula(kind, warmup_ratio, warmup_steps):
    rate = lr_schedule(kind, 3e-5, warmup_ratio, 100)
    for step in range(101):
        if step < warmup_steps:
            expected = step / warmup_steps
        else:
            done = (step - warmup_steps) / (100 - warmup_steps)
            expected = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1}[kind]
        assert rate(step) == pytest.approx(3e-5 * expected, abs=1e-15)
    assert rate(warmup_steps) == 3e-5
    assert rate(100) == (3e-5 if kind == "constant" else 0)


def test_the_rate_has_no_memory():
    rate = lr_schedule("linear", 1.0, 0.1, 1000)
    assert [rate(700), rate(3), rate(700)] == [rate(700), 0.03, rate(700)]


def test_biases_and_norms_are_not_decayed():
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    frozen = torch.nn.Linear(4, 4).requires_grad_(False)
    optimizer = build_optimizer(torch.nn.Sequential(model, frozen), 1e-3, 0.1)
    by_decay = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert {id(p) for p in by_decay[0.1]} == {id(model[0].weight), id(model[1].weight)}
    assert {id(p) for p in by_decay[0.0]} == {id(model[1].bias), id(model[2].weight), id(model[2].bias)}
    assert optimizer.defaults["fused"] is True


def test_each_layer_learns_slower_than_the_one_above(encoders):
    encoder = AutoModel.from_pretrained(encoders("bert"))
    of = {p: rate for parameters, rate in layer_rates(encoder, 0.1, 0.5) for p in parameters}
    assert of.keys() == {*encoder.parameters()}
    layers = encoder.config.num_hidden_layers
    assert of[encoder.embeddings.word_embeddings.weight] == pytest.approx(0.1 * 0.5 ** (layers + 1))
    assert of[encoder.encoder.layer[0].output.dense.weight] == pytest.approx(0.1 * 0.5**layers)
    assert of[encoder.encoder.layer[-1].output.dense.weight] == pytest.approx(0.1 * 0.5)
    assert of[encoder.pooler.dense.weight] == 0.1  # above all layers
    groups = build_optimizer(encoder, 0.1, 0.01, layer_rates(encoder, 0.1, 0.5)).param_groups
    assert {p: group["scale"] * 0.1 for group in groups for p in group["params"]} == pytest.approx(of)


def test_one_rate_for_all_layers_makes_no_groups(encoders):
    assert layer_rates(AutoModel.from_pretrained(encoders("bert")), 0.1, 1.0) == []
