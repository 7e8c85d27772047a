"""LoRA adapters: which of them compute and train, what is exported, what an adapter may start from."""

import contextlib
import json
import re
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from helpers.encoders import ENCODER_CONFIGS
from helpers.lanes import fast_if
from helpers.runs import assert_same_curve, curve
from helpers.tasks import ALL_TASKS, TASKS, batch_of, packed_of, padded, read_jsonl, write_jsonl
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import CheckpointError

import multitask.model.multitask
import run_multitask
from multitask.checkpoints.format import load_trained_weights, trained_weights
from multitask.cli.console import parameters_table
from multitask.errors import UserError
from multitask.model.export import export_tasks
from multitask.model.lora import SHARED, add_adapters
from multitask.model.multitask import checkpoint_gradients, logits_of
from multitask.model.pretrained import build_model
from multitask.model.routing import RoutedLinear

# PEFT asks transformers under an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FAMILIES = sorted(ENCODER_CONFIGS)
SCOPES = {"per_task": ("similar", "animal", "choice"), "shared": (SHARED,), "both": (SHARED, *TASKS)}
NO_CHECKPOINTING = {"albert", "mpnet"}
# What the fast lane has of every family with every scope: BERT, and families whose layers and heads are of another kind.
FAST = [("bert", "both"), ("bert", "per_task"), ("distilbert", "shared"), ("modernbert", "per_task")]


@pytest.fixture
def adapted(make):
    """A model with adapters that are no longer zero, its tasks, its tokenizer and a batch of each task."""

    def get(family, scope="per_task", rank=4, names=tuple(TASKS), **options):
        model, tasks, tokenizer = make(family, names=names, dropout=0.0)
        add_adapters(model, rank, 16.0, scope=scope, **options)
        torch.manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn_like(p))
        return model, tasks, tokenizer, batch_of(tasks, tokenizer)

    return get


def backward(model, tasks, batches):
    logits = model({name: batch["inputs"] for name, batch in batches.items()})
    sum(task.type.loss(logits[task.name], batches[task.name]["labels"]).sum() for task in tasks).backward()
    return logits


def hidden_states(model, batches):
    """What the encoder gives each task, all tasks in one call as in training."""
    states = {}
    hooks = [
        task_model.base_model.register_forward_hook(lambda _, __, out, name=name: states.update({name: out[0]}))
        for name, task_model in model.tasks.items()
    ]
    with torch.no_grad():
        model({name: batch["inputs"] for name, batch in batches.items()})
    for hook in hooks:
        hook.remove()
    return states


def flat(inputs):
    """Choices as rows, as an encoder alone reads them."""
    return {name: tensor.flatten(0, -2) for name, tensor in inputs.items()}


def adapter_tensors(folder, task):
    return load_file(folder / "export" / task / "adapter" / "adapter_model.safetensors")


def head_tensors(folder, task):
    return load_file(folder / "export" / task / "adapter" / "head.safetensors")


# -- what computes and what trains -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "scope"), fast_if(FAST, product(FAMILIES, SCOPES)))
def test_adapters_and_heads_train_in_a_frozen_encoder(make, family, scope):
    plain, tasks, tokenizer = make(family)
    model = make(family)[0]
    add_adapters(model, 4, 16.0, scope=scope)
    batches = batch_of(tasks, tokenizer)
    inputs = {name: batch["inputs"] for name, batch in batches.items()}
    with torch.no_grad():  # a new adapter changes nothing, as its B is zero
        first, second = plain.eval()(inputs), model.eval()(inputs)
    assert all(torch.equal(first[name], second[name]) for name in TASKS)

    adapters = {id(p): name for name in SCOPES[scope] for p in model.adapter_parameters(name)}
    assert set(adapters.values()) == set(SCOPES[scope])
    heads = [p for task in TASKS for p in plain.head_parameters(task)]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(trainable) == len(adapters) + len(heads)
    assert sum(p.numel() for p in trainable if id(p) not in adapters) == sum(p.numel() for p in heads)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert frozen == sum(p.numel() for p in plain.encoder.parameters())
    # Every trainable parameter takes part, so data-parallel training need not search for unused ones.
    backward(model, tasks, batches)
    assert [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None)] == []


