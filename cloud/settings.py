"""Settings of the cloud make targets, read from the environment and checked before anything is started.

Uses only Python's standard library.

    python -m cloud.settings PROJECT REGION      # silent if they are set and valid
"""

import os
import re
import sys
from collections.abc import Mapping

# Regular expression and description of each setting's valid values.
PATTERNS = {
    "PROJECT": (r"[a-z][a-z0-9-]{4,28}[a-z0-9]", "a project id: 6 to 30 lower-case letters, digits and '-'"),
    "REGION": (r"[a-z]+-[a-z]+\d+", "a region such as europe-west4"),
    "BUCKET": (
        r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]",
        "a bucket's name without gs://, in lower case",
    ),
    "REPOSITORY": (
        r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?",
        "a repository of Artifact Registry, in lower case",
    ),
    "TAG": (r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", "an image tag: letters, digits, '_', '.' and '-', 128 at most"),
    "JOB_NAME": (r"[a-z0-9][a-z0-9_-]{0,62}", "a name of lower-case letters, digits, '_' and '-'"),
    "MACHINE_TYPE": (r"[a-z0-9]+-[a-z0-9-]+", "a machine type such as g2-standard-8"),
    "TPU_MACHINE_TYPE": (r"ct[a-z0-9]+-[a-z0-9-]+", "a TPU's machine type such as ct5lp-hightpu-4t"),
    "TPU_MACHINE": (r"ct[a-z0-9]+-[a-z0-9-]+", "a TPU's machine type such as ct5lp-hightpu-4t"),
    "TPU_TOPOLOGY": (r"\d+x\d+(x\d+)?", "a topology such as 2x2"),
    "ACCELERATOR_TYPE": (r"(NVIDIA|TPU)_[A-Z0-9_]+", "a name of Vertex AI's such as NVIDIA_L4"),
    "ACCELERATOR_COUNT": (r"[1-9]\d*", "a number from 1 up"),
    "REPLICAS": (r"[1-9]\d*", "a number of machines from 1 up"),
    "SPOT": (r"true|false", "true or false"),
    "TIMEOUT_HOURS": (r"[1-9]\d*", "a number from 1 up"),
    "SERVICE_ACCOUNT": (r"[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com", "NAME@PROJECT.iam.gserviceaccount.com"),
    "WANDB_SECRET": (r"[A-Za-z0-9_-]{1,255}", "the name of a secret in Secret Manager, never the key itself"),
    "HF_SECRET": (r"[A-Za-z0-9_-]{1,255}", "the name of a secret in Secret Manager, never the token itself"),
    "BASE_IMAGE": (
        r"([a-z0-9][\w./:-]*(@sha256:[0-9a-f]{64})?)?",
        "an image's NAME:TAG, or NAME@sha256:DIGEST, which no one can change",
    ),
    "INDEX": (r"(https?://[^\s@'\"]+)?", "an address without a password, which would stay in the image's history"),
    "CONFIG": (r"configs/[\w./-]+\.yaml", "a mixture that is in the image, such as configs/quickstart.yaml"),
}


PLACEHOLDER = "your-project-id"  # in .env.example


def setting(environment: Mapping[str, str], name: str, default: str = "") -> str:
    """Returns a setting's value or its default.

    Raises:
        ValueError: if the setting is missing and has no default, or is invalid.
    """
    value = environment.get(name) or default
    pattern, what = PATTERNS[name]
    if value == PLACEHOLDER:
        raise ValueError(f"{name}: '{value}' is the example's; set your own in .env or on the command line: {what}")
    if re.fullmatch(pattern, value):
        return value
    if not value:
        raise ValueError(f"{name} is missing; set it in .env (made from .env.example) or on the command line: {what}")
    raise ValueError(f"{name}: found '{value}', expected {what}")


if __name__ == "__main__":
    try:
        for name in sys.argv[1:]:
            setting(os.environ, name)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
