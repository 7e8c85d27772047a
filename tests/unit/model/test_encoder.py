"""The one call of the encoder, whose result is that of each task by itself; and what is found out by trying."""

import copy

import pytest
import torch
import transformers
from helpers.encoders import ENCODER_CONFIGS, SIZE
from helpers.lanes import fast_if
from helpers.tasks import ALL_TASKS, batch_of, packed_of

from multitask.errors import UserError
from multitask.model.encoder import FIRST, LAST, Method, find_call, stub_of
from multitask.model.lora import add_adapters
from multitask.model.multitask import MultitaskModel, checkpoint_gradients
from multitask.model.pretrained import build_model

FAMILIES = sorted(ENCODER_CONFIGS)
GROUPED = ("deberta-v2", "mpnet")
WITHOUT_CHECKPOINTING = ("mpnet", "albert")  # in transformers
FEW = {("bert", "none"), ("bert", "both"), ("modernbert", "per_task"), ("mpnet", "per_task"), ("albert", "none")}


def results_of(model, batch, masks, **options):
    """Logits of each task, of real tokens where they are of tokens; and all gradients."""
    model.zero_grad()
    logits = model(batch, **options)
    for name, of_task in logits.items():
        if of_task.ndim == 3:
            logits[name] = of_task[masks[name]]
    factors = torch.linspace(1, 2, len(logits))
    total = sum(factor * logits[name].square().sum() for factor, name in zip(factors, sorted(logits), strict=True))
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits, gradients


def assert_nothing_changes(model, tasks, tokenizer):
    """Whether tasks are computed apart from padded tensors, together, or apart from packed ones."""
    model.double()  # numbers added in another order differ little
    inputs = {name: batch["inputs"] for name, batch in batch_of(tasks, tokenizer).items()}
    masks = {name: of_task["attention_mask"].bool() for name, of_task in inputs.items()}
    packed = packed_of(tasks).inputs
    expected = results_of(model, inputs, masks)
    for options in ({}, {"apart": True}):
        for first, second in zip(expected, results_of(model, packed, masks, **options), strict=True):
            assert first.keys() == second.keys() and first
            for name, tensor in first.items():
                torch.testing.assert_close(second[name], tensor, rtol=1e-6, atol=1e-9, msg=name)


def combinations():
    for family in FAMILIES:
        for scope in ("none", "per_task", "shared", "both"):
            for checkpointing in (False, True) if family not in WITHOUT_CHECKPOINTING else (False,):
                is_few = (family, scope) in FEW and (family == "bert" or not checkpointing)
                marks = [] if is_few else [pytest.mark.slow]
                yield pytest.param(family, scope, checkpointing, marks=marks)


@pytest.mark.parametrize(("family", "scope", "checkpointing"), list(combinations()))
def test_tasks_computed_together_get_what_they_get_apart(make, family, scope, checkpointing):
    model, tasks, tokenizer = make(family, ALL_TASKS, dropout=0.0)
    if scope != "none":
        add_adapters(model, 2, 16.0, scope=scope)
    with torch.no_grad():
        for parameter in model.parameters():  # poolers of their own that differ, adapters that do something
            parameter.add_(0.05 * torch.randn_like(parameter))
    if checkpointing:
        model.train()
        checkpoint_gradients(model)
    assert model.call.method is (Method.GROUPED if family in GROUPED else Method.PACKED)
    assert_nothing_changes(model, tasks, tokenizer)


@pytest.mark.parametrize("family", fast_if(["bert", "modernbert", "mpnet"], FAMILIES))
def test_nothing_but_tokens_is_computed_and_all_at_once(make, family):
    model, tasks, _ = make(family, ALL_TASKS)
    batch = packed_of(tasks).inputs
    calls = []
    model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    model(batch)
    real = int(batch.lengths.sum())
    assert sum(calls) == model.computed_tokens
    if family in GROUPED:
        assert len(calls) > 1 and real <= sum(calls) <= 1.25 * real
    else:
        assert calls == [real]