def test_a_sub_batch_trains_its_own_adapter_and_the_shared_one(adapted):
    model, tasks, _, batches = adapted("bert", "both")
    backward(model, tasks[1:2], {"animal": batches["animal"]})
    touched = {id(p) for p in model.parameters() if p.grad is not None}
    assert touched == {id(p) for p in model.head_parameters("animal") + model.adapter_parameters(SHARED)}
    assert {id(p) for p in model.adapter_parameters("animal")} < touched


def test_a_task_without_rows_reaches_its_own_adapter_with_zero(adapted):
    model, tasks, _, batches = adapted("bert", "both")
    batches["animal"] = padded(tasks[1].train, [], 0)
    logits = model({name: batch["inputs"] for name, batch in batches.items()})
    logits["animal"].sum().backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == {
        id(p) for p in model.head_parameters("animal")
    }
    assert all(not p.grad.any() for p in model.head_parameters("animal"))


def test_an_adapter_depends_on_the_seed_and_its_name_alone(make):
    def first_weights(names, **options):
        model = make("bert", names=names)[0]
        add_adapters(model, 4, 16.0, **options)
        return {
            name: [p.detach() for p in model.adapter_parameters(name)][0] for name in [*names, SHARED][: len(names)]
        }

    three, alone = first_weights(tuple(TASKS)), first_weights(["animal"])
    both, other = first_weights(["animal"], scope="both"), first_weights(["animal"], seed=1)
    assert torch.equal(three["animal"], alone["animal"]) and torch.equal(alone["animal"], both["animal"])
    assert not torch.equal(alone["animal"], other["animal"])
    assert not torch.equal(three["animal"], three["choice"])


def test_dropout_is_in_front_of_each_adapter(make):
    model = make("bert", dropout=0.0)[0]
    add_adapters(model, 4, 16.0, dropout=0.25, scope="both")
    probabilities = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p]
    assert probabilities == [0.25] * 12 * 4  # 12 layers; three tasks and the shared one


@pytest.mark.parametrize("scope", ["per_task", "both"])
@pytest.mark.parametrize(("rank", "is_possible"), [(8, True), (16, True), (4, False)])
def test_one_product_for_all_ranges_is_that_of_each(adapted, monkeypatch, scope, rank, is_possible):
    """In bfloat16 on a CPU; compared with the ranges one by one, in logits and gradients."""
    model, tasks, _, _ = adapted("bert", scope, rank)
    batch = packed_of(tasks)
    found, calls = [], []
    grouped = RoutedLinear.grouped_update
    monkeypatch.setattr(RoutedLinear, "grouped_update", lambda *a: calls.append(1) or grouped(*a))
    for is_grouped in (True, False):
        if not is_grouped:
            monkeypatch.setattr(RoutedLinear, "can_be_grouped", lambda *_: False)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch.inputs)
        sum(task.type.loss(logits[task.name].float(), batch.labels[task.name]).sum() for task in tasks).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        found.append((logits, gradients))
    assert len(calls) == (12 if is_possible else 0)  # layers of the encoder with LoRA
    for one, each in zip(*found, strict=True):
        for name in each:
            difference = (one[name].float() - each[name].float()).norm()
            assert difference < 0.03 * each[name].float().norm().clamp(min=1e-3), name


@pytest.mark.filterwarnings("error")  # PEFT's, on several adapters in a model, is not passed on
def test_eight_tasks_are_one_encoder_and_eight_adapters(make):
    names = [f"task{number}" for number in range(8)]
    model, tasks, _ = make("bert", names=["animal"])
    adapter = sum(16 * 4 + 4 * 16 for _ in range(4)) + 2 * (16 * 4 + 4 * 32)  # four 16 x 16, 16 x 32 and back
    head = 16 * 16 + 16 + 16 * 2 + 2  # pooler and classifier
    encoder = sum(p.numel() for p in model.encoder.parameters())
    task = tasks[0]
    task_model = model.tasks.pop("animal")
    for name in names:
        model.add_task(name, type(task_model).from_pretrained(task_model.name_or_path, num_labels=len(task.labels)))
    add_adapters(model, 4, 16.0)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    assert size == 4 * (encoder + 8 * (2 * adapter + head))  # float32; two layers
    assert all(sum(p.numel() for p in model.adapter_parameters(name)) == 2 * adapter for name in names)


