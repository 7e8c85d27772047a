import json
import re

import pytest
import wandb_workspaces.reports.v2 as panels
from helpers.tasks import ALL_TASKS, read_jsonl

from dashboards.workspace import build, main
from multitask.cli.arguments import read_command
from multitask.errors import UserError
from multitask.tracking.trackers import for_trackers


@pytest.fixture
def mixture_config(mixture_config, task_files):
    mixture_config["tasks"] = {
        name: task | {"dataset": "json", "data_files": dict(task_files[name])} for name, task in ALL_TASKS.items()
    }
    mixture_config["tasks"]["animal"]["metrics"] = ["f1", "accuracy"]
    mixture_config["training"] |= {
        "batch_size": 24,
        "max_steps": 2,
        "save_steps": 1,
        "agreement_steps": 1,
        "loss_balancing": "uncertainty",
    }
    return mixture_config


def test_every_panel_shows_what_a_run_logs(mixture_config, write_config, train):
    mixture_config["tracking"]["agreement"] = "layers"
    workspace = build(read_command(["--config", write_config(mixture_config)]).config, entity="someone")
    folder = train()
    logged = {name for line in read_jsonl(folder / "metrics.jsonl") for name in for_trackers(line, "layers")}
    tables = {name for line in read_jsonl(folder / "watched.jsonl") for name in line} - {"step"}
    rest = ["mixture", "efficiency", "checkpoints", "agreement"]
    assert [section.name for section in workspace.sections] == [*ALL_TASKS, *rest]
    shown = [panel for section in workspace.sections for panel in section.panels]
    lines = [panel for panel in shown if isinstance(panel, panels.LinePlot)]
    names = {name for panel in lines for name in panel.y or []}
    (pattern,) = [panel.metric_regex for panel in lines if panel.metric_regex]
    of_layers = {name for name in logged if re.fullmatch(pattern, name)}
    assert of_layers and all(re.match("train_agreement/(embeddings|layer_[01])/", name) for name in of_layers)
    names |= of_layers
    assert len(lines) == 2 * 6 + 7 + 3 + 4 + 1 and {panel.x for panel in lines} == {"step"}
    assert names - logged == set()
    assert logged - names == {"step", "time"}  # and all of it is shown
    assert {panel.table_name for panel in shown if panel not in lines} == tables
    assert (workspace.entity, workspace.project) == ("someone", "multitask")
    json.dumps(workspace._to_model().model_dump(mode="json"))  # what would be sent


def test_uploads_are_shown_where_there_are_some(mixture_config, write_config):
    options = ["--checkpoints.remote", "gs://bucket/runs"]
    workspace = build(read_command(["--config", write_config(mixture_config), *options]).config, entity="someone")
    assert [s for s in workspace.sections if s.name == "checkpoints"][0].panels[-1].y == ["checkpoint/upload_seconds"]


@pytest.mark.parametrize("options", [["--training.agreement_steps", "0"], ["--adapters.rank", "2"]])
def test_what_is_not_measured_has_no_section(mixture_config, write_config, options):
    workspace = build(read_command(["--config", write_config(mixture_config), *options]).config, entity="someone")
    assert "agreement" not in [section.name for section in workspace.sections]


def test_publishing_needs_a_key(mixture_config, write_config, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="^W&B has no API key; `wandb login`"):
        main(["--config", write_config(mixture_config)])
