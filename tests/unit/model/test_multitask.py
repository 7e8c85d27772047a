import json
import math
import shutil

import numpy as np
import pytest
import torch
import transformers
from helpers.encoders import ENCODER_CONFIGS
from helpers.lanes import fast_if
from helpers.tasks import ALL_TASKS, batch_of, padded

from multitask.data.packing import pack
from multitask.errors import UserError
from multitask.model.encoder import stub_of
from multitask.model.export import export_tasks
from multitask.model.multitask import logits_of
from multitask.model.pretrained import build_model, load_tokenizer
from multitask.tasks.base import TASK_TYPES, Task, example_losses

FAMILIES = sorted(ENCODER_CONFIGS)


def test_all_families_are_here():
    assert len(FAMILIES) == 9


@pytest.mark.slow
def test_fsdp_is_told_the_layers_of_every_family(make):
    """By the name that Accelerate looks for, where a launch configuration names none."""
    found = {family: ", ".join(make(family, ["animal"])[0]._no_split_modules) for family in FAMILIES}
    assert found == {
        "albert": "AlbertLayer, AlbertLayerGroup",
        "bert": "BertLayer",
        "deberta-v2": "DebertaV2Layer",
        "distilbert": "TransformerBlock",
        "electra": "ElectraLayer",
        "modernbert": "ModernBertEncoderLayer",
        "mpnet": "MPNetLayer",
        "roberta": "RobertaLayer",
        "xlm-roberta": "XLMRobertaLayer",
    }


@pytest.mark.parametrize("family", fast_if(["bert"], FAMILIES))
def test_one_encoder_serves_all_types_of_tasks(make, family):
    model, tasks, tokenizer = make(family, ALL_TASKS)
    batches = batch_of(tasks, tokenizer)
    logits = model({name: batch["inputs"] for name, batch in batches.items()})
    assert {task.type.name for task in tasks} == TASK_TYPES.keys() and len(tasks) == 6
    tokens = {name: batch["inputs"]["input_ids"].shape[-1] for name, batch in batches.items()}
    assert {name: tuple(t.shape) for name, t in logits.items()} == {
        "similar": (6, 1),
        "animal": (6, 2),
        "choice": (6, 3),
        "topics": (6, 3),
        "tags": (6, tokens["tags"], 2),
        "find": (6, tokens["find"], 2),
    }

    # The encoder exists once: all models ask the same one, and there is nothing else besides heads.
    encoder = {p.data_ptr() for p in model.encoder.parameters()}
    alone = transformers.AutoModel.from_config(ENCODER_CONFIGS[family])
    shared = [p for name, p in alone.named_parameters() if not name.startswith("pooler.")]
    assert len(encoder) == len(shared)
    assert sum(p.numel() for p in model.encoder.parameters()) == sum(p.numel() for p in shared)
    heads = [p for task in tasks for p in model.head_parameters(task.name)]
    assert all(model.head_parameters(task.name) for task in tasks) and len({id(p) for p in heads}) == len(heads)
    assert sum(1 for _ in model.parameters()) == len(shared) + len(heads)
    for task_model in model.tasks.values():
        assert stub_of(task_model).shared == [model.encoder]
        assert not encoder & {p.data_ptr() for p in task_model.parameters()}

    # Every parameter takes part, so data-parallel training need not search for unused ones.
    losses = {task.name: example_losses(task.type, logits[task.name], batches[task.name]["labels"]) for task in tasks}
    assert all(loss.shape == (6,) and (loss > 0).all() for loss in losses.values())
    sum(loss.sum() for loss in losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_gradients_of_no_rows_are_zeros_of_their_own(make):
    """Not one zero that all of them show: XLA would add to all what is added to one."""
    model, tasks, tokenizer = make("bert")
    batches = batch_of(tasks[:1], tokenizer) | batch_of(tasks[1:], tokenizer, rows=[])
    logits = model({name: batch["inputs"] for name, batch in batches.items()})
    heads = [p for task in tasks[1:] for p in model.head_parameters(task.name)]
    gradients = torch.autograd.grad(sum(logits[task.name].sum() for task in tasks[1:]), heads)
    assert len(heads) == 8 and not any(gradient.any() for gradient in gradients)
    assert len({gradient.data_ptr() for gradient in gradients}) == 8
    assert all(gradient.is_contiguous() for gradient in gradients)


@pytest.mark.parametrize("family", fast_if(["bert", "roberta"], FAMILIES))
def test_an_exported_task_is_an_ordinary_model_with_the_same_logits(make, family, tmp_path):
    model, tasks, tokenizer = make(family, ALL_TASKS)
    model.eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    export_tasks(model, tokenizer, tmp_path)
    batches = batch_of(tasks, tokenizer)
    with torch.no_grad():
        logits = model({name: batch["inputs"] for name, batch in batches.items()})
        for task in tasks:
            loaded, info = task.type.auto_class.from_pretrained(tmp_path / task.name, output_loading_info=True)
            assert not info["missing_keys"] and not info["unexpected_keys"]
            output = loaded.eval()(**batches[task.name]["inputs"])
            torch.testing.assert_close(logits_of(output), logits[task.name], atol=1e-5, rtol=0)
    assert loaded.config.model_type == family
    labels = transformers.AutoConfig.from_pretrained(tmp_path / "animal").id2label
    assert labels == {0: "animal", 1: "none"}
    tokenizer("the cat", truncation=True, max_length=3, padding="max_length")  # leaves its mark on the tokenizer
    export_tasks(model, tokenizer, tmp_path)
    settings = json.loads((tmp_path / "animal" / "tokenizer.json").read_text())
    assert settings["truncation"] is None and settings["padding"] is None
    reloaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "animal")
    assert reloaded("the cat", "a dog") == tokenizer("the cat", "a dog")