EXPECTED_CALLS = {
    "bert": (Method.PACKED, 0),
    "electra": (Method.PACKED, 0),
    "distilbert": (Method.PACKED, 0),
    "albert": (Method.PACKED, 0),
    "modernbert": (Method.PACKED, 0),
    "roberta": (Method.PACKED, 1),
    "xlm-roberta": (Method.PACKED, 1),
    "mpnet": (Method.GROUPED, 0),
    "deberta-v2": (Method.GROUPED, 0),
}
TOKENS = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
SMALL = {"vocab_size": 26, "pad_token_id": 0}
MORE_FAMILIES = {
    "ernie": (transformers.ErnieConfig(**SIZE), Method.PACKED, 0),
    "camembert": (transformers.CamembertConfig(**SIZE), Method.PACKED, 1),
    "data2vec": (transformers.Data2VecTextConfig(**SIZE), Method.PACKED, 1),
    "roberta, padded by 1": (transformers.RobertaConfig(**SIZE | {"pad_token_id": 1}), Method.PACKED, 2),
    "eurobert": (transformers.EuroBertConfig(**SIZE, **TOKENS, head_dim=8), Method.PACKED, 0),
    "nomic": (transformers.NomicBertConfig(**SIZE), Method.PACKED, 0),
    "convbert": (transformers.ConvBertConfig(**SIZE, embedding_size=16), Method.GROUPED, 0),
    "rembert": (transformers.RemBertConfig(**SIZE, **TOKENS), Method.GROUPED, 0),
    "megatron": (transformers.MegatronBertConfig(**SIZE), Method.GROUPED, 0),
    "mobilebert": (
        transformers.MobileBertConfig(
            **SIZE | {"embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16}
        ),
        Method.GROUPED,
        0,
    ),
    "squeezebert": (
        transformers.SqueezeBertConfig(
            **SIZE,
            embedding_size=16,
            **dict.fromkeys(("q_groups", "k_groups", "v_groups", "post_attention_groups"), 1),
            **dict.fromkeys(("intermediate_groups", "output_groups"), 1),
        ),
        Method.GROUPED,
        0,
    ),
    "xlnet": (transformers.XLNetConfig(**SMALL, d_model=16, n_layer=2, n_head=2, d_inner=32), Method.GROUPED, 0),
    "xlm": (transformers.XLMConfig(**SMALL, emb_dim=16, n_layers=2, n_heads=2), Method.GROUPED, 0),
    "flaubert": (transformers.FlaubertConfig(**SMALL, emb_dim=16, n_layers=2, n_heads=2), Method.GROUPED, 0),
    "longformer": (
        transformers.LongformerConfig(**SIZE | {"sep_token_id": 3, "bos_token_id": 2}, attention_window=8),
        Method.APART,
        0,
    ),
}


def model_of(config, head=transformers.AutoModelForSequenceClassification):
    torch.manual_seed(0)
    model = MultitaskModel()
    model.add_task("animal", head.from_config(copy.deepcopy(config)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", fast_if(["bert", "modernbert", "mpnet"], FAMILIES))
def test_how_an_encoder_is_called_is_found_out(make, family):
    model = make(family, ["animal"])[0]
    assert (model.call.method, model.call.first_position) == EXPECTED_CALLS[family]
    assert model.only_token == {"animal": FIRST}


@pytest.mark.parametrize("family", fast_if(["xlnet", "longformer", "data2vec"], MORE_FAMILIES))
def test_other_families_train_in_the_way_that_is_right_for_them(make, family):
    config, method, first = MORE_FAMILIES[family]
    model = model_of(config)
    model.find_call({"animal": False})
    assert (model.call.method, model.call.first_position) == (method, first)
    assert model.only_token == {"xlnet": {"animal": LAST}}.get(
        family, {} if family in ("eurobert", "longformer") else {"animal": FIRST}
    )
    assert "packed" not in model.encoder.config.to_json_string(use_diff=False)

    # Each sequence by itself, through the task's own class, gives the same logits, and all weights get gradients.
    _, (task,), _ = make("roberta", ["animal"])  # without token types
    batch = packed_of([task]).inputs
    model.eval()
    together = model(batch)["animal"]
    for row, ids in enumerate(batch.input_ids[0].split(batch.lengths.tolist())):
        alone = model.tasks["animal"](input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)
    together.sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    unused = ("pooler", "_global", "mask_emb", "seg_embed", "r_s_bias")  # without global attention, masks and types
    assert not {name for name in without if not any(part in name for part in unused)}


def test_a_family_that_lies_about_its_attention_is_caught(monkeypatch):
    """It takes the arguments, and lets every token see its neighbours."""
    config = ENCODER_CONFIGS["bert"]
    honest = model_of(config)
    honest.find_call({"animal": False})
    assert honest.call.method is Method.PACKED
    lying = model_of(config)
    layer = lying.encoder.encoder.layer[0].attention.self
    forward = type(layer).forward
    monkeypatch.setattr(type(layer), "forward", lambda *a, segments=None, **kwargs: forward(*a, **kwargs))
    lying.find_call({"animal": False})
    assert lying.call.method is Method.GROUPED
    assert lying.encoder.config._attn_implementation != "packed"


def test_a_family_that_counts_positions_by_itself_is_caught(monkeypatch):
    model = model_of(ENCODER_CONFIGS["bert"])
    embeddings = type(model.encoder.embeddings)
    forward = embeddings.forward
    monkeypatch.setattr(embeddings, "forward", lambda *a, position_ids=None, **kwargs: forward(*a, **kwargs))
    model.find_call({"animal": False})
    assert model.call.method is Method.GROUPED


def test_a_head_that_does_something_with_the_encoders_states_elsewhere_is_noticed(make, monkeypatch):
    model = make("bert", ["animal"])[0]
    stub = type(stub_of(model.tasks["animal"]))
    forward = stub.forward

    def scaled(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if self.held is None:
            output.pooler_output = 2 * output.pooler_output
        return output

    monkeypatch.setattr(stub, "forward", scaled)
    assert find_call(model.encoder, [model.tasks["animal"]], [False]).method is Method.APART


@pytest.mark.parametrize("names", [["similar", "animal"], ["find"], ["choice"]])
def test_heads_that_tell_the_encoder_something_are_computed_apart(make, tmp_path, names):
    """Longformer's say which tokens have global attention."""
    _, tasks, tokenizer = make("roberta", names)
    settings = ENCODER_CONFIGS["roberta"].to_diff_dict() | {"attention_window": 8, "sep_token_id": 3}
    transformers.AutoModel.from_config(transformers.LongformerConfig(**settings)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = build_model(str(tmp_path), tasks, dropout=0.0)
    assert model.call.method is Method.APART
    if len(names) == 2:  # the other heads want exactly three separators, which this tokenizer does not give
        assert_nothing_changes(model, tasks, tokenizer)


def test_tasks_that_ask_about_the_same_are_computed_once(make):
    model, tasks, tokenizer = make("bert", ["similar", "animal", "topics"])
    batch = packed_of(tasks[:1]).inputs
    batch = batch._replace(spans=dict.fromkeys(model.tasks, batch.spans["similar"]))
    logits = model.eval()(batch)
    assert model.computed_tokens == batch.lengths.sum()
    inputs = batch_of(tasks, tokenizer)["similar"]["inputs"]
    for task in model.tasks:
        torch.testing.assert_close(logits[task], model({task: inputs})[task], rtol=1e-4, atol=1e-5)


def test_finding_out_draws_nothing_and_leaves_nothing(make):
    model = make("bert", ["choice"])[0]
    task_model = model.tasks["choice"]
    for is_training in (True, False):
        model.train(is_training)
        before = torch.get_rng_state()
        assert find_call(model.encoder, [task_model], [True]).method is Method.PACKED
        assert torch.equal(torch.get_rng_state(), before)
        assert model.encoder.training == task_model.training == is_training
    assert stub_of(task_model).held is None and all(p.grad is None for p in model.parameters())


def test_a_family_with_two_kinds_of_encoders_is_refused():
    config = transformers.FunnelConfig(**SMALL, d_model=16, n_head=2, d_head=8, d_inner=32, block_sizes=[1, 1])
    model = model_of(config)
    expected = r"model.encoder: funnel has one encoder for task tags \(FunnelModel\) and another for those before it "
    with pytest.raises(UserError, match=expected):
        model.add_task("tags", transformers.AutoModelForTokenClassification.from_config(config))
