#!/usr/bin/env bash
# Builds the image without a Docker engine and runs the quick start in it: `make docker-check`, as root on Debian, after
#   apt-get install buildah debootstrap
# BUILDAH_ARGS are passed to the build and BUILDAH_RUN_ARGS to the run, for a machine whose pip needs more than PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! buildah inspect --type image multitask-base >/dev/null 2>&1; then
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$work/root" >"$work/log" ||
        { cat "$work/log"; exit 1; }
    base=$(buildah from scratch)
    buildah add --quiet "$base" "$work/root" / >/dev/null
    buildah commit --quiet --rm "$base" multitask-base >/dev/null
fi
# shellcheck disable=SC2086
buildah bud --build-arg BASE_IMAGE=localhost/multitask-base ${BUILDAH_ARGS:-} --tag multitask-check .

# What must not be in it, and who it runs as.
container=$(buildah from multitask-check)
trap 'buildah rm "$container" >/dev/null; rm -rf "$work"' EXIT
buildah run "$container" -- bash -c 'ls -A /app; test "$(id -u)" != 0
    ! find /app -name ".env*" -o -name ".git*" -o -name "*.json" -o -name "tests" | grep .'
# shellcheck disable=SC2086
buildah run --env HF_HUB_OFFLINE=1 ${BUILDAH_RUN_ARGS:-} "$container" -- \
    python -m cloud.entrypoint --config configs/quickstart.yaml ${ARGS:-}
buildah run "$container" -- ls runs/quickstart/export
echo "the image builds, and the quick start runs in it"
