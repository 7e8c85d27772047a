#!/usr/bin/env bash
# Builds the image without a Docker engine and tests it: `make docker-check`, as root on Debian, after
#   apt-get install buildah debootstrap
# BUILDAH_ARGS are passed to the build, e.g. if pip needs another index than PyPI; ARGS are passed to the training.
set -euo pipefail
cd "$(dirname "$0")/.."
export BUILDAH_ISOLATION=chroot
work=$(mktemp -d)
container=
trap 'rm -rf "$work"; [ -z "$container" ] || buildah rm "$container" >/dev/null' EXIT
fail() { echo "error: $*" >&2; exit 1; }

if ! buildah inspect --type image multitask-base >/dev/null 2>&1; then
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$work/root" >"$work/log" ||
        { cat "$work/log"; exit 1; }
    base=$(buildah from scratch)
    buildah add --quiet "$base" "$work/root" / >/dev/null
    buildah commit --quiet --rm "$base" multitask-base >/dev/null
    rm -rf "$work/root"
fi
# shellcheck disable=SC2086
buildah bud --format docker --build-arg BASE_IMAGE=localhost/multitask-base ${BUILDAH_ARGS:-} --tag multitask-check .
container=$(buildah from multitask-check)
root=$(buildah mount "$container")

echo "-- what is in it: the repository's code, and nothing of who built it"
git ls-files run_multitask.py 'multitask/*' 'cloud/*.py' accelerate_configs configs quickstart/data | sort >"$work/wanted"
(cd "$root/app" && find . ! -type d -printf '%P\n' | sort) >"$work/found"
diff "$work/wanted" "$work/found" || fail "/app holds other files than the repository (<) has for it"
wc -l <"$work/found"
left=$(cd "$root" && find root home tmp ! -type d ! -name '.bash*' ! -name .profile ! -path tmp/requirements.txt)
[ -z "$left" ] || fail "left behind by the build: $left"
names=$(buildah inspect --format '{{range .OCIv1.Config.Env}}{{.}}{{"\n"}}{{end}}' multitask-check | cut -d= -f1 | sort | xargs)
[ "$names" = "PATH PYTHONDONTWRITEBYTECODE PYTHONUNBUFFERED WANDB_SILENT" ] || fail "its environment has $names"
user=$(buildah run "$container" -- id -u)
[ "$user" = 10001 ] || fail "it runs as user $user"
du -sh "$root"

# Runs the entry point as an engine does, as process 1 of a PID namespace, without network. `stop` sends it SIGTERM at step 10.
entrypoint=$(buildah inspect --format '{{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}' multitask-check)
train() {
    # shellcheck disable=SC2016,SC2086
    buildah run --user root --cap-add CAP_SYS_ADMIN --env HOME=/home/multitask --env "WHEN=${1:-}" "$container" -- bash -c '
        unshare --net --pid --fork --mount-proc --setgid 10001 --setuid 10001 "$@" &
        while [ "$WHEN" = stop ] && kill -0 $! 2>/dev/null; do
            grep -qs "\"step\": 10," runs/quickstart/metrics.jsonl && kill -TERM "$(xargs <"/proc/$!/task/$!/children")" && break
            sleep 0.1
        done
        wait $!' bash $entrypoint --config configs/quickstart.yaml ${ARGS:-}
}

echo "-- the quick start in it, stopped"
status=0
train stop || status=$?
[ "$status" = 143 ] || fail "SIGTERM to its first process gave the status $status"
compgen -G "$root/app/runs/quickstart/checkpoints/step-*/manifest.json" || fail "SIGTERM saved no checkpoint"

echo "-- started once more"
train | tee "$work/log"
grep -q "going on from" "$work/log" || fail "it began anew"
for task in similarity entailment commonsense; do
    [ -s "$root/app/runs/quickstart/export/$task/model.safetensors" ] || fail "$task was not exported"
done
[ -s "$root/app/runs/quickstart/report/index.html" ] || fail "there is no report"
echo "the image builds; the quick start is stopped, goes on and ends in it"
