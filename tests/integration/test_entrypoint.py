"""The container's entry point, run as a container runs it: from the signal to the status, from the machines to the words."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from helpers.paths import ROOT
from helpers.runs import free_port
from helpers.servers import JsonServer
from helpers.tasks import read_jsonl

from cloud import entrypoint
from cloud.entrypoint import Machines, launch_arguments, read_cluster_spec, read_secret
from multitask.checkpoints.manifest import checkpoints_in
from multitask.checkpoints.remote import list_checkpoints
from multitask.errors import UserError


@pytest.fixture
def start(mixture_config, write_config):
    """Starts the entry point in a process: `start("--training.seed", "1", LAUNCH="cpu")`."""
    mixture_config["model"]["dropout"] = 0.1
    mixture_config["training"] |= {"max_steps": 60, "save_steps": 20}
    config = write_config(mixture_config)
    started: list[subprocess.Popen] = []

    def start(*options: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "cloud.entrypoint", "--config", config, *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def wait_for_step(process: subprocess.Popen, folder, step: int) -> None:
    path = folder / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (path.exists() and f'"step": {step},' in path.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- the spot drill ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_times_stopped_on_a_machine_that_disappears(
    start, program, mixture_config, write_config, place, tmp_path
):
    config = write_config(mixture_config)
    whole = program("--config", config, "--training.output_dir", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr

    folder, starts = tmp_path / "spot", []
    options = ["--training.output_dir", str(folder), "--checkpoints.remote", place]
    for _ in range(3):
        starts.append(list_checkpoints(place)[-1] if starts else 0)
        process = start(*options)
        wait_for_step(process, folder, starts[-1] + 4)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 143, process.communicate()[1]
        assert checkpoints_in(folder)[0].name == f"step-{list_checkpoints(place)[-1]:08}"  # saved, and uploaded
        shutil.rmtree(folder)
    assert starts == sorted(set(starts)) and list_checkpoints(place)[-1] < 60
    process = start(*options)
    assert process.wait(300) == 0, process.communicate()[1]
    assert "going on from" in process.communicate()[0]
    last = [json.loads((run / "metrics.json").read_text()) for run in (folder, tmp_path / "whole")]
    assert all(of_run.pop("run_seconds") > 0 for of_run in last) and last[0] == last[1]
    names = ("train/loss", "train/grad_norm")
    curves = [
        [[line[name] for name in names] for line in read_jsonl(run / "metrics.jsonl") if names[0] in line]
        for run in (folder, tmp_path / "whole")
    ]
    assert len(curves[0]) == 60 and curves[0] == curves[1]


@pytest.mark.slow
def test_several_processes_get_the_signal_too(start, place, tmp_path):
    """Two machines' entry points on this one: both processes finish the step, and the first saves and uploads."""
    folder, port = tmp_path / "run", free_port()
    pools = {"workerpool0": [f"127.0.0.1:{port}"], "workerpool1": [f"127.0.0.1:{port}"]}
    processes = []
    for pool in pools:
        spec = json.dumps({"cluster": pools, "task": {"type": pool, "index": 0}, "environment": "cloud"})
        processes.append(start("--checkpoints.remote", place, "--training.max_steps", "2000", CLUSTER_SPEC=spec))
    wait_for_step(processes[0], folder, 5)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(300) for process in processes] == [143, 143]
    saved = checkpoints_in(folder)[0]
    assert saved.name == f"step-{list_checkpoints(place)[-1]:08}"
    assert "stopped by a signal" in processes[0].communicate()[0]


@pytest.mark.slow
def test_a_mistake_is_one_line_and_status_2(start):
    process = start("--training.sede", "1")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: --training.sede: unknown key") and err.count("\n") == 1


@pytest.mark.slow
def test_an_accelerator_that_is_not_there(start):
    """Found by a process of the launcher, which runs here and hands on the status."""
    process = start(LAUNCH="multi_node", ACCELERATE_USE_CPU="false")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: the launch configuration asks for a GPU or a TPU, and PyTorch finds none; ")


def test_what_is_handed_on_to_the_training(monkeypatch):
    """The key of W&B, and the time that several processes have for their end; one process takes this one's place."""
    called = []
    monkeypatch.setattr(os, "execvpe", lambda *call: called.append(call))
    monkeypatch.setattr(entrypoint, "run", lambda args: 0)
    monkeypatch.setattr(entrypoint, "read_secret", lambda variable, name: f"the key in {name}")
    for name in ("WANDB_API_KEY", "HF_TOKEN", "OMP_NUM_THREADS", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, "")  # so that what becomes of it is undone
        monkeypatch.delenv(name)
    secrets = {"WANDB_API_KEY_SECRET": "a", "HF_TOKEN_SECRET": "b"}
    entrypoint.main({**secrets, "LAUNCH": "cpu"}, ["--config", "a.yaml"])
    ((program, command, variables),) = called
    assert command == [program, str(ROOT / "run_multitask.py"), "--config", "a.yaml"]
    assert variables["WANDB_API_KEY"] == "the key in a" and variables["HF_TOKEN"] == "the key in b"
    assert variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "3600"


# -- which machine this is, and what it is told ------------------------------------------------------------------------

# As in Vertex AI's documentation, shortened.
SPEC = {
    "cluster": {
        "workerpool0": ["cmle-training-workerpool0-d604e15c-0:2222"],
        "workerpool1": ["cmle-training-workerpool1-d604e15c-0:2222", "cmle-training-workerpool1-d604e15c-1:2222"],
    },
    "environment": "cloud",
    "task": {"type": "workerpool1", "index": 1, "trial": ""},
    "job": "{}",
}


