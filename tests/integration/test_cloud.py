"""The make targets for Docker and Google Cloud, run against stand-ins that record what they are told; the job's fields."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
from google.cloud import aiplatform_v1
from google.protobuf import json_format
from helpers.lanes import every_third
from helpers.paths import ROOT

from cloud.job import GPUS, custom_job_spec
from cloud.settings import PATTERNS

SETTINGS = {
    "PROJECT": "my-project",
    "REGION": "europe-west4",
    "BUCKET": "my-bucket",
    "REPOSITORY": "training",
    "SERVICE_ACCOUNT": "multitask@my-project.iam.gserviceaccount.com",
    "JOB_NAME": "glue-csqa",
    "CONFIG": "configs/glue_csqa.yaml",
    "MACHINE_TYPE": "g2-standard-8",
    "ACCELERATOR_TYPE": "NVIDIA_L4",
    "TAG": "v1",
}
IMAGE = "europe-west4-docker.pkg.dev/my-project/training/multitask:v1"

# Writes down how it was called; `describe` answers with a project's number.
STAND_IN = """#!/bin/sh
printf '%s' "$(basename "$0")" >> "$CALLS"
for word in "$@"; do printf '\\t%s' "$word" >> "$CALLS"; done
echo >> "$CALLS"
case "$*" in
*"buckets describe"*) [ -z "$DENIED" ] || { echo "ERROR: $DENIED" >&2; exit 1; }; echo "${OWNER:-123}" ;;
*"projects describe"*) echo 123 ;;
*cloud.entrypoint*) echo "LAUNCH=$LAUNCH" ;;
*"custom-jobs list"*) [ "$NO_JOB" ] || echo projects/123/locations/europe-west4/customJobs/456 ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """`make("cloud-train", TAG="v2")` in a copy of the repository; gives the process and what was called."""
    for name in ("cloud", "configs"):
        shutil.copytree(ROOT / name, tmp_path / "repo" / name)
    for name in ("Makefile", "Dockerfile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path / "repo")
    (tmp_path / "repo" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "repo" / ".venv" / ".installed").touch()  # newer than the requirements
    (tmp_path / "bin").mkdir()
    for path in (
        tmp_path / "bin" / "docker",
        tmp_path / "bin" / "gcloud",
        tmp_path / "repo" / ".venv" / "bin" / "python",
    ):
        path.write_text(STAND_IN)
        path.chmod(0o755)

    def make(target: str, settings: dict[str, str] = SETTINGS, **options: str):
        (tmp_path / "repo" / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {name: value for name, value in os.environ.items() if name not in PATTERNS}
        environment |= {"CALLS": str(calls), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        environment |= {name: options.pop(name) for name in ("OWNER", "DENIED", "NO_JOB") if name in options}
        words = [f"{name}={value}" for name, value in options.items()]
        done = subprocess.run(
            ["make", "--no-print-directory", target, *words],
            cwd=tmp_path / "repo",
            env=environment,
            capture_output=True,
            text=True,
        )
        return done, [line.split("\t") for line in calls.read_text().splitlines()]

    return make


def flags(call: list[str]) -> list[str]:
    return [word for word in call if word.startswith("--")]


# -- what the targets call ---------------------------------------------------------------------------------------------


def test_a_bucket_is_made_with_uniform_access_and_never_public(make):
    done, calls = make("create-bucket")
    assert done.returncode == 0, done.stderr
    options = "--project=my-project --location=europe-west4 --uniform-bucket-level-access --public-access-prevention"
    assert calls == [["gcloud", "storage", "buckets", "create", "gs://my-bucket", *options.split()]]


def test_training_builds_pushes_and_starts_the_job(make, tmp_path):
    done, calls = make("cloud-train", ARGS="--training.learning_rate 2e-5")
    assert done.returncode == 0, done.stderr
    assert [call[:4] for call in calls[:2]] == [
        ["gcloud", "storage", "buckets", "describe"],
        ["gcloud", "projects", "describe", "my-project"],
    ]
    create = "gcloud ai custom-jobs create --project=my-project --region=europe-west4 --display-name=glue-csqa --config=build/job.yaml"
    assert calls[2:] == [
        ["docker", "build", "--tag", "multitask:v1", "."],
        ["docker", "tag", "multitask:v1", IMAGE],
        ["docker", "push", IMAGE],
        create.split(),
    ]
    job = json.loads((tmp_path / "repo" / "build" / "job.yaml").read_text())
    container = job["workerPoolSpecs"][0]["containerSpec"]
    assert container["imageUri"] == IMAGE
    assert container["args"] == shlex.split(
        "--config configs/glue_csqa.yaml --checkpoints.remote gs://my-bucket/glue-csqa --training.learning_rate 2e-5"
    )


def test_training_on_a_tpu_brings_its_own_torch(make, tmp_path):
    done, calls = make("tpu-train", TPU_MACHINE="ct5lp-hightpu-4t", TPU_TOPOLOGY="2x2")
    assert done.returncode == 0, done.stderr
    build = next(call for call in calls if call[:2] == ["docker", "build"])
    assert "TORCH=torch==2.9.0 torch_xla[tpu]==2.9.0" in build and "multitask:v1-tpu" in build
    pins = (ROOT / "requirements-xla.txt").read_text()
    assert "torch==2.9.0\n" in pins and "torch_xla==2.9.0\n" in pins  # what make test-xla tests
    (pool,) = json.loads((tmp_path / "repo" / "build" / "job.yaml").read_text())["workerPoolSpecs"]
    assert pool["machineSpec"] == {"machineType": "ct5lp-hightpu-4t", "tpuTopology": "2x2"}
    variables = {variable["name"]: variable["value"] for variable in pool["containerSpec"]["env"]}
    assert variables == {"PYTHONUNBUFFERED": "1", "LAUNCH": "tpu", "PJRT_DEVICE": "TPU"}


def test_training_here_asks_for_the_launch_configuration(make):
    """Through the entry point, whose lines say what is wrong with it."""
    done, (call,) = make("run-local", LAUNCH="fsdp")
    assert done.returncode == 0, done.stderr
    assert call == ["python", "-m", "cloud.entrypoint", "--config", "configs/glue_csqa.yaml"]
    assert done.stdout == "LAUNCH=fsdp\n"


def test_training_in_a_container_here(make, tmp_path):
    done, calls = make("docker-local-train", CONFIG="configs/quickstart.yaml", DOCKER_ARGS="--gpus all")
    assert done.returncode == 0, done.stderr
    (build, run) = calls
    assert build == ["docker", "build", "--tag", "multitask:v1", "."]
    folder = tmp_path / "repo" / "runs" / "docker"  # not that of runs without Docker, which other users make
    assert folder.stat().st_mode & 0o777 == 0o777 and f"{folder}:/app/runs" in run
    assert run[:3] == ["docker", "run", "--rm"] and run[-5:] == [
        "--gpus",
        "all",
        "multitask:v1",
        "--config",
        "configs/quickstart.yaml",
    ]


def test_logs_are_those_of_the_newest_job(make):
    done, (search, logs) = make("cloud-logs")
    assert done.returncode == 0, done.stderr
    assert {"--filter=displayName=glue-csqa", "--sort-by=~createTime", "--limit=1"} <= set(search)
    assert logs[:5] == [
        "gcloud",
        "ai",
        "custom-jobs",
        "stream-logs",
        "projects/123/locations/europe-west4/customJobs/456",
    ]


def test_logs_of_a_job_that_there_is_not(make):
    done, calls = make("cloud-logs", NO_JOB="true")
    assert done.returncode == 2 and len(calls) == 1
    message = "error: JOB_NAME: there is no job glue-csqa in my-project, europe-west4\n"
    assert done.stderr.startswith(message) and re.fullmatch(STOPPED, done.stderr)


def test_the_bucket_is_verified(make):
    done, calls = make("verify-model")
    assert done.returncode == 0, done.stderr
    assert calls == [["python", "-m", "multitask.checkpoint", "verify", "gs://my-bucket/glue-csqa"]]


def test_every_target_is_listed(make):
    done, _ = make("help")
    listed = re.findall(r"^([a-z-]+) ", done.stdout, re.M)
    cloud = "docker-build docker-local-train docker-check create-bucket cloud-train cloud-logs verify-model tpu-train test-xla"
    assert set(cloud.split()) <= set(listed) and len(listed) == len(set(listed)) == 21


def test_the_examples_settings_are_complete(make):
    example = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.M))
    done, calls = make("cloud-train", example)
    message = "error: PROJECT: 'your-project-id' is the example's; set your own in .env or on the command line: "
    assert (done.returncode, calls) == (2, []) and done.stderr.startswith(message)
    example["PROJECT"] = "my-project"
    done, calls = make("cloud-train", example)
    assert done.returncode == 0, done.stderr
    assert "BASE_IMAGE=nvidia/cuda:12.9.1-base-ubuntu24.04" in next(c for c in calls if c[:2] == ["docker", "build"])
    assert make("tpu-train", example)[0].returncode == 0
    assert PATTERNS.keys() - example.keys() == {"TPU_MACHINE_TYPE"}  # which TPU_MACHINE becomes


# -- what a user may get wrong -----------------------------------------------------------------------------------------

NEEDED = {
    "create-bucket": ["PROJECT", "REGION", "BUCKET"],
    "cloud-train": ["PROJECT", "REGION", "BUCKET", "REPOSITORY", "JOB_NAME", "SERVICE_ACCOUNT"],
    "tpu-train": ["TPU_MACHINE"],
    "cloud-logs": ["PROJECT", "REGION", "JOB_NAME"],
    "verify-model": ["BUCKET", "JOB_NAME"],
}


@pytest.mark.parametrize(
    ("target", "name"), every_third((target, name) for target, names in NEEDED.items() for name in names)
)
def test_a_missing_setting_is_one_line_that_names_it(make, target, name):
    done, calls = make(target, {n: v for n, v in SETTINGS.items() if n != name})
    assert (done.returncode, calls) == (2, [])
    message = f"error: {name} is missing; set it in .env (made from .env.example) or on the command line: "
    assert done.stderr.startswith(message) and re.fullmatch(STOPPED, done.stderr)


# One line, and make's own.
STOPPED = r"error: .*\n(make.*: \*\*\* .*\n)+"


@pytest.mark.parametrize(
    ("target", "options", "message"),
    every_third([
        ("docker-build", {"TAG": "a/b"}, "TAG: found 'a/b', expected an image tag: letters, digits, '_', '.' and '-', 128 at most"),
        ("docker-build", {"TAG": "it's"}, "TAG: found 'it's', expected an image tag: letters, digits, '_', '.' and '-', 128 at most"),
        ("docker-build", {"TAG": "v1 "}, "TAG: found 'v1 ', expected an image tag"),
        ("docker-build", {"BASE_IMAGE": "python@sha256:123"}, "BASE_IMAGE: found 'python@sha256:123', expected an image's NAME:TAG, or NAME@sha256:DIGEST, which no one can change"),
        ("docker-build", {"INDEX": "https://me:secret@host/simple"}, "INDEX: found 'https://me:secret@host/simple', expected an address without a password, which would stay in the image's history"),
        ("cloud-train", {"TAG": "ü"}, "TAG: found 'ü', expected an image tag: "),
        ("create-bucket", {"BUCKET": "gs://x"}, "BUCKET: found 'gs://x', expected a bucket's name without gs://"),
        ("cloud-train", {"REGION": "Europe"}, "REGION: found 'Europe', expected a region such as europe-west4"),
        ("cloud-train", {"SERVICE_ACCOUNT": "me"}, "SERVICE_ACCOUNT: found 'me', expected NAME@PROJECT.iam.gserviceaccount.com"),
        ("cloud-train", {"CONFIG": "/tmp/a.yaml"}, "CONFIG: found '/tmp/a.yaml', expected a mixture that is in the image"),
    ]),
)  # fmt: skip
def test_a_setting_that_cannot_be_right(make, target, options, message):
    done, calls = make(target, **options)
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.startswith(f"error: {message}") and re.fullmatch(STOPPED, done.stderr)


@pytest.mark.parametrize(
    ("options", "message"),
    every_third([
        ({"REPLICAS": "0"}, "REPLICAS: found '0', expected a number of machines from 1 up"),
        ({"SPOT": "maybe"}, "SPOT: found 'maybe', expected true or false"),
        ({"TIMEOUT_HOURS": "1.5"}, "TIMEOUT_HOURS: found '1.5', expected a number from 1 up"),
        ({"CONFIG": "configs/glue.yaml"}, "CONFIG: there is no configs/glue.yaml"),
        ({"ARGS": "--a 'b"}, "ARGS: No closing quotation in --a 'b"),
        ({"ACCELERATOR_TYPE": "L4"}, "ACCELERATOR_TYPE: found 'L4', expected a name of Vertex AI's such as NVIDIA_L4"),
        ({"ACCELERATOR_TYPE": "NVIDIA_TESLA_T4"}, "ACCELERATOR_TYPE: found 'NVIDIA_TESLA_T4', expected NVIDIA_L4: g2-standard-8 comes with 1 NVIDIA_L4"),
        ({"ACCELERATOR_TYPE": ""}, "ACCELERATOR_TYPE: found '', expected NVIDIA_L4: g2-standard-8 comes with 1 NVIDIA_L4"),
        ({"ACCELERATOR_COUNT": "0"}, "ACCELERATOR_COUNT: found '0', expected a number from 1 up"),
        ({"ACCELERATOR_COUNT": "8"}, "ACCELERATOR_COUNT: found '8', expected 1: g2-standard-8 comes with 1 NVIDIA_L4"),
        ({"MACHINE_TYPE": "n2-standard-8"}, "ACCELERATOR_TYPE: found 'NVIDIA_L4', expected none: n2-standard-8 takes no GPUs; n1, g2 and a2 do"),
        ({"MACHINE_TYPE": "n1-standard-8", "ACCELERATOR_COUNT": "3"}, "ACCELERATOR_COUNT: found '3', expected 1, 2, 4 or 8, which n1-standard-8 takes"),
    ]),
)  # fmt: skip
def test_a_job_that_cannot_be_is_told_before_anything_is_built(make, options, message):
    done, calls = make("cloud-train", **options)
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.startswith(f"error: {message}\n") and re.fullmatch(STOPPED, done.stderr)


@pytest.mark.parametrize(
    ("machine", "count", "kind"),
    [
        ("g2-standard-96", "8", "NVIDIA_L4"),
        ("a2-highgpu-4g", "4", "NVIDIA_TESLA_A100"),
        ("n1-standard-8", "4", "NVIDIA_TESLA_T4"),
        ("a9-newgpu-8g", "2", "NVIDIA_B200"),  # newer than this code
    ],
)
def test_a_machine_with_the_accelerators_that_it_has(machine, count, kind):
    job = parse(MACHINE_TYPE=machine, ACCELERATOR_COUNT=count, ACCELERATOR_TYPE=kind)
    found = job.worker_pool_specs[0].machine_spec
    assert (found.machine_type, str(found.accelerator_count)) == (machine, count)
    assert aiplatform_v1.AcceleratorType(found.accelerator_type).name == kind


def test_vertex_ai_knows_every_accelerator():
    assert set(GPUS.values()) <= set(aiplatform_v1.AcceleratorType.__members__)


def test_a_bucket_of_another_project(make):
    done, calls = make("cloud-train", OWNER="999")
    assert done.returncode == 2 and len(calls) == 2
    message = "error: BUCKET: gs://my-bucket belongs to project number 999, PROJECT my-project is number 123; bucket names are everyone's, choose another\n"
    assert done.stderr.startswith(message) and re.fullmatch(STOPPED, done.stderr)


def test_a_bucket_that_may_not_be_looked_at(make):
    """What gcloud says of one that is not there, and of somebody else's."""
    done, calls = make("cloud-train", DENIED="gs://my-bucket not found: 404.")
    assert done.returncode == 2 and len(calls) == 1
    message = "error: BUCKET: gs://my-bucket cannot be read, as gcloud says above; make create-bucket makes a new one, under a name that nobody has\n"
    assert done.stderr.startswith("ERROR: gs://my-bucket not found: 404.\n" + message)


@pytest.mark.parametrize("base", ["", "python@sha256:" + "1a" * 32, "host:5000/a/python:3.12@sha256:" + "1a" * 32])
def test_the_base_can_be_pinned(make, base):
    done, (build,) = make("docker-build", BASE_IMAGE=base)
    assert done.returncode == 0, done.stderr
    assert build[4:] == (["--build-arg", f"BASE_IMAGE={base}", "."] if base else ["."])


# -- the job's description ---------------------------------------------------------------------------------------------


def parse(**options: str) -> aiplatform_v1.CustomJobSpec:
    """As Vertex AI reads it: a field or a name that is unknown is an error."""
    message = aiplatform_v1.CustomJobSpec()
    return json_format.ParseDict(custom_job_spec(SETTINGS | options), message._pb)


def test_vertex_ai_knows_every_field():
    job = parse(
        MACHINE_TYPE="g2-standard-24", ACCELERATOR_COUNT="2", REPLICAS="4", WANDB_SECRET="wandb-key", TIMEOUT_HOURS="3"
    )
    assert [pool.replica_count for pool in job.worker_pool_specs] == [1, 3]
    for pool in job.worker_pool_specs:
        assert pool.machine_spec.machine_type == "g2-standard-24"
        assert pool.machine_spec.accelerator_type == aiplatform_v1.AcceleratorType.NVIDIA_L4
        assert pool.machine_spec.accelerator_count == 2
        assert pool.container_spec.image_uri == IMAGE
        variables = {variable.name: variable.value for variable in pool.container_spec.env}
        assert variables["WANDB_API_KEY_SECRET"] == "projects/my-project/secrets/wandb-key/versions/latest"
        assert "WANDB_API_KEY" not in variables
    assert job.scheduling.strategy == aiplatform_v1.Scheduling.Strategy.SPOT
    assert job.scheduling.restart_job_on_worker_restart and job.scheduling.timeout.seconds == 3 * 3600
    assert job.service_account == SETTINGS["SERVICE_ACCOUNT"]


def test_without_spot_without_gpu_and_on_a_tpu():
    plain = parse(SPOT="false", ACCELERATOR_TYPE="", MACHINE_TYPE="n2-standard-8")
    assert plain.scheduling.strategy == aiplatform_v1.Scheduling.Strategy.STANDARD
    (pool,) = plain.worker_pool_specs
    assert (pool.machine_spec.accelerator_count, pool.replica_count) == (0, 1)
    (pool,) = parse(TPU_MACHINE_TYPE="ct5lp-hightpu-4t", TPU_TOPOLOGY="2x2").worker_pool_specs
    assert (pool.machine_spec.tpu_topology, pool.machine_spec.accelerator_count) == ("2x2", 0)


def test_a_field_that_vertex_ai_does_not_know_is_seen():
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict({"workerPools": []}, aiplatform_v1.CustomJobSpec()._pb)
    with pytest.raises(json_format.ParseError):
        parse(MACHINE_TYPE="n1-standard-8", ACCELERATOR_TYPE="NVIDIA_L5")


def test_a_key_is_never_taken_for_a_name():
    with pytest.raises(ValueError, match="WANDB_SECRET: found 'a key', expected the name of a secret"):
        custom_job_spec(SETTINGS | {"WANDB_SECRET": "a key"})


# -- what gcloud and the image are -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gcloud_tree():
    """The commands of the installed gcloud with their flags, from what its completion in the shell is made of."""
    found = shutil.which("gcloud") or ""
    path = Path(found).resolve().parent.parent / "data" / "cli" / "gcloud_completions.py"
    if not (found and path.exists()):
        pytest.skip("gcloud is not installed: it cannot be asked for its commands and flags")
    return runpy.run_path(str(path))["STATIC_COMPLETION_CLI_TREE"]


def unknown_to_gcloud(words: list[str], tree: dict) -> list[str]:
    """What gcloud does not know of a command's words: the one that is no command, or flags."""
    node = tree
    while node["commands"]:
        name, *words = words
        if name not in node["commands"]:
            return [name]
        node = node["commands"][name]
    return [word for word in flags(words) if word.split("=")[0] not in node["flags"] | tree["flags"]]


def test_gcloud_knows_what_make_calls(make, gcloud_tree):
    calls = [
        words
        for target in ("create-bucket", "cloud-train", "cloud-logs")
        for program, *words in make(target)[1]
        if program == "gcloud"
    ]
    assert len(calls) == 6
    assert [unknown_to_gcloud(words, gcloud_tree) for words in calls] == [[]] * 6


def test_gcloud_knows_what_is_written(gcloud_tree):
    paths = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "Dockerfile", *(ROOT / "cloud").glob("*.py")]
    text = "\n".join(path.read_text() for path in paths).replace("\\\n", " ")
    calls = [shlex.split(words) for words in re.findall(r"\bgcloud ([a-z][^`&|#\n]*)", text)]
    assert len(calls) >= 11
    assert {tuple(words): unknown_to_gcloud(words, gcloud_tree) for words in calls} == {tuple(w): [] for w in calls}


