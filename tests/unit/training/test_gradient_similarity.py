"""Agreement of the tasks' gradients: the numbers, and that measuring leaves the step as it is."""

import math
from itertools import combinations, product

import pytest
import torch
from accelerate import Accelerator
from helpers.encoders import ENCODER_CONFIGS
from helpers.lanes import fast_if
from helpers.tasks import TASKS, batch_of, padded

from multitask.model.lora import add_adapters
from multitask.model.multitask import MultitaskModel, checkpoint_gradients
from multitask.tasks.base import example_losses
from multitask.training import gradient_similarity as agreement_module
from multitask.training.gradient_similarity import GradientSimilarity, cosines, part_of

EXAMPLES = dict.fromkeys(TASKS, 6)
PAIRS = list(combinations(TASKS, 2))
FACTORS = (0.5, 2.0, 3.0)  # of the tasks' losses


def agreement_of(model, scaler=None):
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = scaler
    return GradientSimilarity(model, accelerator, 1, 6)


def terms_of(model, tasks, batches):
    logits = model({name: batch["inputs"] for name, batch in batches.items()})
    losses = [example_losses(task.type, logits[task.name], batches[task.name]["labels"]).sum() for task in tasks]
    return [factor * loss for factor, loss in zip(FACTORS, losses, strict=True)]


def by_hand(model, tasks, batches, names):
    """Cosines between the gradients on some parameters, one `torch.autograd.grad` a task, in float64."""
    parameters = [dict(model.named_parameters())[name] for name in names]
    gradients = [
        torch.cat(
            [
                g.double().flatten()
                for g in torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
            ]
        )
        for term in terms_of(model, tasks, batches)
    ]
    return [float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in combinations(gradients, 2)]


def gradients_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients(model, expected):
    found = gradients_of(model)
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_matrix_is_the_one_computed_by_hand(make):
    model, tasks, tokenizer = make("bert", dropout=0.0)
    batches = batch_of(tasks, tokenizer)
    agreement = agreement_of(model)
    agreement.backward(terms_of(model, tasks, batches))
    values = agreement.finish(EXAMPLES)

    encoder = [name for name, _ in model.named_parameters() if name.startswith("encoder.")]
    parts = {
        "": encoder,
        "embeddings/": [name for name in encoder if name.startswith("encoder.embeddings.")],
        "layer_0/": [name for name in encoder if name.startswith("encoder.encoder.layer.0.")],
        "layer_1/": [name for name in encoder if name.startswith("encoder.encoder.layer.1.")],
    }
    assert [len(names) for names in parts.values()] == [5 + 2 * 16, 5, 16, 16]
    expected = {
        f"agreement/{part}{a}/{b}": value
        for part, names in parts.items()
        for (a, b), value in zip(PAIRS, by_hand(model, tasks, batches, names), strict=True)
    }
    mean = sum(expected[f"agreement/{a}/{b}"] for a, b in PAIRS) / 3
    expected = {"agreement/average": mean} | expected
    assert list(values) == list(expected) and len(values) == 1 + 4 * 3
    assert values == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in values.values()}) > 6  # they are not all the same


@pytest.mark.parametrize(
    ("family", "scope"),
    fast_if(
        [("albert", "shared"), ("bert", None), ("bert", "both")],
        product(sorted(ENCODER_CONFIGS), [None, "shared", "both"]),
    ),
)
def test_the_gradients_are_those_of_an_ordinary_step(make, family, scope):
    """Of every family and with shared adapters; two passes, in one of which a task has no row."""
    model, tasks, tokenizer = make(family, dropout=0.0)
    if scope:
        add_adapters(model, 4, 16.0, scope=scope)
    passes = [batch_of(tasks, tokenizer), batch_of(tasks, tokenizer, range(6, 9))]
    passes[1]["animal"] = padded(tasks[1].train, [], 0)
    for batches in passes:
        sum(terms_of(model, tasks, batches)).backward()
    expected = gradients_of(model)
    model.zero_grad()
    agreement = agreement_of(model)
    for batches in passes:
        agreement.backward(terms_of(model, tasks, batches))
    assert gradients_of(model) == {}
    values = agreement.finish(EXAMPLES)
    assert_gradients(model, expected)
    layers = {name.split("/")[1] for name in values if name.count("/") == 3}
    embeddings = {"embeddings"} if scope is None or family in ("albert", "electra") else set()
    assert layers == ({"layer_0"} if family == "albert" else {"layer_0", "layer_1"}) | embeddings
    assert all(-1 <= value <= 1 for value in values.values())


@pytest.mark.parametrize("scope", [None, "both"])
def test_with_activations_computed_again(make, scope):
    model, tasks, tokenizer = make("bert", dropout=0.0)
    if scope:
        add_adapters(model, 4, 16.0, scope=scope)
    batches = batch_of(tasks, tokenizer)
    agreement = agreement_of(model)
    agreement.backward(terms_of(model, tasks, batches))
    kept = agreement.finish(EXAMPLES)
    expected = gradients_of(model)
    checkpoint_gradients(model.train())
    agreement.backward(terms_of(model, tasks, batches))
    assert agreement.finish(EXAMPLES) == pytest.approx(kept, abs=1e-5)
    assert_gradients(model, expected)


