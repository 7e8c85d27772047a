"""Entry point of the container and of `make run-local`: runs `accelerate launch … run_multitask.py` on this machine.

    python -m cloud.entrypoint --config configs/quickstart.yaml

The number of GPUs determines the launch configuration; `LAUNCH=fsdp` or `LAUNCH=tpu` in the environment overrides it.
With several machines, Vertex AI's `CLUSTER_SPEC` gives this one's rank; `WANDB_API_KEY_SECRET` and `HF_TOKEN_SECRET`
name the secrets with W&B's key and the hub's token.

A container is stopped by SIGTERM to its process 1, which is this one and for which the kernel has no default action. A
single training process therefore replaces this process (exec); with several, Accelerate's launcher (torchrun) runs in
it and forwards the signal. Either way the run saves and uploads, and the exit status is 143.
"""

import base64
import json
import os
import re
import signal
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import google.auth
import google.auth.transport.requests
import psutil
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from google.auth.exceptions import GoogleAuthError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from multitask.errors import UserError, hint

ROOT = Path(__file__).parent.parent
# Long enough to save and upload; the service that stops the container has its own time limit.
SHUTDOWN_SECONDS = 3600


class Machines(NamedTuple):
    """This machine's place among several.

    Args:
        rank: rank of this machine, from 0.
        count: number of machines.
        address: address of the machine with rank 0.
        port: port on which that machine listens.
    """

    rank: int = 0
    count: int = 1
    address: str = "127.0.0.1"
    port: str = "29500"


def read_cluster_spec(text: str | None) -> Machines:
    """Parses Vertex AI's description of a job's machines: pool 0 holds the first machine, pool 1 the others.

    https://cloud.google.com/vertex-ai/docs/training/distributed-training#cluster-variables

    Raises:
        UserError: if the text does not have that format.
    """
    if not text:
        return Machines()
    try:
        spec = json.loads(text)
        pools, task = spec["cluster"], spec["task"]
        names = sorted(pools)
        before = sum(len(pools[name]) for name in names[: names.index(task["type"])])
        ranks = range(before, before + len(pools[task["type"]]))
        address, port = re.fullmatch(r"(.+):(\d+)", pools[names[0]][0]).groups()
        return Machines(ranks[int(task["index"])], sum(map(len, pools.values())), address, port)
    except json.JSONDecodeError as error:
        raise UserError(f"CLUSTER_SPEC: not JSON ({error}); found {text[:60]!r}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        wanted = '{"cluster": {"workerpool0": ["HOST:PORT"]}, "task": {"type": "workerpool0", "index": 0}}'
        raise UserError(f"CLUSTER_SPEC: found {text[:200]!r}, expected such as {wanted}") from error


def launch_arguments(machines: Machines, num_gpus: int, launch: str | None, arguments: Sequence[str]) -> list[str]:
    """The arguments of `accelerate launch`.

    Args:
        machines: this machine's place among several.
        num_gpus: number of GPUs of this machine, the same on all machines.
        launch: name of the launch configuration; None chooses by the number of GPUs and machines.
        arguments: arguments of `run_multitask.py`.

    Raises:
        UserError: for an unknown launch configuration, or one whose accelerator is not available.
    """
    chosen = launch or ("multi_node" if machines.count > 1 else ("cpu", "single_gpu", "multi_gpu")[min(num_gpus, 2)])
    known = sorted(path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml"))
    if chosen not in known:
        raise UserError(f"LAUNCH: there is no accelerate_configs/{chosen}.yaml{hint(chosen, known)}")
    if chosen == "tpu" and find_spec("torch_xla") is None:
        raise UserError("LAUNCH: tpu needs torch_xla, which is not installed; make tpu-train builds an image with it")
    if chosen in ("single_gpu", "multi_gpu", "fsdp") and not num_gpus:
        raise UserError(f"LAUNCH: {chosen} needs a GPU, and this machine has none; cpu trains without")
    words = ["--config_file", str(ROOT / "accelerate_configs" / f"{chosen}.yaml")]
    if chosen in ("multi_gpu", "multi_node", "fsdp"):
        words += ["--num_processes", str(max(1, num_gpus) * machines.count), "--num_machines", str(machines.count)]
        words += ["--machine_rank", str(machines.rank)]
        words += ["--main_process_ip", machines.address, "--main_process_port", machines.port]
    if chosen == "multi_node" and not num_gpus:
        words += ["--mixed_precision", "no"]
    return [*words, str(ROOT / "run_multitask.py"), *arguments]


def read_secret(variable: str, name: str, endpoint: str = "https://secretmanager.googleapis.com") -> str:
    """Reads a secret from Google's Secret Manager with the machine's service account.

    https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access

    Args:
        variable: the environment variable that names it, for error messages.
        name: `projects/PROJECT/secrets/NAME/versions/VERSION`.
        endpoint: URL of the service.

    Raises:
        UserError: if the secret does not exist or access is denied.
    """
    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        with google.auth.transport.requests.AuthorizedSession(credentials) as session:
            answer = session.get(f"{endpoint}/v1/{name}:access", timeout=60)
            if not answer.ok:
                raise UserError(
                    f"{variable}: {name} cannot be read ({answer.status_code} {answer.reason}); the service "
                    f"account needs roles/secretmanager.secretAccessor on it"
                )
            return base64.b64decode(answer.json()["payload"]["data"]).decode().strip()
    except (GoogleAuthError, OSError) as error:
        raise UserError(f"{variable}: {name} cannot be read: {error}") from error


def run(args: Namespace) -> int:
    """Runs the launcher in this process; it starts several processes and forwards signals. Returns the exit status."""
    if args.tpu:  # the TPU launcher does not forward signals

        def pass_on(number: int, frame: FrameType | None) -> None:
            for child in psutil.Process().children(recursive=True):
                child.send_signal(number)

        signal.signal(signal.SIGTERM, pass_on)
    try:
        launch_command(args)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        return abs(failed.get_first_failure()[1].exitcode)
    return 0


def main(environment: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Starts the training, by exec or through the launcher; returns the exit status."""
    machines = read_cluster_spec(environment.get("CLUSTER_SPEC"))
    num_gpus = torch.cuda.device_count()
    words = launch_arguments(machines, num_gpus, environment.get("LAUNCH"), arguments)
    for variable in ("WANDB_API_KEY", "HF_TOKEN"):
        if secret := environment.get(f"{variable}_SECRET"):
            os.environ[variable] = read_secret(f"{variable}_SECRET", secret)
    if machines.count > 1 and not num_gpus:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if machines.count == 1 and not num_gpus:  # the launcher would choose the same, and warn
        os.environ.setdefault("OMP_NUM_THREADS", str(psutil.cpu_count(logical=False) or 1))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    args = launch_command_parser().parse_args(words)
    checked, *_ = _validate_launch_command(args)
    if not (checked.multi_gpu or checked.use_fsdp or checked.tpu):
        command, variables = prepare_simple_launcher_cmd_env(checked)
        os.execvpe(command[0], command, variables)
    return run(launch_command_parser().parse_args(words))


if __name__ == "__main__":
    try:
        sys.exit(main(os.environ, sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