@pytest.mark.parametrize(
    ("family", "scope"),
    fast_if([("albert", None), ("bert", "both"), ("modernbert", None)], product(FAMILIES, [None, "both"])),
)
def test_gradient_checkpointing_gives_the_same_gradients(make, adapted, family, scope):
    def build():
        if scope:
            model, tasks, _, batches = adapted(family, scope)
        else:
            model, tasks, tokenizer = make(family, dropout=0.0)
            batches = batch_of(tasks, tokenizer)
        return model.train(), tasks, batches

    model, tasks, batches = build()
    if family in NO_CHECKPOINTING:
        with pytest.raises(
            UserError, match=f"^training.gradient_checkpointing: {family} does not support it in transformers$"
        ):
            checkpoint_gradients(model)
        return
    backward(model, tasks, batches)
    again = build()[0]
    checkpoint_gradients(again)
    count = []
    again.encoder.apply(lambda m: m.register_forward_hook(lambda *_: count.append(m)) if _is_linear(m) else None)
    backward(again, tasks, batches)
    computed = len(count)
    count.clear()
    with torch.no_grad():
        again({name: batch["inputs"] for name, batch in batches.items()})
    assert computed > 1.5 * len(count)  # it did compute them twice
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=0, atol=0, msg=name)  # the same sums in the same order


def _is_linear(module):
    return isinstance(module, torch.nn.Linear) and module.out_features != 4  # the encoder's, not LoRA's of rank 4


def test_gradient_checkpointing_keeps_gradients_out_of_a_frozen_encoder(make):
    model, tasks, tokenizer = make("bert", dropout=0.0)
    model.encoder.requires_grad_(False)
    checkpoint_gradients(model.train())
    states = []
    model.encoder.encoder.register_forward_hook(lambda _, __, out: states.append(out[0]))
    backward(model, tasks, batch_of(tasks, tokenizer))
    assert len(states) == 3 and not any(state.requires_grad for state in states)


# -- what is exported --------------------------------------------------------------------------------------------------

# A merged weight is W + BA instead of two products, and two adapters become one of their ranks' sum: the sums are the
# same, in another order. Values are of about 1 and float32 rounds them to 6e-8, some layers deep.
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize(("family", "scope"), fast_if([FAST[0], FAST[-1]], product(FAMILIES, SCOPES)))
def test_an_export_is_a_plain_model_and_an_adapter_of_peft(adapted, encoders, tmp_path, family, scope):
    """Also: each sub-batch of a step uses its own adapter, as PEFT computes with that one alone."""
    model, tasks, tokenizer, batches = adapted(family, scope, names=tuple(ALL_TASKS))
    assert len(tasks) == 6
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_tasks(model, tokenizer, tmp_path, str(encoders(family)))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    states = hidden_states(model, batches)
    with torch.no_grad():
        logits = model({name: batch["inputs"] for name, batch in batches.items()})
    for task in tasks:
        inputs, folder = batches[task.name]["inputs"], tmp_path / task.name
        merged, info = task.type.auto_class.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        encoder = transformers.AutoModel.from_pretrained(encoders(family)).eval()
        with torch.no_grad():
            without = encoder(**flat(inputs))[0]
            alone = peft.PeftModel.from_pretrained(encoder, folder / "adapter").eval()(**flat(inputs))[0]
            torch.testing.assert_close(logits_of(merged.eval()(**inputs)), logits[task.name], **CLOSE)
        torch.testing.assert_close(alone, states[task.name], **CLOSE)
        assert (alone - without).abs().max() > 0.01  # the adapter does something
        config = peft.PeftConfig.from_pretrained(folder / "adapter")
        assert config.base_model_name_or_path == encoders(family).name
        factor = 2 if scope == "both" else 1
        assert (config.r, config.lora_alpha) == (4 * factor, 16 * factor)
        head = load_file(folder / "adapter" / "head.safetensors")
        own = dict(merged.named_parameters())
        adapter = sum(p.numel() for p in model.adapter_parameters(task.name))
        assert sum(t.numel() for t in head.values()) + adapter == sum(
            p.numel() for p in model.head_parameters(task.name)
        )
        assert head and all(torch.equal(tensor, own[name]) for name, tensor in head.items())


