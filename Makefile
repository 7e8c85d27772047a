# `make help` lists the targets.
PYTHON ?= python3
# Mixture, launch configuration and further options of `make run-local`.
CONFIG ?= configs/quickstart.yaml
LAUNCH ?= cpu
ARGS ?=

BIN := .venv/bin

# Settings for Docker and Google Cloud. What is given on the command line comes before it, the environment after it.
-include .env
TAG ?= latest
IMAGE = $(REGION)-docker.pkg.dev/$(PROJECT)/$(REPOSITORY)/multitask:$(TAG)
LOCAL_IMAGE = multitask:$(TAG)
REMOTE = gs://$(BUCKET)/$(JOB_NAME)
export PROJECT REGION BUCKET REPOSITORY SERVICE_ACCOUNT JOB_NAME CONFIG ARGS TAG MACHINE_TYPE ACCELERATOR_TYPE \
	ACCELERATOR_COUNT REPLICAS SPOT TIMEOUT_HOURS TPU_MACHINE TPU_MACHINE_TYPE TPU_TOPOLOGY WANDB_SECRET HF_SECRET BASE_IMAGE INDEX
# Stops, naming it, at a setting that is missing or cannot be right.
check = @$(PYTHON) -m cloud.settings $(1)

.PHONY: help run-local test test-fast test-xla drill quality style quickstart-data baselines dashboard bench bench-gpu \
	docker-build docker-local-train docker-check create-bucket check-bucket cloud-train cloud-logs verify-model tpu-train

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "%-18s %s\n", $$1, $$2}'

.venv/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --use-pep517 -r requirements-dev.txt
	touch $@

.venv-tasknet/.installed: benchmarks/requirements-tasknet.txt
	$(PYTHON) -m venv .venv-tasknet
	.venv-tasknet/bin/pip install --quiet --disable-pip-version-check --use-pep517 -r benchmarks/requirements-tasknet.txt
	touch $@

run-local: .venv/.installed ## Train a mixture on this machine: CONFIG=configs/….yaml LAUNCH=cpu|single_gpu|multi_gpu ARGS="--key value"
	@LAUNCH=$(LAUNCH) $(BIN)/python -m cloud.entrypoint --config $(CONFIG) $(ARGS)

test: .venv/.installed ## Run the tests; those on real data need MULTITASK_DATA_ROOT
	$(BIN)/python -m pytest

test-fast: .venv/.installed ## The tests without whole runs, about a minute
	$(BIN)/python -m pytest -m "not slow"

drill: .venv/.installed ## Kill runs, damage checkpoints and disturb uploads by the hundred, and print the counts
	MULTITASK_DRILL=1 $(BIN)/python -m pytest -m drill

test-xla: .venv-xla/.installed ## Run the tests on XLA, on the CPU: 8 GB of packages in .venv-xla
	PJRT_DEVICE=CPU .venv-xla/bin/python -m pytest -n0 tests/integration/test_xla.py

# PyTorch/XLA is built for a PyTorch of its own.
.venv-xla/.installed: requirements.txt requirements-dev.txt requirements-xla.txt
	$(PYTHON) -m venv .venv-xla
	grep -hvE '^(-r|torch==|hadolint)' requirements.txt requirements-dev.txt | cat - requirements-xla.txt > .venv-xla/requirements.txt
	.venv-xla/bin/pip install --quiet --disable-pip-version-check --use-pep517 -r .venv-xla/requirements.txt
	touch $@

quality: .venv/.installed ## Check format, lint, types, the order of the rooms, and the Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

style: .venv/.installed ## Format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quickstart-data: .venv/.installed ## Write the quick start's data anew from its facts
	$(BIN)/python quickstart/make_data.py

baselines: .venv/.installed ## What a constant and a bag of words reach on the quick start
	$(BIN)/python quickstart/baselines.py

dashboard: .venv/.installed ## Publish the W&B workspace of a mixture: CONFIG=configs/….yaml
	@$(BIN)/python -m dashboards.workspace --config $(CONFIG) $(ARGS)

bench: .venv/.installed .venv-tasknet/.installed ## Measure speed, growth and quality beside the alternatives: hours; ARGS="--only speed"
	$(BIN)/python -m benchmarks.bench $(ARGS)

