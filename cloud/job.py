"""Prints the CustomJobSpec of a Vertex AI training job as JSON, from the settings in the environment.

python -m cloud.job > job.yaml
gcloud ai custom-jobs create --region=REGION --display-name=NAME --config=job.yaml
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloud.settings import setting

ROOT = Path(__file__).parent.parent
# GPU type by prefix of the machine type, which ends in the number of GPUs, except for L4 (`NUM_L4`).
# https://cloud.google.com/vertex-ai/docs/training/configure-compute
GPUS = {
    "a2-highgpu": "NVIDIA_TESLA_A100",
    "a2-megagpu": "NVIDIA_TESLA_A100",
    "a2-ultragpu": "NVIDIA_A100_80GB",
    "a3-highgpu": "NVIDIA_H100_80GB",
    "a3-megagpu": "NVIDIA_H100_MEGA_80GB",
    "a3-ultragpu": "NVIDIA_H200_141GB",
    "a4-highgpu": "NVIDIA_B200",
    "g2-standard": "NVIDIA_L4",
}
NUM_L4 = {24: 2, 48: 4, 96: 8}


def image(environment: Mapping[str, str]) -> str:
    """The image's name in Artifact Registry."""
    names = (setting(environment, name) for name in ("REGION", "PROJECT", "REPOSITORY", "TAG"))
    return "{}-docker.pkg.dev/{}/{}/multitask:{}".format(*names)


def machine_spec(environment: Mapping[str, str]) -> dict[str, Any]:
    """The MachineSpec of the job; unknown machine types are left for Vertex AI to check.

    Raises:
        ValueError: for a missing or invalid setting, or accelerators that the machine type does not have.
    """
    if environment.get("TPU_MACHINE_TYPE"):
        machine = setting(environment, "TPU_MACHINE_TYPE")
        return {"machineType": machine, "tpuTopology": setting(environment, "TPU_TOPOLOGY")}
    machine = setting(environment, "MACHINE_TYPE")
    kind = setting(environment, "ACCELERATOR_TYPE") if environment.get("ACCELERATOR_TYPE") else ""
    count = int(setting(environment, "ACCELERATOR_COUNT", "1"))
    name = re.fullmatch(r"(\w+-\w+)-(\d+)g?", machine)
    if name and name[1] in GPUS:
        number = int(name[2])
        there = GPUS[name[1]], NUM_L4.get(number, 1) if name[1] == "g2-standard" else number
        comes = f"{machine} comes with {there[1]} {there[0]}"
        if kind != there[0]:
            raise ValueError(f"ACCELERATOR_TYPE: found '{kind}', expected {there[0]}: {comes}")
        if count != there[1]:
            raise ValueError(f"ACCELERATOR_COUNT: found '{count}', expected {there[1]}: {comes}")
    elif kind and re.match("(e2|[cn]2d?|c3|m1)-", machine):
        raise ValueError(f"ACCELERATOR_TYPE: found '{kind}', expected none: {machine} takes no GPUs; n1, g2 and a2 do")
    elif kind and machine.startswith("n1-") and count not in (1, 2, 4, 8):
        raise ValueError(f"ACCELERATOR_COUNT: found '{count}', expected 1, 2, 4 or 8, which {machine} takes")
    return {"machineType": machine} | ({"acceleratorType": kind, "acceleratorCount": count} if kind else {})


def custom_job_spec(environment: Mapping[str, str]) -> dict[str, Any]:
    """The CustomJobSpec, with the field names of Vertex AI's REST interface.

    https://cloud.google.com/vertex-ai/docs/reference/rest/v1/CustomJobSpec

    Raises:
        ValueError: naming a setting that is missing or invalid.
    """
    is_tpu = bool(environment.get("TPU_MACHINE_TYPE"))
    replicas = int(setting(environment, "REPLICAS", "1"))
    config = setting(environment, "CONFIG")
    if not (ROOT / config).is_file():
        raise ValueError(f"CONFIG: there is no {config}")
    try:
        options = shlex.split(environment.get("ARGS", ""))
    except ValueError as error:
        raise ValueError(f"ARGS: {error} in {environment['ARGS']}") from error
    place = f"gs://{setting(environment, 'BUCKET')}/{setting(environment, 'JOB_NAME')}"
    variables = {"PYTHONUNBUFFERED": "1", **({"LAUNCH": "tpu", "PJRT_DEVICE": "TPU"} if is_tpu else {})}
    for name, variable in (("WANDB_SECRET", "WANDB_API_KEY_SECRET"), ("HF_SECRET", "HF_TOKEN_SECRET")):
        if environment.get(name):
            secret = f"projects/{setting(environment, 'PROJECT')}/secrets/{setting(environment, name)}"
            variables[variable] = f"{secret}/versions/latest"
    container = {
        "imageUri": image(environment),
        "args": [
            *("--config", config),
            *("--checkpoints.remote", place),
            *options,
        ],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
    }
    pool = {"machineSpec": machine_spec(environment), "containerSpec": container}
    # Vertex AI requires one machine in the first pool and all others in the second.
    counts = [1, replicas - 1] if replicas > 1 else [1]
    return {
        "workerPoolSpecs": [{**pool, "replicaCount": count} for count in counts],
        "scheduling": {
            "timeout": f"{3600 * int(setting(environment, 'TIMEOUT_HOURS', '24'))}s",
            "restartJobOnWorkerRestart": True,
            "strategy": "SPOT" if setting(environment, "SPOT", "true") == "true" else "STANDARD",
        },
        "serviceAccount": setting(environment, "SERVICE_ACCOUNT"),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(custom_job_spec(os.environ), indent=2))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