def test_an_encoder_with_many_layers_is_told_from_its_pooler(adapted, encoders, tmp_path, monkeypatch):
    """PEFT shortens lists of twenty modules and more to endings, and BERT's pooler ends in `dense` like others."""
    monkeypatch.setattr(ENCODER_CONFIGS["bert"], "num_hidden_layers", 4)
    fresh = transformers.AutoModel.from_config(ENCODER_CONFIGS["bert"])
    shutil.copytree(encoders("bert"), tmp_path / "bert")
    fresh.save_pretrained(tmp_path / "bert")
    _, tasks, tokenizer, batches = adapted("bert")
    model = build_model(str(tmp_path / "bert"), tasks)
    add_adapters(model, 4, 16.0)
    with torch.no_grad():
        for p in trained_weights(model).values():
            p.add_(0.1 * torch.randn_like(p))
    export_tasks(model.eval(), tokenizer, tmp_path / "export", str(tmp_path / "bert"))
    folder = tmp_path / "export" / "animal" / "adapter"
    assert len(json.loads((folder / "adapter_config.json").read_text())["target_modules"]) == 24
    alone = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(tmp_path / "bert"), folder).eval()
    assert not any("pooler" in name for name, _ in alone.named_parameters() if "lora_" in name)
    with torch.no_grad():
        out = alone(**batches["animal"]["inputs"])[0]
    torch.testing.assert_close(out, hidden_states(model, batches)["animal"], **CLOSE)


