"""The description of a training job for Vertex AI, a CustomJobSpec as JSON, from the settings in the environment.

python -m cloud.job > job.yaml
gcloud ai custom-jobs create --region=REGION --display-name=NAME --config=job.yaml
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from cloud.settings import setting


def image(environment: Mapping[str, str]) -> str:
    """The image's name in Artifact Registry."""
    names = (setting(environment, name) for name in ("REGION", "PROJECT", "REPOSITORY", "TAG"))
    return "{}-docker.pkg.dev/{}/{}/multitask:{}".format(*names)


def custom_job_spec(environment: Mapping[str, str]) -> dict[str, Any]:
    """What Vertex AI is to run, with the names of its REST interface.

    https://cloud.google.com/vertex-ai/docs/reference/rest/v1/CustomJobSpec

    Raises:
        ValueError: for a setting that is missing or cannot be right, naming it.
    """
    is_tpu = bool(environment.get("TPU_MACHINE_TYPE"))
    replicas = int(setting(environment, "REPLICAS", "1"))
    if is_tpu:
        machine: dict[str, Any] = {
            "machineType": setting(environment, "TPU_MACHINE_TYPE"),
            "tpuTopology": setting(environment, "TPU_TOPOLOGY"),
        }
    else:
        machine = {"machineType": setting(environment, "MACHINE_TYPE")}
        if environment.get("ACCELERATOR_TYPE"):
            machine["acceleratorType"] = setting(environment, "ACCELERATOR_TYPE")
            machine["acceleratorCount"] = int(setting(environment, "ACCELERATOR_COUNT", "1"))
    place = f"gs://{setting(environment, 'BUCKET')}/{setting(environment, 'JOB_NAME')}"
    variables = {"PYTHONUNBUFFERED": "1", **({"LAUNCH": "tpu", "PJRT_DEVICE": "TPU"} if is_tpu else {})}
    if environment.get("WANDB_SECRET"):
        secret = f"projects/{setting(environment, 'PROJECT')}/secrets/{setting(environment, 'WANDB_SECRET')}"
        variables["WANDB_API_KEY_SECRET"] = f"{secret}/versions/latest"
    container = {
        "imageUri": image(environment),
        "args": [
            *("--config", setting(environment, "CONFIG")),
            *("--checkpoints.remote", place),
            *shlex.split(environment.get("ARGS", "")),
        ],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
    }
    pool = {"machineSpec": machine, "containerSpec": container}
    # Vertex AI wants one machine in the first pool, and all others in the second.
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