def test_a_pipeline_reads_an_exported_task(make, tmp_path):
    model, _, tokenizer = make("roberta")
    export_tasks(model, tokenizer, tmp_path)
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "animal"))
    (answer,) = classify([{"text": "the cat", "text_pair": "a dog"}])
    assert answer["label"] in ("animal", "none") and 0.5 <= answer["score"] <= 1
    score = transformers.pipeline("text-classification", model=str(tmp_path / "similar"), function_to_apply="none")
    logits = model.eval()({"similar": tokenizer("the cat", return_tensors="pt")})["similar"]
    assert score("the cat")[0]["score"] == pytest.approx(logits.item(), abs=1e-5)


def test_the_pretrained_weights_are_loaded(make, encoders):
    model, _, _ = make("roberta")
    pretrained = transformers.AutoModel.from_pretrained(encoders("roberta"))
    for name in ("embeddings", "encoder"):
        for key, value in getattr(pretrained, name).state_dict().items():
            assert torch.equal(value, getattr(model.encoder, name).state_dict()[key])
    # RoBERTa's multiple-choice class has a pooler, its classification class has none; BERT's both have their own.
    assert model.tasks["animal"].base_model.pooler is None
    assert torch.equal(model.tasks["choice"].base_model.pooler.dense.weight, pretrained.pooler.dense.weight)
    bert, _, _ = make("bert")
    poolers = [task_model.base_model.pooler.dense.weight for task_model in bert.tasks.values()]
    assert len({p.data_ptr() for p in poolers}) == 3 and torch.equal(poolers[0], poolers[1])


@pytest.mark.parametrize("family", fast_if(["bert", "distilbert"], FAMILIES))
def test_a_regression_head_starts_at_the_mean_of_its_labels(make, family):
    model, tasks, tokenizer = make(family, names=["similar", "animal"])
    mean = np.mean(tasks[0].train.row_labels)
    (bias,) = [p for p in model.head_parameters("similar") if p.shape == (1,)]
    assert mean > 1.5 and bias.item() == pytest.approx(mean)
    with torch.no_grad():
        before = model.eval()({"similar": batch_of(tasks, tokenizer)["similar"]["inputs"]})["similar"]
        bias += 1
        after = model({"similar": batch_of(tasks, tokenizer)["similar"]["inputs"]})["similar"]
    torch.testing.assert_close(after - before, torch.ones(6, 1))  # it is the bias that is added last


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert", "modernbert", "deberta-v2"])
@pytest.mark.parametrize("kind", ["classification", "regression", "token_classification", "question_answering"])
def test_a_head_like_another_is_what_it_is_by_itself(encoders, family, kind):
    """Only the first of a kind is loaded; the others are copies whose random weights are drawn anew."""
    labels = {"regression": (), "question_answering": ("start", "end")}.get(kind, ("O", "B-x"))
    tasks = [Task(name, TASK_TYPES[kind], labels) for name in ("first", "second")]
    folder = str(encoders(family))
    together, alone = build_model(folder, tasks, 0.0, 3), build_model(folder, tasks[1:], 0.0, 3)
    second, same = together.tasks["second"], alone.tasks["second"]
    assert second.config.to_dict() == same.config.to_dict()
    assert second.state_dict().keys() == same.state_dict().keys()
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in second.state_dict().items())
    assert not {*second.parameters()} & {*together.tasks["first"].parameters()}