def test_without_merging_no_encoder_is_written(adapted, tmp_path):
    model, _, tokenizer, _ = adapted("bert")
    export_tasks(model, tokenizer, tmp_path, "bert")
    export_tasks(model, tokenizer, tmp_path, "bert", merge=False)
    folder = tmp_path / "animal"
    names = {p.name for p in folder.iterdir()}
    assert names == {"adapter", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in (folder / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
    }
    assert transformers.AutoConfig.from_pretrained(folder).id2label == {0: "animal", 1: "none"}
    assert len(transformers.AutoTokenizer.from_pretrained(folder)("the cat").input_ids) == 4


def test_trained_weights_are_put_back(adapted, make):
    model, tasks, _, batches = adapted("bert", "both")
    weights = {name: tensor.clone() for name, tensor in trained_weights(model).items()}
    assert sum(t.numel() for t in weights.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    other = make("bert", seed=1, dropout=0.0)[0]
    add_adapters(other, 4, 16.0, scope="both", seed=1)
    load_trained_weights(other, weights)
    inputs = {name: batch["inputs"] for name, batch in batches.items()}
    first, second = model.eval()(inputs), other.eval()(inputs)
    assert all(torch.equal(first[name], second[name]) for name in TASKS)

    name = next(iter(weights))
    shape = tuple(weights[name].shape)
    before = {key: tensor.clone() for key, tensor in trained_weights(other).items()}
    for wrong, message in (
        ({key: tensor for key, tensor in weights.items() if key != name}, f"{name} is missing"),
        (weights | {"x": torch.zeros(1)}, "x is not a trainable parameter of this model"),
        (weights | {name: torch.zeros(3, 3)}, f"{name} has shape (3, 3), not {shape}"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            load_trained_weights(other, wrong)
    assert all(torch.equal(before[key], tensor) for key, tensor in trained_weights(other).items())


# -- what an adapter starts from ---------------------------------------------------------------------------------------


def foreign(encoder, folder, auto_class=transformers.AutoModel, config=None, **options):
    """An adapter that PEFT made and saved, with weights that are not zero; gives the model."""
    config = config or peft.LoraConfig(
        r=4, lora_alpha=16, target_modules="all-linear", exclude_modules=r".*(pooler|pre_classifier).*", **options
    )
    model = peft.get_peft_model(auto_class.from_pretrained(encoder), config)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    ("family", "auto_class"),
    fast_if(
        [("bert", "AutoModelForSequenceClassification"), ("distilbert", "AutoModel")],
        product(FAMILIES, ["AutoModel", "AutoModelForSequenceClassification"]),
    ),
)
@pytest.mark.filterwarnings("ignore:You have passed exclude_modules")  # not all families have a pooler
def test_a_task_starts_from_an_adapter_made_elsewhere(make, encoders, tmp_path, family, auto_class):
    options = {} if auto_class == "AutoModel" else {"task_type": "SEQ_CLS"}  # which saves the classifier as well
    theirs = foreign(encoders(family), tmp_path / "theirs", getattr(transformers, auto_class), **options)
    model, tasks, tokenizer = make(family, dropout=0.0)
    add_adapters(model, 4, 16.0, start={"animal": str(tmp_path / "theirs")})
    batches = batch_of(tasks, tokenizer)
    base = theirs.get_base_model()
    base = base if auto_class == "AutoModel" else base.base_model
    with torch.no_grad():
        expected = base(**batches["animal"]["inputs"])[0]
    states = hidden_states(model.eval(), batches)
    torch.testing.assert_close(states["animal"], expected, **CLOSE)
    assert not any(p.any() for p in model.adapter_parameters("choice")[1::2])  # the others' B are still zero


WRONG = {
    "no folder": ({}, r"there is no folder FOLDER \(seen from .*\)"),
    "no config": ({}, "FOLDER has no adapter_config.json; a folder that PEFT saved has one"),
    "no weights": ({}, "FOLDER has no adapter_model.safetensors; a folder that PEFT saved has one"),
    "broken config": ({}, "FOLDER does not load: .*"),
    "broken weights": ({}, "FOLDER does not load: .*"),
    "ia3": ({}, "FOLDER is of type IA3; only LORA can be started from"),
    "dora": ({"use_dora": True}, "FOLDER has use_dora: True; only plain LoRA can be started from"),
    "rslora": ({"use_rslora": True}, "FOLDER has use_rslora: True; only plain LoRA can be started from"),
    "olora": ({"init_lora_weights": "olora"}, "FOLDER has init_lora_weights: olora; only plain LoRA can be .*"),
    "ranks": ({"rank_pattern": {"key": 2}}, r"FOLDER has rank_pattern: {'key': 2}; only plain LoRA can be .*"),
    "rank": ({"r": 2}, "FOLDER has rank 2, adapters.rank is 4; they must be the same"),
    "alpha": ({"lora_alpha": 8}, "FOLDER has alpha 8, adapters.alpha is 16.0; they must be the same"),
    "other encoder": ({}, "FOLDER was made for the encoder 'org/other', model.encoder is '.*/bert'"),
    "fewer modules": (
        {"target_modules": ["query", "value"]},
        "FOLDER lacks encoder.layer.0.attention.output.dense.lora_A.weight, unlike adapters.target_modules; .*",
    ),
    "more modules": (
        {"target_modules": "all-linear"},
        "FOLDER has pooler.dense.lora_A.weight, unlike adapters.target_modules; they must be the same",
    ),
    "other sizes": (
        {},
        r"FOLDER has encoder.layer.0.attention.self.query.lora_A.weight of shape \(4, 3\), '.*/bert' needs \(4, 16\)",
    ),
}


@pytest.mark.parametrize("case", fast_if(["no folder", "broken weights", "rank", "fewer modules"], WRONG))
@pytest.mark.filterwarnings("ignore")  # PEFT's, on what it is made to do here
def test_an_adapter_that_does_not_fit_is_refused(train, encoders, tmp_path, case):
    options, message = WRONG[case]
    folder = tmp_path / "theirs"
    settings = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "exclude_modules": r".*pooler.*"}
    settings |= options
    if case == "more modules":
        del settings["exclude_modules"]
    config = peft.IA3Config(target_modules=["key"], feedforward_modules=[]) if case == "ia3" else None
    if case not in ("no folder", "no config"):
        foreign(encoders("bert"), folder, config=config or peft.LoraConfig(**settings))
    path = folder / "adapter_config.json"
    weights = folder / "adapter_model.safetensors"
    if case == "no config":
        folder.mkdir()
    elif case == "no weights":
        weights.unlink()
    elif case == "broken config":
        path.write_text("{")
    elif case == "broken weights":
        weights.write_text("version https://git-lfs.github.com/spec/v1")
    elif case == "other encoder":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "org/other"}))
    elif case == "other sizes":
        tensors = load_file(weights)
        tensors["base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"] = torch.zeros(4, 3)
        save_file(tensors, weights)
    with pytest.raises(UserError) as raised:
        train("--adapters.rank", "4", "--tasks.animal.adapter", str(folder))
    assert re.fullmatch(
        "tasks.animal.adapter: " + message.replace("FOLDER", re.escape(str(folder))), str(raised.value)
    )
    assert not (tmp_path / "run").exists()


