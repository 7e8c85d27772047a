"""The benchmarks work; what they measure is not a test's to judge."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks.results import Results


def bench(*options: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.bench", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, timeout=900)


def test_a_smoke_run_measures_everything_and_writes_the_page(tmp_path):
    page = tmp_path / "benchmarks.md"
    where = ["--output_dir", str(tmp_path / "bench"), "--page", str(page)]
    done = bench("--smoke", "--tasknet", "none", *where)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    for heading in ("# Benchmarks", "## Speed", "## How cost grows", "## Two processes", "## Quality"):
        assert heading in text, text
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


def test_without_data_it_says_which_variable_to_set(tmp_path):
    done = bench("--output_dir", str(tmp_path / "bench"), "--page", str(tmp_path / "page.md"))
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert "MULTITASK_DATA_ROOT" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "page.md").exists()


def test_without_a_gpu_it_skips_itself_with_a_line(tmp_path):
    done = bench("--smoke", "--only", "gpu", "--output_dir", str(tmp_path), "--page", str(tmp_path / "page.md"))
    assert done.returncode == 0 and "no GPU on this machine" in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


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