def test_a_cluster_spec_becomes_rank_count_and_address():
    first = "cmle-training-workerpool0-d604e15c-0"
    assert read_cluster_spec(json.dumps(SPEC)) == Machines(2, 3, first, "2222")
    one = SPEC | {"task": {"type": "workerpool0", "index": 0}}
    assert read_cluster_spec(json.dumps(one)) == Machines(0, 3, first, "2222")
    alone = {"cluster": {"workerpool0": ["host:2222"]}, "task": {"type": "workerpool0", "index": 0}}
    assert read_cluster_spec(json.dumps(alone)) == Machines(0, 1, "host", "2222")
    assert read_cluster_spec(None) == read_cluster_spec("") == Machines()


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[1]",
        '{"cluster": {"a": []}, "task": {"type": "b", "index": 0}}',
        '{"cluster": {"a": ["host:1"]}, "task": {"type": "a", "index": 1}}',  # there is no such machine
        '{"cluster": {"a": ["host"]}, "task": {"type": "a", "index": 0}}',
        '{"cluster": {"a": "host:1"}, "task": {"type": "a", "index": 0}}',
    ],
)
def test_a_cluster_spec_of_another_shape(text):
    wanted = '{"cluster": {"workerpool0": ["HOST:PORT"]}, "task": {"type": "workerpool0", "index": 0}}'
    with pytest.raises(UserError) as raised:
        read_cluster_spec(text)
    assert str(raised.value) == f"CLUSTER_SPEC: found {text!r}, expected such as {wanted}"


@pytest.mark.slow
def test_a_cluster_spec_that_is_not_json(start):
    process = start(CLUSTER_SPEC="{cluster")
    out, err = process.communicate(timeout=300)
    message = "error: CLUSTER_SPEC: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); found '{cluster'\n"
    assert (process.returncode, out, err) == (2, "", message)


@pytest.mark.parametrize(
    ("machines", "num_gpus", "launch", "file", "words"),
    [
        (Machines(), 0, None, "cpu", ""),
        (Machines(), 1, None, "single_gpu", ""),
        (
            Machines(),
            8,
            None,
            "multi_gpu",
            "--num_processes 8 --num_machines 1 --machine_rank 0 --main_process_ip 127.0.0.1 --main_process_port 29500",
        ),
        (
            Machines(2, 4, "host", "2222"),
            8,
            None,
            "multi_node",
            "--num_processes 32 --num_machines 4 --machine_rank 2 --main_process_ip host --main_process_port 2222",
        ),
        (
            Machines(1, 2, "host", "2222"),
            0,
            None,
            "multi_node",
            "--num_processes 2 --num_machines 2 --machine_rank 1 --main_process_ip host --main_process_port 2222 --mixed_precision no",
        ),
        (
            Machines(1, 2, "host", "2222"),
            4,
            "fsdp",
            "fsdp",
            "--num_processes 8 --num_machines 2 --machine_rank 1 --main_process_ip host --main_process_port 2222",
        ),
        (Machines(), 4, "cpu", "cpu", ""),
    ],
)
def test_the_words_for_the_launcher(machines, num_gpus, launch, file, words):
    found = launch_arguments(machines, num_gpus, launch, ["--config", "a.yaml"])
    config = str(ROOT / "accelerate_configs" / f"{file}.yaml")
    assert found == ["--config_file", config, *words.split(), str(ROOT / "run_multitask.py"), "--config", "a.yaml"]


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ("multi_gpus", "LAUNCH: there is no accelerate_configs/multi_gpus.yaml; did you mean 'multi_gpu'? (valid: "),
        ("single_gpu", "LAUNCH: single_gpu needs a GPU, and this machine has none; cpu trains without"),
        ("fsdp", "LAUNCH: fsdp needs a GPU, and this machine has none; cpu trains without"),
        ("tpu", "LAUNCH: tpu needs torch_xla, which is not installed; make tpu-train builds an image with it"),
    ],
)
def test_a_launch_configuration_that_cannot_be(launch, message):
    with pytest.raises(UserError, match="^" + re.escape(message)):
        launch_arguments(Machines(), 0, launch, [])


# -- the key of Weights & Biases ---------------------------------------------------------------------------------------


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    """A server that gives tokens to a service account, and the secret `a` to who has one; yields its address."""

    def answer(path, headers, body):
        if body:
            return 200, {"access_token": "let-me-in", "expires_in": 3600, "token_type": "Bearer"}
        is_a = path == "/v1/projects/p/secrets/a/versions/latest:access"
        if is_a and headers["Authorization"] == "Bearer let-me-in":
            return 200, {"payload": {"data": base64.b64encode(b"the-key\n").decode()}}
        return 403, {}

    server = JsonServer(answer)
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"type": "service_account", "client_email": "a@p", "token_uri": server.url, "private_key": key.decode()}
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    yield server.url
    server.stop()


def test_a_secret_is_read_by_its_name(secrets):
    assert read_secret("WANDB_API_KEY_SECRET", "projects/p/secrets/a/versions/latest", secrets) == "the-key"
    name = "projects/p/secrets/b/versions/latest"
    message = f"WANDB_API_KEY_SECRET: {name} cannot be read (403 Forbidden); the service account needs roles/secretmanager.secretAccessor on it"
    with pytest.raises(UserError, match="^" + re.escape(message) + "$"):
        read_secret("WANDB_API_KEY_SECRET", name, secrets)


def test_a_secret_without_credentials(monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    with pytest.raises(
        UserError, match="WANDB_API_KEY_SECRET: projects/.* cannot be read: File /nowhere.json was not"
    ):
        read_secret("WANDB_API_KEY_SECRET", "projects/p/secrets/a/versions/latest")
