"""The benchmarks work; what they measure is not a test's to judge."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers.paths import ROOT
from pyarrow.parquet import read_table

from benchmarks import gpu, gpu_contenders, isolated, quality, workload
from benchmarks.bench import QUESTIONS, _measure, main
from benchmarks.results import Results
from benchmarks.setting import Setting
from multitask.cli.arguments import read_command
from multitask.data.sources import load_splits
from multitask.errors import UserError


def bench(*options: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.bench", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, timeout=900)


@pytest.mark.slow
def test_a_smoke_run_measures_everything_and_writes_the_page(tmp_path):
    page = tmp_path / "benchmarks.md"
    where = ["--output_dir", str(tmp_path / "bench"), "--page", str(page)]
    done = bench("--smoke", "--tasknet", "none", *where)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    for heading in ("# Benchmarks", "## Speed", "## How cost grows", "## Two processes", "## Quality"):
        assert heading in text, text
    assert (
        text.count("| one multi-task model, distilled from them | ") == 4
    )  # results, its rate, two kinds of differences
    for figure in ("(a)", "(b)", "(c)", "(e)", "Start-up", "Going on", "mixture(step)", "Peak memory", "Evaluation"):
        assert figure in text, f"{figure}:\n{text}"
    assert "<svg" in page.with_suffix(".svg").read_text()
    assert not (tmp_path / "bench" / "scratch").exists()

    # What was measured is not measured again.
    figures = (tmp_path / "bench" / "results.jsonl").read_text().splitlines()
    again = bench("--smoke", "--tasknet", "none", "--only", "growth", *where)
    assert again.returncode == 0 and "…" not in again.stdout, again.stdout
    names = [json.loads(line)["name"] for line in figures]
    assert len(names) >= 30 and page.read_text().count("\n") >= 60


@pytest.mark.slow
def test_without_data_it_says_which_variable_to_set(tmp_path):
    done = bench("--output_dir", str(tmp_path / "bench"), "--page", str(tmp_path / "page.md"))
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert "MULTITASK_DATA_ROOT" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "page.md").exists()


@pytest.mark.slow
def test_without_a_gpu_it_skips_itself_with_a_line(tmp_path):
    done = bench("--smoke", "--only", "gpu", "--output_dir", str(tmp_path), "--page", str(tmp_path / "page.md"))
    assert done.returncode == 0 and "no GPU on this machine" in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_what_fails_keeps_nothing_else_from_being_measured(tmp_path, monkeypatch, capsys):
    def fails(setting):
        raise ValueError("no such thing")

    monkeypatch.setitem(QUESTIONS, "speed", SimpleNamespace(measure=fails))
    results, page = Results(tmp_path / "results.jsonl"), tmp_path / "page.md"
    setting = SimpleNamespace(clear_scratch=lambda: None, results=results)
    assert _measure("speed", setting, page) == "speed: no such thing"
    assert "ValueError" in capsys.readouterr().err  # where it comes from is told
    assert page.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rounds", "0"), "argument --rounds: 0 is less than 1"),
        (("--steps", "1"), "argument --steps: 1 is less than 2"),
        (("--seeds", "0"), "argument --seeds: 0 is less than 1"),
        (("--only", "sped"), "--only: there is no 'sped' (it takes speed, growth, processes, labels, quality, gpu)"),
        (("--only", "speed,gpu"), "--only: gpu is measured by itself, the others on the CPU"),
        (("--report",), "--report: there are no figures in "),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # `main` sets these and changes the folder
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["bench", *options, "--output_dir", str(tmp_path / "b"), "--page", str(page)])
    with pytest.raises((SystemExit, UserError)) as stopped:
        main()
    said = capsys.readouterr().err + str(stopped.value)
    assert message in said and not page.exists()


def test_figures_survive_a_kill(tmp_path):
    path = tmp_path / "results.jsonl"
    results = Results(path)
    assert results.once("speed/0/a", lambda: 1) == 1
    with path.open("a") as file:
        file.write('{"name": "speed/0/b", "va')  # killed here
    again = Results(path)
    assert again.get("speed/0/b") is None
    assert again.once("speed/0/b", lambda: 2) == 2 and again.once("speed/0/a", lambda: pytest.fail()) == 1
    again.once("speed/1/a", lambda: 3)
    assert Results(path).rounds("speed") == {"a": [1], "b": [2]}  # round 1 is not complete
    assert Results(path).rounds("speed", needed=["c"]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu_contenders.CONTENDERS)
def test_the_contenders_on_a_gpu_work_without_one_too(name, encoders, tmp_path, monkeypatch):
    """What they measure there is not looked at."""
    monkeypatch.chdir(ROOT)
    options = ["--config", "configs/quickstart.yaml", "--model.encoder", str(encoders("bert"))]
    options += ["--model.max_length", "64", "--tracking.report_to", "[]", "--training.eval_steps", "null"]
    options += ["--training.save_steps", "null", "--training.output_dir", str(tmp_path), "--training.batch_size", "8"]
    # In a process of its own, as in a benchmark: Accelerate keeps a process's precision.
    measured = isolated.call(tmp_path / "log", gpu_contenders.run, name, options, 2, 3, tmp_path / "run", 8)
    assert measured["tokens"] == workload.tokens(options, 2, 5) and measured["seconds"] > 0
    assert measured["busy"] == measured["peak_bytes"] == 0  # of a GPU


def test_the_page_about_gpus_shows_all_that_was_measured(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.put("gpu_name", "NVIDIA H100 80GB HBM3")
    run = {"tokens": 1000, "flops": 1e12, "busy": 0.5, "peak_bytes": 2**30}
    for number in range(2):
        for size in (32, 256):
            for place, name in enumerate(gpu_contenders.CONTENDERS):
                results.put(f"gpu/{number}/{name}x{size}", run | {"seconds": 0.01 * (1 + place)})
        results.put(f"gpu/{number}/multitaskx64", {"failed": "no memory"})
        for count in (1, 8, 32):
            results.put(f"gpu_adapters/{number}/{count}", run | {"seconds": 0.01 * (1 + count / 100)})
        results.put(f"gpus/{number}/2x32", run | {"seconds": 0.01})
    page = gpu.section(results)
    assert (
        "| Hugging Face Trainer as it comes | **50,000** (50,000–50,000) | **2.00** (2.00–2.00) | ≥ 2.2: **missed** |"
        in page
    )
    assert "≥ 1.4: met" in page and "it failed" in page and "2 GPUs, 32 examples each" in page
    assert "| 32 | **1.31** (1.31–1.31) |" in page and "H100" in page


def test_the_recipe_is_what_helped_on_held_out_rows(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    gains = {"uniform sampling": 0.01, "temperature 2": 0.02, "UniMax": -0.01}
    gains |= {"weights averaged over the last fifth": 0.0, "lower rates for lower layers": 0.03}
    results.put(f"quality_held_out/{quality.MULTI}/", 0.5)
    assert quality.lever_gains(results, gains) is None  # not all of them are known yet
    for lever, gain in gains.items():
        results.put(f"quality_held_out/{quality.MULTI}, {lever}/", 0.5 + gain)
    found = quality.lever_gains(results, gains)
    assert found == pytest.approx(gains)
    assert quality.best_levers(found) == ["temperature 2", "lower rates for lower layers"]
    for chosen, name in (
        ([], quality.MULTI),
        (["UniMax"], f"{quality.MULTI}, UniMax"),
        (quality.best_levers(found), quality.BEST),
    ):
        results.put("quality_combination", chosen)
        assert quality.recipe(results) == name


def test_the_page_about_quality_says_what_is_shown_and_what_is_not(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.put("quality_epochs", 1)
    results.put("validation_rows", {"rte": 277, "stsb": 1500})
    scores = {  # of two seeds, each (RTE, STS-B)
        quality.SINGLES: [(0.60, 0.86), (0.50, 0.84)],
        quality.MULTI: [(0.60, 0.83), (0.56, 0.84)],
        quality.LORA_MULTI: [(0.50, 0.84), (0.54, 0.84)],
        quality.DISTILLED: [(0.62, 0.86), (0.58, 0.86)],
    }
    minutes = {quality.SINGLES: 50, quality.MULTI: 100, quality.LORA_MULTI: 130, quality.DISTILLED: 110}
    for name, of_seeds in scores.items():
        for seed, (rte, stsb) in enumerate(of_seeds):
            of_tasks = {"rte": {"accuracy": rte}, "stsb": {"pearson": stsb}}
            for task in ("rte", "stsb") if name == quality.SINGLES else ("",):
                of_run = {task: of_tasks[task]} if task else of_tasks
                results.put(f"quality/{seed}/{name}/{task}", of_run)
                results.put(f"quality_seconds/quality/{seed}/{name}/{task}", 60 * minutes[name])
    # No part of a contender's time: a run that chose a rate, and a seed that a budget has cut short.
    results.put(f"quality_seconds/quality_tuning/{quality.MULTI}//0.0001", 60)
    results.put(f"quality/2/{quality.SINGLES}/rte", {"rte": {"accuracy": 0.5}})
    results.put(f"quality_seconds/quality/2/{quality.SINGLES}/rte", 60)
    held_out = {f"{quality.SINGLES}/rte": 0.5, f"{quality.SINGLES}/stsb": 0.7, f"{quality.MULTI}/": 0.56}
    held_out |= {f"{quality.LORA_MULTI}/": 0.57}
    gains = dict.fromkeys(quality.LEVERS, -0.005) | {"temperature 2": -0.02}
    for name, value in (
        held_out | {f"{quality.MULTI}, {lever}/": 0.56 + gain for lever, gain in gains.items()}
    ).items():
        results.put(f"quality_rate/{name}", 1e-4)
        results.put(f"quality_held_out/{name}", value)
    results.put("quality_combination", [])
    interval = {"average": [0.8, -0.6, 2.0], "rte accuracy": [3.0, -4.0, 9.0], "stsb pearson": [-1.5, -2.0, -0.9]}
    results.put(f"quality_difference/{quality.MULTI}/{quality.SINGLES}", {"seeds": 2, "of": interval})
    results.put(f"quality_difference/{quality.LORA_MULTI}/{quality.MULTI}", {"seeds": 2, "of": interval})
    interval = interval | {"average": [2.0, -0.4, 5.0]}
    results.put(f"quality_difference/{quality.DISTILLED}/{quality.SINGLES}", {"seeds": 2, "of": interval})
    page = quality.section(results)
    assert f"| {quality.SINGLES} | 55.0 ± 7.1 | 85.0 ± 1.4 | **70.0 ± 4.2** | 1.0 | 2 |" in page
    assert f"| {quality.LORA_MULTI} | 52.0 ± 2.8 | 84.0 ± 0.0 | **68.0 ± 1.4** | 1.3 | 2 |" in page
    assert f"| {quality.DISTILLED} | 60.0 ± 2.8 | 86.0 ± 0.0 | **73.0 ± 1.4** | 2.1 | 2 |" in page  # with its teachers
    assert "standard error of accuracy of 3.0 points for rte (277 validation rows)" in page
    assert "is the combination: none, so" in page and "was not trained further: temperature 2." in page
    assert "Not trained at full length yet: one multi-task model, UniMax; one multi-task model, lower rates" in page
    cells = "+3.0 [-4.0, +9.0] | -1.5 [-2.0, -0.9] | +0.8 [-0.6, +2.0] | 2 |"
    to_singles, to_multi = page.split("Differences to one multi-task model, with 95 %")
    assert f"| {quality.MULTI} | {cells}" in to_singles and f"| {quality.LORA_MULTI} | {cells}" not in to_singles
    assert f"| {quality.LORA_MULTI} | {cells}" in to_multi and f"| {quality.MULTI} | {cells}" not in to_multi
    of_goals = f"average beside {quality.SINGLES}, lower end of the interval"
    assert f"- {quality.MULTI}, {of_goals} -0.6; goal: above -0.5: **missed**" in page
    assert f"- {quality.DISTILLED}, {of_goals} -0.4; goal: above -0.5: met" in page
    assert "stsb pearson: -1.5; goal: no more than their deviation over seeds, 1.4, below: **missed**" in page
    assert "beside one multi-task model: +0.8 [-0.6, +2.0]; goal: no more than 1 below: met" in page


@pytest.mark.slow
def test_a_budget_that_is_used_up_ends_in_a_page(tmp_path):
    where = ["--output_dir", str(tmp_path / "bench"), "--page", str(tmp_path / "page.md")]
    done = bench("--smoke", "--only", "quality", "--budget", "0", *where)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "left out" in line]
    assert len(lines) == 7 and "distilled from them: left out, there is no teacher" in lines[-1]
    assert "quality/" not in (tmp_path / "bench" / "results.jsonl").read_text() and (tmp_path / "page.md").exists()


def test_rows_that_choose_a_rate_are_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = Path("configs/quickstart.yaml")
    setting = Setting(
        tmp_path, Results(tmp_path / "r"), config, "unused", True, 1, 4, (0,), 1.0, math.inf, "no", tmp_path
    )
    held_out = yaml.safe_load(quality._hold_out(setting).read_text())["tasks"]
    for name, task in read_command(["--config", str(config)]).config.tasks.items():
        parts = {split: read_table(file) for split, file in held_out[name]["data_files"].items()}
        few, most = ({tuple(map(str, row.values())) for row in parts[s].to_pylist()} for s in ("validation", "train"))
        rows = load_splits(name, task, None)["train"]
        assert not few & most and parts["validation"].num_rows == math.ceil(0.1 * len(rows)), name
        assert few | most == {tuple(map(str, row.values())) for row in rows}, name
    assert len(held_out) == 3


@pytest.mark.slow
def test_a_model_is_trained_in_the_precision_that_is_asked_for(encoders, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = ["--config", "configs/quickstart.yaml", "--model.encoder", str(encoders("bert"))]
    options += ["--model.max_length", "64", "--tracking.report_to", "[]", "--training.max_steps", "1"]
    for number, precision in enumerate(("no", "bf16")):
        found = isolated.call(
            tmp_path / "log",
            quality.train_in,
            precision,
            [*options, "--training.output_dir", str(tmp_path / f"{number}")],
        )
        assert found == precision