def test_what_gcloud_does_not_know_is_seen(gcloud_tree):
    assert unknown_to_gcloud(["storage", "bucket", "create", "gs://a"], gcloud_tree) == ["bucket"]
    assert unknown_to_gcloud(["storage", "buckets", "create", "gs://a", "--publik", "--quiet"], gcloud_tree) == [
        "--publik"
    ]


def test_the_image_holds_code_and_nothing_else():
    """All of it, too: whatever of the folders is in the repository, but for what only `make` runs."""
    first, *lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    allowed = [line[1:] for line in lines if line.startswith("!")]
    never = [line.removeprefix("**/") for line in lines if not line.startswith("!")]
    assert first == "*" and lines == [f"!{line}" for line in allowed] + [f"**/{name}" for name in never]
    found = {
        path.relative_to(ROOT)
        for line in allowed
        for path in (ROOT / line).rglob("*")
        if (ROOT / line).is_dir() and path.is_file()
    } | {path.relative_to(ROOT) for line in allowed for path in ROOT.glob(line) if path.is_file()}
    found = {str(path) for path in found if not any(fnmatch(part, name) for part in path.parts for name in never)}
    assert {Path(path).suffix for path in found if path.startswith("multitask/")} == {".py", ".jinja"}
    copied = re.findall(r"^COPY (\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    tracked = subprocess.run(["git", "ls-files", *copied], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found == set(tracked.stdout.split()) - {"cloud/check_image.sh"}
    assert ".env\n" in (ROOT / ".gitignore").read_text()


def test_the_image_runs_the_entry_point_as_nobody_special():
    text = (ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["python", "-m", "cloud.entrypoint"]' in text  # no shell between it and the signals
    assert re.findall(r"^USER (.*)", text, re.M) == ["10001"]
    extra = re.search(r'EXTRA="(.*)"', text)[1]
    assert extra in (ROOT / "requirements-dev.txt").read_text()
