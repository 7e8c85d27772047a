"""The tickets of configs/tickets.yaml: reproducible, nothing of training in validation; one run of them."""

import importlib
import json
import sys
from itertools import chain
from pathlib import Path

import pytest
import yaml
from helpers.paths import ROOT

from multitask.config.load import load_config

sys.path.insert(0, str(ROOT / "quickstart"))
make_tickets = importlib.import_module("make_tickets")


def rows(split: str) -> list[dict]:
    path = ROOT / "quickstart" / "data" / "tickets" / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_files_are_what_the_script_makes(split):
    assert rows(split) == make_tickets.tickets(split)
    assert len({row["text"] for row in rows(split)}) == len(rows(split)) == make_tickets.COUNTS[split]


def test_training_and_validation_share_no_phrase_and_no_text():
    parts = yaml.safe_load((ROOT / "quickstart" / "tickets.yaml").read_text(encoding="utf-8"))
    pools = [parts["frames"], *chain.from_iterable(parts[kind].values() for kind in ("topics", "urgency", "remarks"))]
    for pool in pools:
        assert pool["train"] and pool["validation"] and not set(pool["train"]) & set(pool["validation"])
    assert not {row["text"] for row in rows("train")} & {row["text"] for row in rows("validation")}


def test_labels_are_even_and_some_are_missing_in_training_alone():
    train, validation = rows("train"), rows("validation")
    topics = [row["topic"] for row in train]
    assert all(0.15 < topics.count(topic) / len(train) < 0.3 for topic in {*topics} - {None})
    assert 0.05 < topics.count(None) / len(train) < 0.15
    assert 0.15 < [row["urgency"] for row in train].count(None) / len(train) < 0.25
    assert all(row["topic"] is not None and row["urgency"] is not None for row in validation)


@pytest.mark.slow
def test_a_short_run_learns_all_three_and_says_what_it_reads(program, tmp_path):
    steps = ["--training.max_steps", "60", "--training.eval_steps", "60", "--tracking.report_to", "[]"]
    done = program(
        "--config", str(ROOT / "configs" / "tickets.yaml"), *steps, "--training.output_dir", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr
    assert "note: topic, urgency, tags read the same rows (tickets), each drawn and encoded once" in done.stdout
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())["tasks"]
    assert results["topic"]["accuracy"] > 0.6 and results["urgency"]["pearson"] > 0.3
    assert {path.name for path in Path(tmp_path / "run" / "export").iterdir()} == {"topic", "urgency", "tags"}


def test_the_configuration_is_read():
    config = load_config(ROOT / "configs" / "tickets.yaml")
    assert {name: task.rows for name, task in config.tasks.items()} == dict.fromkeys(
        ("topic", "urgency", "tags"), "tickets"
    )