bench-gpu: .venv/.installed ## The same on GPUs in bf16; skips itself where there is none
	$(BIN)/python -m benchmarks.bench --only gpu --output_dir runs/bench_gpu --page docs/benchmarks_gpu.md $(ARGS)

# -- Docker -----------------------------------------------------------------------------------------------------------

docker-build: ## Build the training image; BASE_IMAGE and INDEX choose between GPU and CPU
	$(call check,TAG BASE_IMAGE INDEX)
	docker build --tag $(LOCAL_IMAGE) $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
		$(if $(INDEX),--build-arg "INDEX=$(INDEX)") $(if $(TORCH),--build-arg "TORCH=$(TORCH)") .

docker-local-train: docker-build ## Train in a container, into runs/docker; on GPUs with DOCKER_ARGS="--gpus all --shm-size 2g"
	mkdir -p runs/docker && chmod a+rwx runs/docker
	docker run --rm --init=false --volume $(CURDIR)/runs/docker:/app/runs $(DOCKER_ARGS) $(LOCAL_IMAGE) --config $(CONFIG) $(ARGS)

docker-check: ## Without Docker, as root on Debian: build the image with buildah and try it
	bash cloud/check_image.sh

# -- Google Cloud -----------------------------------------------------------------------------------------------------

create-bucket: ## Make the bucket for checkpoints and models: uniform access, never public
	$(call check,PROJECT REGION BUCKET)
	gcloud storage buckets create gs://$(BUCKET) --project=$(PROJECT) --location=$(REGION) \
		--uniform-bucket-level-access --public-access-prevention

check-bucket:
	$(call check,PROJECT BUCKET)
	@owner=$$(gcloud storage buckets describe gs://$(BUCKET) --raw --format='value(projectNumber)') \
		|| { echo "error: BUCKET: gs://$(BUCKET) cannot be read, as gcloud says above; make create-bucket makes a new \
	one, under a name that nobody has" >&2; exit 2; }; \
		own=$$(gcloud projects describe $(PROJECT) --format='value(projectNumber)') \
		&& { [ "$$owner" = "$$own" ] || { echo "error: BUCKET: gs://$(BUCKET) belongs to project number $$owner, \
	PROJECT $(PROJECT) is number $$own; bucket names are everyone's, choose another" >&2; exit 2; }; }

cloud-train: ## Build and push the image, and train on Vertex AI
	$(call check,PROJECT REGION BUCKET REPOSITORY TAG JOB_NAME CONFIG SERVICE_ACCOUNT)
	@mkdir -p build
	@$(PYTHON) -m cloud.job > build/job.yaml
	@$(MAKE) --no-print-directory check-bucket docker-build
	docker tag $(LOCAL_IMAGE) $(IMAGE)
	docker push $(IMAGE)
	gcloud ai custom-jobs create --project=$(PROJECT) --region=$(REGION) --display-name=$(JOB_NAME) --config=build/job.yaml

tpu-train: ## The same on a TPU: TPU_MACHINE and TPU_TOPOLOGY
	$(call check,TPU_MACHINE TPU_TOPOLOGY)
	@$(MAKE) --no-print-directory cloud-train TPU_MACHINE_TYPE=$(TPU_MACHINE) TAG=$(TAG)-tpu \
		BASE_IMAGE=python:3.12.12-slim-bookworm TORCH="torch==2.9.0 torch_xla[tpu]==2.9.0"

cloud-logs: ## Follow what the newest job of that name prints
	$(call check,PROJECT REGION JOB_NAME)
	@job=$$(gcloud ai custom-jobs list --project=$(PROJECT) --region=$(REGION) --filter=displayName=$(JOB_NAME) \
		--sort-by=~createTime --limit=1 --format='value(name)') \
		&& { [ "$$job" ] || { echo "error: JOB_NAME: there is no job $(JOB_NAME) in $(PROJECT), $(REGION)" >&2; exit 2; }; } \
		&& gcloud ai custom-jobs stream-logs "$$job" --project=$(PROJECT) --region=$(REGION)

verify-model: .venv/.installed ## Check the bucket's checkpoints against their manifests
	$(call check,BUCKET JOB_NAME)
	$(BIN)/python -m multitask.checkpoint verify $(REMOTE)
