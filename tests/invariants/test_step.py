"""What a step promises: the same update on any number of passes and processes, tested on the numbers that runs leave."""

import json
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers.runs import assert_same_curve, assert_same_weight, curve, weights
from helpers.tasks import TASKS, make_rows, padded, read_jsonl, write_jsonl

import run_multitask
from multitask.cli.arguments import read_command
from multitask.mixture.mixture import Mixture
from multitask.model.pretrained import build_model, load_tokenizer
from multitask.tasks.load import load_task
from multitask.utils import stable_seed


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [1, 60, 150])
def test_several_passes_make_the_update_of_one(train, tmp_path, max_tokens):
    one = train()
    several = train(
        "--training.output_dir", str(tmp_path / "several"), "--training.max_tokens_per_pass", str(max_tokens)
    )
    assert_same_curve(one, several)
    after_one, after_several = weights(one), weights(several)
    assert after_one.keys() == after_several.keys()
    for name in after_one:
        assert_same_weight(name, after_one[name], after_several[name])


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [10**6, 100])
def test_two_processes_make_the_update_of_one(mixture_config, write_config, train, program, tmp_path, max_tokens):
    """Uneven on purpose: with 11 examples a step, one process has a row more, sometimes a task all to itself."""
    options = ["--training.batch_size", "11", "--training.max_tokens_per_pass", str(max_tokens)]
    mixture_config["tasks"]["similar"]["metrics"] = ["mse"]
    one = train(*options)
    two = tmp_path / "two"
    config = ["--config", write_config(mixture_config), "--training.output_dir", str(two)]
    done = program(*config, *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_curve(one, two)
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    assert first["tasks"]["similar"]["mse"] == pytest.approx(second["tasks"]["similar"]["mse"], rel=1e-4)
    for task in ("animal", "choice"):
        assert first["tasks"][task] == second["tasks"][task]
    assert (
        done.stdout.count("average") == 2
    )  # of the evaluation and in the table, from one process  # only the main process prints


@pytest.mark.slow
def test_two_processes_with_a_task_that_is_rare(mixture_config, write_config, train, program, tmp_path):
    """Steps without any row of a task, and devices without a row of one, in a step of several passes."""
    mixture_config["mixture"] = {"sampling": "weights", "weights": {"similar": 0.05, "animal": 0.3, "choice": 0.65}}
    options = ["--training.batch_size", "5", "--training.max_tokens_per_pass", "60", "--training.max_steps", "8"]
    one = train(*options)
    two = tmp_path / "two"
    config = ["--config", write_config(mixture_config), "--training.output_dir", str(two)]
    done = program(*config, *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_curve(one, two)
    examples = [line["train/similar/examples"] for line in read_jsonl(one / "metrics.jsonl") if "train/loss" in line]
    assert 0 < examples[-1] < 8  # it was idle in some steps, and not in all


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_does_not(train, tmp_path):
    dropout = ["--model.dropout", "0.1"]
    runs = [
        train(*dropout, "--training.seed", str(seed), "--training.output_dir", str(tmp_path / name))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, again, other = (weights(run) for run in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (curve(runs[0]) == curve(runs[1])).all()
    assert not any(torch.equal(first[name], other[name]) for name in first if "weight" in name and "Norm" not in name)


def test_background_workers_change_nothing(train, tmp_path):
    inline = train("--model.dropout", "0.1")
    options = ["--training.dataloader_num_workers", "2", "--training.output_dir", str(tmp_path / "workers")]
    assert (curve(inline) == curve(train("--model.dropout", "0.1", *options))).all()


@pytest.mark.slow
def test_every_parameter_changes_and_an_idle_head_does_not(train, mixture_config, tmp_path):
    before = weights(train("--training.max_steps", "1", "--training.warmup_ratio", "0.9"))  # its learning rate is 0
    trained = weights(train("--training.output_dir", str(tmp_path / "trained")))
    unchanged = [name for name in before if torch.equal(before[name], trained[name])]
    # The gradient of the attention's key bias is zero, as softmax does not see a constant: rounding decides.
    assert [name for name in unchanged if not name.endswith("key.bias")] == []
    mixture_config["mixture"] = {"sampling": "weights", "weights": {"similar": 1, "animal": 0, "choice": 1}}
    partly = weights(train("--training.output_dir", str(tmp_path / "partly")))
    head = [name for name in before if name.startswith("animal.") and ("classifier" in name or "pooler" in name)]
    assert len(head) == 4
    assert all(torch.equal(before[name], partly[name]) for name in head)
    encoder = [name for name in before if name.startswith("animal.") and name not in head]
    assert not any(torch.equal(before[name], partly[name]) for name in encoder if not name.endswith("key.bias"))


def test_the_learning_rate_peaks_after_the_warm_up_and_ends_at_zero(train):
    folder = train("--training.max_steps", "20", "--training.warmup_ratio", "0.25")
    rates = {
        line["step"]: line["train/learning_rate"]
        for line in read_jsonl(folder / "metrics.jsonl")
        if "train/loss" in line
    }
    assert rates[5] == max(rates.values()) == 1e-3
    assert rates[20] == 0.0


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_stops_the_run_at_its_step(mixture_config, write_config, program, tmp_path):
    mixture_config["tasks"]["similar"]["weight"] = 1e30
    rows = make_rows("regression", 40)
    rows[0]["label"] = 1e30  # its square is infinite in float32
    mixture_config["tasks"]["similar"]["data_files"] = {"train": str(write_jsonl(tmp_path / "huge.jsonl", rows))}
    done = program("--config", write_config(mixture_config))
    assert done.returncode == 1
    assert re.search(
        r"FloatingPointError: step 1: the loss of task similar is inf; this step was not applied", done.stderr
    )
    assert not list((tmp_path / "run" / "export").iterdir())


@pytest.mark.slow
def test_a_few_examples_are_learned_by_heart(train):
    options = ["--training.learning_rate", "1e-2", "--training.max_steps", "200", "--training.warmup_ratio", "0.1"]
    few = [part for task in TASKS for part in (f"--tasks.{task}.max_train_examples", "4")]
    losses = curve(train(*options, *few))[:, 0]
    assert losses[-10:].mean() < 0.1 * losses[:5].mean()


def test_the_run_is_the_one_that_the_design_describes(train, mixture_config):
    """Recomputed row by row in plain PyTorch: the rows, weights, gradients, clipping, decay and rates of every step."""
    mixture_config["mixture"] = {"sampling": "temperature", "temperature": 3.0}
    for task, weight in zip(TASKS, (0.5, 2.0, 1.5), strict=True):
        mixture_config["tasks"][task]["weight"] = weight
    del mixture_config["training"]["max_steps"]
    settings = {"num_train_epochs": 0.21, "warmup_ratio": 0.5, "weight_decay": 0.1, "max_grad_norm": 0.05, "seed": 3}
    mixture_config["training"] |= settings | {"max_tokens_per_pass": 100, "lr_scheduler_type": "cosine"}
    folder = train()

    config = read_command(["--config", str(folder / "config.yaml")]).config
    tokenizer = load_tokenizer(config.model.encoder, 64)
    tasks = [load_task(name, task, tokenizer, 64) for name, task in config.tasks.items()]
    model = build_model(config.model.encoder, tasks, dropout=0.0, seed=3)
    sizes, lengths = {t.name: len(t.train) for t in tasks}, {t.name: t.train.length for t in tasks}
    roots = {name: Fraction((size / max(sizes.values())) ** (1 / 3)) for name, size in sizes.items()}
    shares = {name: root / sum(roots.values()) for name, root in roots.items()}
    mixture = Mixture(sizes, shares, 12, 3, lengths)
    steps = 5  # 0.21 passes over 60 + 90 + 120 rows by twelves are 4.7 steps, of which 2.5, so 2, warm up
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])
    expected = []
    for step in range(steps):
        rate = 1e-3 * (step / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 3)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        total = 0.0
        for task in tasks:
            for row in mixture(step)[task.name]:
                batch = padded(task.train, [row], 0)
                logits = model({task.name: batch["inputs"]})[task.name]
                if task.type.name == "regression":
                    loss = (logits[0, 0] - batch["labels"][0]) ** 2
                else:
                    loss = -torch.log_softmax(logits[0], -1)[batch["labels"][0]]
                (task.weight * loss / 12).backward()
                total += task.weight * loss.item() / 12
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        assert norm > 0.05  # so that clipping is tested
        optimizer.step()
        expected.append([total, norm.item()])
    np.testing.assert_allclose(curve(folder), np.array(expected), rtol=1e-4)
    after = weights(folder)
    encoder = [(f"{t}.bert.{n}", p) for t in TASKS for n, p in model.encoder.named_parameters()]
    heads = [(f"{t}.{n}", p) for t in TASKS for n, p in model.tasks[t].named_parameters()]
    assert {name for name, _ in (*encoder, *heads)} == after.keys()
    for name, parameter in (*encoder, *heads):
        assert_same_weight(name, after[name], parameter.detach())


@pytest.mark.slow
def test_evaluation_is_without_dropout_and_training_goes_on_with_it(train, mixture_config, tmp_path):
    mixture_config["training"]["learning_rate"] = 1e-2
    mixture_config["tasks"]["similar"]["metrics"] = ["mse"]
    seldom = train("--model.dropout", "0.5")
    often = train("--model.dropout", "0.5", "--training.eval_steps", "1", "--training.output_dir", str(tmp_path / "b"))
    assert (curve(seldom) == curve(often)).all()

    # The numbers of the last evaluation are those of the exported model, which has no dropout when it is loaded.
    rows = read_jsonl(Path(mixture_config["tasks"]["similar"]["data_files"]["validation"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(seldom / "export" / "similar")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(seldom / "export" / "similar").eval()
    with torch.no_grad():
        scores = [model(**tokenizer(row["a"], row["b"], return_tensors="pt")).logits.item() for row in rows]
    squares = [(score - row["label"]) ** 2 for score, row in zip(scores, rows, strict=True)]
    results = json.loads((seldom / "metrics.json").read_text())
    assert results["tasks"]["similar"] == {"mse": pytest.approx(np.mean(squares), rel=1e-4)}


@pytest.mark.slow
def test_dropout_is_seeded_by_step_process_and_pass(train, tmp_path, monkeypatch):
    options = ["--model.dropout", "0.5", "--training.max_tokens_per_pass", "100"]
    first = train(*options)

    # Whatever random numbers were drawn before the loop make no difference.
    build = run_multitask.build_model
    monkeypatch.setattr(run_multitask, "build_model", lambda *a: (build(*a), torch.manual_seed(torch.seed()))[0])
    seeds = []
    monkeypatch.setattr(run_multitask, "stable_seed", lambda *parts: seeds.append(parts) or stable_seed(*parts))
    again = train(*options, "--training.output_dir", str(tmp_path / "again"))
    assert (curve(first) == curve(again)).all()
    assert len(set(seeds)) == len(seeds) > 6
    assert {(seed, step, rank) for seed, step, rank, _ in seeds} == {(0, step, 0) for step in range(1, 7)}