def test_target_modules_are_endings_of_names(make):
    model = make("bert")[0]
    add_adapters(model, 4, 16.0, target_modules=["query", "output.dense"])
    adapted = {name.split(".layer.")[1] for name, m in model.encoder.named_modules() if hasattr(m, "lora_A")}
    names = ["attention.self.query", "attention.output.dense", "output.dense"]
    assert adapted == {f"{layer}.{name}" for layer in range(2) for name in names}
    message = (
        "adapters.target_modules: 'querry' is no linear module of '.*bert'; did you mean 'query'? "
        "(valid: all-linear, dense, key, query, value)"
    )
    with pytest.raises(UserError) as raised:
        add_adapters(make("bert")[0], 4, 16.0, target_modules=["key", "querry"])
    assert re.fullmatch(re.escape(message).replace(r"\.\*", ".*"), str(raised.value))
    with pytest.raises(UserError, match="'word_embeddings' is no linear module of"):
        add_adapters(make("bert")[0], 4, 16.0, target_modules="word_embeddings")


# -- the program -------------------------------------------------------------------------------------------------------

LORA = ["--adapters.rank", "4", "--training.learning_rate", "1e-2"]
# The first weights: a run of one step whose learning rate is 0.
NOTHING = ["--training.max_steps", "1", "--training.warmup_ratio", "0.9"]


@pytest.mark.slow
def test_a_run_changes_adapters_and_heads_and_nothing_else(train, encoders, tmp_path, monkeypatch):
    models = []
    build = run_multitask.build_model
    monkeypatch.setattr(run_multitask, "build_model", lambda *a: models.append(build(*a)) or models[-1])
    before = train(*LORA, "--adapters.scope", "both", *NOTHING)
    after = train(*LORA, "--adapters.scope", "both", "--training.output_dir", str(tmp_path / "after"))
    fresh = transformers.AutoModel.from_pretrained(encoders("bert")).state_dict()
    state = models[1].encoder.state_dict()
    frozen = {n.replace(".base_layer", ""): t for n, t in state.items() if "lora_" not in n and "pooler" not in n}
    assert frozen.keys() == {name for name in fresh if "pooler" not in name}
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in frozen.items())
    for task in TASKS:
        for tensors in (adapter_tensors, head_tensors):
            first, second = tensors(before, task), tensors(after, task)
            assert first.keys() == second.keys() and len(first) >= 2
            # The gradient of the attention's key bias is zero; of a choice's bias too, as softmax sees no constant.
            same = [name for name in first if torch.equal(first[name], second[name])]
            assert [name for name in same if (task, name) != ("choice", "classifier.bias")] == []