def test_a_head_depends_on_the_seed_and_its_name_alone(make):
    all_three, alone, other = make("bert")[0], make("bert", names=["animal"])[0], make("bert", seed=1)[0]
    weight = all_three.tasks["animal"].classifier.weight
    assert torch.equal(weight, alone.tasks["animal"].classifier.weight)
    assert not torch.equal(weight, other.tasks["animal"].classifier.weight)
    assert not torch.equal(all_three.tasks["similar"].classifier.weight, all_three.tasks["choice"].classifier.weight)


@pytest.mark.parametrize("family", fast_if(["bert", "modernbert"], FAMILIES))
def test_dropout_is_set_everywhere(make, family):
    model, tasks, tokenizer = make(family, dropout=0.0)
    probabilities = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert set(probabilities) <= {0.0}
    batches = {name: batch["inputs"] for name, batch in batch_of(tasks, tokenizer).items()}
    model.train()
    first, second = model(batches), model(batches)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_task_without_rows_reaches_its_own_parameters_only(make):
    model, tasks, tokenizer = make("bert")
    batches = batch_of(tasks, tokenizer)
    batches["animal"] = padded(tasks[1].train, [], 0)
    logits = model({name: batch["inputs"] for name, batch in batches.items()})
    losses = {t.name: example_losses(t.type, logits[t.name], batches[t.name]["labels"]).sum() for t in tasks}
    assert losses["animal"].item() == 0
    losses["animal"].backward()
    touched = {id(p) for p in model.parameters() if p.grad is not None}
    assert touched == {id(p) for p in model.head_parameters("animal")}
    assert all(not p.grad.any() for p in model.head_parameters("animal"))


def test_a_pass_without_any_row_reaches_every_parameter_with_zero(make):
    model, tasks, _ = make("bert", ALL_TASKS)
    batches = {task.name: padded(task.train, [], 0) for task in tasks}
    logits = model({name: batch["inputs"] for name, batch in batches.items()})
    losses = [example_losses(t.type, logits[t.name], batches[t.name]["labels"]) for t in tasks]
    assert [tuple(loss.shape) for loss in losses] == [(0,)] * 6
    sum(loss.sum() for loss in losses).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_losses_are_those_of_the_definitions(make):
    _, tasks, _ = make("bert")
    regression, classification, _ = (task.type for task in tasks)
    assert regression.loss(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 5.0])).tolist() == [1.0, 4.0]
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert classification.loss(logits, torch.tensor([1])).item() == pytest.approx(-math.log(0.75))


# -- what a user may get wrong -----------------------------------------------------------------------------------------


def test_an_encoder_without_its_weights_is_refused(make, encoders, tmp_path):
    config = transformers.AutoConfig.from_pretrained(encoders("bert"))
    other = transformers.AutoModel.from_config(
        transformers.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    )
    folder = tmp_path / "half"
    other.save_pretrained(folder)
    config.save_pretrained(folder)
    load_tokenizer(str(encoders("bert")), 8)
    tasks = make("bert")[1]
    with pytest.raises(
        UserError,
        match=r"model.encoder: '.*half' lacks weights that its configuration asks for: bert\.\S+ \(\d+ in all\)",
    ):
        build_model(str(folder), tasks)


