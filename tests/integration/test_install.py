"""`pip install .`, the commands that it gives, and training from Python."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from accelerate.state import AcceleratorState
from helpers.paths import ROOT

from multitask import Predictor, train
from multitask.errors import UserError


@pytest.fixture
def config(mixture_config, write_config):
    mixture_config["training"]["max_steps"] = 2
    return write_config(mixture_config)


def test_training_from_python_again_and_again(config, tmp_path, capsys):
    first = train(config)
    assert first == json.loads((tmp_path / "run" / "metrics.json").read_text()) and first["step"] == 2
    said = capsys.readouterr().out
    assert said.count("One model per task in") == said.count("step 2: evaluated in") == 1
    other = train(
        config, training={"output_dir": str(tmp_path / "other"), "max_steps": 1}, tasks={"animal": {"weight": 2}}
    )
    assert other["step"] == 1
    written = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
    assert written["tasks"]["animal"]["weight"] == 2 and written["training"]["max_steps"] == 1
    assert Predictor(str(tmp_path / "run"))({"a": "the cat", "text": "the cat"}, ["animal"])["animal"]["label"]
    with pytest.raises(UserError, match="training.max_step"):
        train(config, training={"max_step": 5})
    AcceleratorState._reset_state(True)


@pytest.mark.slow
def test_it_installs_with_its_commands(config, tmp_path):
    """Without its dependencies, which are here; nothing is downloaded."""
    site = tmp_path / "site"
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site), str(ROOT)]
    copy = tmp_path / "source"  # setuptools leaves a build folder where it works
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    words[-1] = str(copy)
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
    environment = os.environ | {"PYTHONPATH": str(site)}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([str(site / "bin" / "multitask"), "--config", config], **run)
    assert done.returncode == 0 and "One model per task in" in done.stdout, done.stderr
    listed = subprocess.run([str(site / "bin" / "multitask-checkpoint"), "list", str(tmp_path / "run")], **run)
    assert listed.returncode == 0 and "2" in listed.stdout, listed.stderr
    code = "import multitask, run_multitask; print(multitask.__file__)"
    where = subprocess.run([sys.executable, "-c", code], **run)
    assert where.stdout.startswith(str(site)), where.stdout + where.stderr
    assert (tmp_path / "run" / "report" / "index.html").exists()  # the page's template is in the package