@pytest.mark.slow
def test_an_idle_adapter_is_not_touched(train, mixture_config, tmp_path):
    mixture_config["mixture"] = {"sampling": "weights", "weights": {"similar": 1, "animal": 0, "choice": 1}}
    scope = ["--adapters.scope", "both"]
    before = train(*LORA, *scope, *NOTHING)
    after = train(*LORA, *scope, "--training.weight_decay", "0.1", "--training.output_dir", str(tmp_path / "after"))
    first, second = adapter_tensors(before, "animal"), adapter_tensors(after, "animal")
    for name in first:  # the shared one comes first in the ranks' sum
        dim = 0 if "lora_A" in name else 1
        (shared, own), (shared_after, own_after) = first[name].chunk(2, dim), second[name].chunk(2, dim)
        assert torch.equal(own, own_after) and not torch.equal(shared, shared_after)
    heads = head_tensors(before, "animal"), head_tensors(after, "animal")
    assert len(heads[0]) == 4 and all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def assert_same_export(first: Path, second: Path) -> None:
    """AdamW's steps are of 1e-2 at most; where a gradient is about nil it turns rounding into a part of one."""
    compared = 0
    for task in TASKS:
        for tensors in (adapter_tensors, head_tensors):
            for name, tensor in tensors(first, task).items():
                if (task, name) != ("choice", "classifier.bias"):  # has no gradient but rounding
                    difference = (tensor - tensors(second, task)[name]).abs()
                    assert difference.max() < 3e-3 and difference.mean() < 2e-4, (task, name)
                    compared += 1
    assert compared > 3 * 24


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_several_passes_make_the_update_of_one(train, tmp_path, scope):
    options = [*LORA, "--adapters.scope", scope]
    one = train(*options)
    several = train(*options, "--training.output_dir", str(tmp_path / "b"), "--training.max_tokens_per_pass", "60")
    assert_same_curve(one, several)
    assert_same_export(one, several)