def test_an_encoder_of_another_size_than_its_weights_is_refused(make, encoders, tmp_path):
    tasks = make("bert")[1]
    for key, value in (("hidden_size", 32), ("vocab_size", 10)):
        folder = tmp_path / key
        shutil.copytree(encoders("bert"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(UserError, match=r"lacks weights that its configuration asks for: bert\.embeddings\."):
            build_model(str(folder), tasks)


def test_an_encoder_without_its_tokenizer_is_refused(encoders, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(encoders("bert"), folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(
        UserError, match="model.encoder: '.*bare' has a tokenizer of 5 tokens where the encoder knows 26"
    ):
        load_tokenizer(str(folder), 64)


def test_weights_that_are_no_weights_are_refused(make, encoders, tmp_path):
    tasks = make("bert")[1]
    shutil.copytree(encoders("bert"), tmp_path / "pointer")
    (tmp_path / "pointer" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="model.encoder: '.*pointer' for task similar: "):
        build_model(str(tmp_path / "pointer"), tasks)


def test_positions_that_padding_takes_are_not_counted(encoders, tmp_path):
    folder = tmp_path / "roberta"
    shutil.copytree(encoders("roberta"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    load_tokenizer(str(folder), 65)
    with pytest.raises(UserError, match="model.max_length: 66 is more than the 65 tokens that"):
        load_tokenizer(str(folder), 66)


def test_a_head_is_new_also_on_an_encoder_saved_from_a_task_model(make, tmp_path):
    model, tasks, tokenizer = make("bert", seed=5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05)
    export_tasks(model, tokenizer, tmp_path)
    again = build_model(str(tmp_path / "similar"), tasks, seed=5)
    assert torch.equal(
        again.encoder.embeddings.word_embeddings.weight, model.encoder.embeddings.word_embeddings.weight
    )
    for task in ("similar", "animal", "choice"):
        assert not torch.equal(again.tasks[task].classifier.weight, model.tasks[task].classifier.weight)
    assert again.tasks["choice"].config.problem_type is None
    assert again.tasks["choice"].classifier.bias.item() == 0  # and not the mean of the right choices' positions
    assert again.tasks["similar"].classifier.bias.item() == pytest.approx(np.mean(tasks[0].train.row_labels))


def test_a_max_length_beyond_the_encoder_is_refused(encoders):
    with pytest.raises(UserError, match="model.max_length: 65 is more than the 64 tokens that '.*bert' reads"):
        load_tokenizer(str(encoders("bert")), 65)


def test_an_encoder_without_such_a_head_is_refused(make, tmp_path):
    tasks = make("bert")[1]
    transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model.encoder: '.*' for task choice: Unrecognized configuration class"):
        build_model(str(tmp_path), tasks[2:])


def lookups_in(graph, weight) -> int:
    """How many gradients of an embedding's weight its backward pass will compute."""
    found, left, seen = 0, [graph], set()
    while left:
        if (node := left.pop()) is not None and node not in seen:
            seen.add(node)
            inputs = [function for function, _ in node.next_functions]
            found += node.name() == "EmbeddingBackward0" and inputs[0].variable is weight
            left += inputs
    return found


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("mpnet", "deberta-v2")])
def test_words_are_looked_up_once_a_pass_and_nothing_changes(make, family):
    """The gradient of a lookup is as large as the vocabulary."""
    model, tasks, tokenizer = make(family, ALL_TASKS, dropout=0.0)
    weight = model.encoder.get_input_embeddings().weight
    rows, nothing = np.arange(6), np.empty(0, np.int64)

    def gradients(*passes) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for names in passes:
            of_tasks = {task.name: rows if task.name in names else nothing for task in tasks}
            logits = model(pack(of_tasks, {task.name: task.train for task in tasks}).inputs)
            loss = sum(of_task.square().sum() for of_task in logits.values())
            assert lookups_in(loss.grad_fn, weight) == 1
            loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    together = gradients(list(ALL_TASKS))
    for name, apart in gradients(*([name] for name in ALL_TASKS)).items():
        torch.testing.assert_close(together[name], apart, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_pads_its_tokens_looks_them_up_itself(encoders, task_files, tmp_path, make):
    """Longformer's attention goes by windows: its sequences become as long as so many of them."""
    _, tasks, tokenizer = make("roberta", ["similar", "animal"])
    config = transformers.LongformerConfig(**ENCODER_CONFIGS["roberta"].to_diff_dict() | {"attention_window": 8})
    transformers.LongformerModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = build_model(str(tmp_path), tasks, dropout=0.0)
    batches = {name: batch["inputs"] for name, batch in batch_of(tasks, tokenizer).items()}
    together = model(batches)
    for name, inputs in batches.items():
        torch.testing.assert_close(model({name: inputs})[name], together[name], rtol=1e-4, atol=1e-5)