def test_in_bfloat16_with_a_scaled_loss(make):
    """Autocast keeps the weights that it has cast, so the tasks' graphs meet there."""
    model, tasks, tokenizer = make("bert", dropout=0.0)
    batches = batch_of(tasks, tokenizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    agreement = agreement_of(model, scaler)
    with torch.autocast("cpu", torch.bfloat16):
        scaler.scale(sum(terms_of(model, tasks, batches))).backward()
        expected = gradients_of(model)
        model.zero_grad()
        agreement.backward(terms_of(model, tasks, batches))
        encoder = [name for name, _ in model.named_parameters() if name.startswith("encoder.")]
        cosines_by_hand = by_hand(model, tasks, batches, encoder)
    values = agreement.finish(EXAMPLES)
    found = gradients_of(model)
    assert found.keys() == expected.keys()
    flat, expected_flat = (torch.cat([g[name].flatten() for name in expected]) for g in (found, expected))
    assert expected_flat.norm() > 1024
    assert (flat - expected_flat).norm() < 0.002 * expected_flat.norm()  # bfloat16 rounds at 2^-9 = 0.002
    assert [values[f"agreement/{a}/{b}"] for a, b in PAIRS] == pytest.approx(cosines_by_hand, abs=1e-3)


def test_many_tasks_are_measured_where_it_is_asked_for(make, capsys, monkeypatch):
    model, accelerator = make("bert")[0], Accelerator(cpu=True)
    assert GradientSimilarity(model, accelerator, None, 60).every == 6 and capsys.readouterr().out == ""
    monkeypatch.setattr(agreement_module, "MANY", 2)
    assert GradientSimilarity(model, accelerator, 5, 60).every == 5 and capsys.readouterr().out == ""
    by_itself = GradientSimilarity(model, accelerator, None, 60)
    assert not any(by_itself.is_due(step) for step in range(1, 61))
    said = "note: whether 3 tasks agree is not measured, as it would take 0.0 GiB on each device; "
    assert capsys.readouterr().out == said + "training.agreement_steps: N measures it every N steps\n"


def test_tasks_are_computed_apart_in_the_steps_that_are_measured(stoppable, monkeypatch):
    """Otherwise each task's backward pass would go through what all of them share."""
    are_apart, forward = [], MultitaskModel.forward

    def noting(model, batch, apart=False):
        are_apart.append(apart)
        return forward(model, batch, apart)

    monkeypatch.setattr(MultitaskModel, "forward", noting)
    short = ["--training.max_steps", "4", "--training.max_tokens_per_pass", "10000"]
    assert stoppable("run", *short, "--training.agreement_steps", "2") == 0
    assert are_apart[:4] == [False, True, False, True]  # then comes the evaluation


def test_nothing_to_compare(make, capsys):
    model = make("bert")[0]
    add_adapters(model, 4, 16.0, scope="both")
    shared = set(model.adapter_parameters("_shared"))
    assert set(agreement_of(model).shared) == shared and len(shared) == 24
    assert capsys.readouterr().out == ""
    model = make("bert")[0]
    add_adapters(model, 4, 16.0, scope="per_task")
    frozen = make("bert")[0]
    frozen.encoder.requires_grad_(False)
    for alone in (model, frozen, make("bert", names=["animal"])[0]):
        agreement = agreement_of(alone)
        said = "note: training.agreement_steps has no effect: no two tasks train the same parameters\n"
        assert capsys.readouterr().out == said
        assert not any(agreement.is_due(step) for step in range(1, 7))
        GradientSimilarity(alone, Accelerator(cpu=True), None, 6)  # silent, as nobody asked for it
        assert capsys.readouterr().out == ""


def test_when_it_is_due(make):
    def due(every, max_steps):
        agreement = GradientSimilarity(model, Accelerator(cpu=True), every, max_steps)
        return [step for step in range(1, max_steps + 1) if agreement.is_due(step)]

    model = make("bert")[0]
    assert due(None, 200) == list(range(20, 201, 20))
    assert due(None, 6) == [1, 2, 3, 4, 5, 6]
    assert due(None, 25) == [3, 6, 9, 12, 15, 18, 21, 24]
    assert due(0, 200) == [] and due(150, 200) == [150]


def test_what_has_no_cosine():
    products = {
        "layer_0": torch.tensor([[4.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64),
        "other": torch.tensor([[0.0, 0.0, 0.0], [0.0, 16.0, 4.0], [0.0, 4.0, 1.0]], dtype=torch.float64),  # no layer
    }
    values = cosines(products, {"a": 1, "b": 2, "c": 3})
    assert values == {
        "agreement/average": pytest.approx((0.3 + 0.0 + 0.8) / 3),
        "agreement/a/b": pytest.approx(3 / (2 * 5)),
        "agreement/a/c": 0.0,
        "agreement/b/c": pytest.approx(4 / 5),
        "agreement/layer_0/a/b": pytest.approx(0.5),  # there, c's gradient is zero
    }
    assert cosines(products, {"a": 0, "b": 2, "c": 3}) == {
        "agreement/average": pytest.approx(4 / 5),
        "agreement/b/c": pytest.approx(4 / 5),
    }
    assert cosines({"layer_0": torch.full((2, 2), math.inf)}, {"a": 1, "b": 1}) == {}


def test_parts_of_encoders():
    names = {
        "encoder.embeddings.word_embeddings.weight": "embeddings",
        "encoder.encoder.layer.11.output.dense.weight": "layer_11",
        "encoder.transformer.layer.3.ffn.lin1.bias": "layer_3",
        "encoder.layers.7.mlp.Wi.weight": "layer_7",
        "encoder.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight": "layer_0",
        "encoder.encoder.embedding_hidden_mapping_in.weight": "embeddings",
        "encoder.encoder.rel_embeddings.weight": "embeddings",
        "encoder.encoder.relative_attention_bias.weight": "other",
        "encoder.final_norm.weight": "other",
    }
    assert {name: part_of(name) for name in names} == names