@pytest.mark.slow
def test_two_processes_make_the_update_of_one(mixture_config, write_config, train, program, tmp_path):
    """Steps without any row of a task, devices without a row of one, several passes, gradient checkpointing."""
    mixture_config["mixture"] = {"sampling": "weights", "weights": {"similar": 0.05, "animal": 0.3, "choice": 0.65}}
    options = [*LORA, "--adapters.scope", "both", "--training.batch_size", "5", "--training.max_steps", "8"]
    options += ["--training.max_tokens_per_pass", "60", "--training.gradient_checkpointing", "true"]
    one = train(*options)
    two = tmp_path / "two"
    config = ["--config", write_config(mixture_config), "--training.output_dir", str(two)]
    done = program(*config, *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_curve(one, two)
    assert_same_export(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [[], [*LORA, "--adapters.scope", "both", "--adapters.dropout", "0.2"]])
def test_gradient_checkpointing_changes_nothing_in_a_run(train, tmp_path, adapters):
    dropout = ["--model.dropout", "0.1", "--training.max_tokens_per_pass", "100"]
    plain = train(*adapters, *dropout)
    options = ["--training.gradient_checkpointing", "true", "--training.output_dir", str(tmp_path / "again")]
    np.testing.assert_array_equal(curve(plain), curve(train(*adapters, *dropout, *options)))


@pytest.mark.slow
def test_gradient_checkpointing_needs_its_context(train, tmp_path, monkeypatch):
    """The test above can fail: without it, layers are computed again without the adapters that they had."""

    @contextlib.contextmanager
    def nothing(*_):
        yield

    monkeypatch.setattr(multitask.model.multitask, "contextmanager", lambda _: nothing)
    options = ["--training.gradient_checkpointing", "true", "--training.output_dir", str(tmp_path / "again")]
    with pytest.raises(CheckpointError, match="A different number of tensors was saved"):
        train(*LORA, *options)


@pytest.mark.slow
def test_bf16_is_close_to_fp32(mixture_config, write_config, train, program, tmp_path):
    options = [*LORA, "--adapters.scope", "both", "--training.gradient_checkpointing", "true"]
    full = train(*options)
    config = ["--config", write_config(mixture_config), "--training.output_dir", str(tmp_path / "bf16")]
    done = program(*config, *options, ACCELERATE_MIXED_PRECISION="bf16")
    assert done.returncode == 0, done.stderr
    assert not (curve(full) == curve(tmp_path / "bf16")).all()
    # bf16 keeps 8 bits, 2^-9 = 0.2% a product; the loss is a mean of twelve, the norm of gradients some layers deep.
    np.testing.assert_allclose(curve(full)[:, 0], curve(tmp_path / "bf16")[:, 0], rtol=0.02)
    np.testing.assert_allclose(curve(full)[:, 1], curve(tmp_path / "bf16")[:, 1], rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_frozen_encoder_leaves_the_heads(train, encoders, tmp_path, checkpointing):
    options = ["--model.freeze_encoder", "true", "--training.gradient_checkpointing", checkpointing]
    folder = train(*options)
    start = train(*options, *NOTHING, "--training.output_dir", str(tmp_path / "start"))
    fresh = transformers.AutoModel.from_pretrained(encoders("bert")).state_dict()
    for task in TASKS:
        first, second = (load_file(run / "export" / task / "model.safetensors") for run in (start, folder))
        encoder = {name for name in first if not name.startswith(("classifier", "bert.pooler"))}
        assert len(encoder) == sum("pooler" not in name for name in fresh) and len(first) == len(encoder) + 4
        assert all(torch.equal(second[name], fresh[name.removeprefix("bert.")]) for name in encoder)
        changed = {name for name in first if not torch.equal(first[name], second[name])}
        assert first.keys() - encoder - changed <= ({"classifier.bias"} if task == "choice" else set())


@pytest.mark.slow
def test_a_run_starts_from_what_another_exported(train, tmp_path):
    first = train(*LORA, "--adapters.alpha", "6")
    assert {p.name for p in (first / "export" / "animal").iterdir()} >= {"model.safetensors", "adapter"}
    options = ["--adapters.alpha", "6", "--adapters.merge", "false", "--adapters.scope", "both", *NOTHING]
    start = ["--tasks.animal.adapter", str(first / "export" / "animal" / "adapter")]
    second = train(*LORA, *options, *start, "--training.output_dir", str(tmp_path / "second"))
    assert not list((second / "export").glob("*/model.safetensors"))
    before, after = adapter_tensors(first, "animal"), adapter_tensors(second, "animal")
    assert len(before) == 24
    for name, tensor in before.items():
        assert torch.equal(after[name].chunk(2, 0 if "lora_A" in name else 1)[1], tensor)


@pytest.mark.slow
def test_a_few_examples_are_learned_by_heart(train, mixture_config, tmp_path):
    options = ["--adapters.rank", "8", "--training.learning_rate", "1e-2", "--training.max_steps", "200"]
    for name, task in mixture_config["tasks"].items():
        rows = read_jsonl(Path(task["data_files"]["train"]))[:4]
        task["data_files"]["train"] = str(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    losses = curve(train(*options))[:, 0]
    assert losses[-10:].mean() < 0.1 * losses[:5].mean()


@pytest.mark.slow
def test_harmless_settings_may_change_in_a_folder(train):
    train(*LORA)
    folder = train(*LORA, "--adapters.merge", "false", "--training.gradient_checkpointing", "true")
    assert not (folder / "export" / "animal" / "model.safetensors").exists()
    with pytest.raises(UserError, match=r"\(adapters.rank was 4, is 5\)"):
        train(*LORA, "--adapters.rank", "5")
    with pytest.raises(UserError, match=r"\(adapters.alpha was 16.0, is null\)"):
        train(*LORA, "--adapters", "null")


def test_a_dry_run_shows_what_is_trained(train, tmp_path, capsys, adapted):
    model = adapted("bert", "both")[0]
    encoder = sum(p.numel() for p in model.encoder.parameters() if not p.requires_grad)
    table = parameters_table(model)
    assert re.search(rf"^encoder +0 +{encoder:,} +{4 * encoder:,}$", table, re.M)
    assert re.search(r"^all tasks +adapter +1,792 +0 +7,168$", table, re.M)
    assert re.search(r"^animal +adapter +1,792 +0 +7,168$", table, re.M)
    assert re.search(r"^animal +head +306 +0 +1,224$", table, re.M)
    assert len(table.splitlines()) == 2 + 2 + 2 * 3
    assert len(parameters_table(adapted("bert", "shared")[0]).splitlines()) == 2 + 2 + 3
    assert len(parameters_table(adapted("bert", "per_task")[0]).splitlines()) == 2 + 1 + 2 * 3
