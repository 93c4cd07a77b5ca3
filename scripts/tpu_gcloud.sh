#!/usr/bin/env bash
# A slice of TPUs by gcloud: made, set up, and trained on, by the same command on all its hosts.
#   TPU=mine ZONE=us-east5-a TYPE=v5p-128 CHIPS=64 FILESTORE=10.0.0.2:/share \
#     scripts/tpu_gcloud.sh make
#   ... scripts/tpu_gcloud.sh train /mnt/share/runs/wesar-13b --config=configs/wesar.py:size=13b
#   ... scripts/tpu_gcloud.sh stop       (SIGTERM: all hosts save the same step)
#   ... scripts/tpu_gcloud.sh delete
# TYPE counts TensorCores for v4 and v5p (v5p-128 has 64 chips) and chips for v5e and v6e. FILESTORE is an NFS share,
# which all hosts mount at /mnt/share. DRY_RUN=1 prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/run.sh
: "${TPU:?the name of the slice}" "${ZONE:?its zone, as us-east5-a}"
repository=${REPOSITORY:-$(git remote get-url origin 2>/dev/null || echo git@github.com:YOU/jaxstab.git)}

on_all() {
  run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

quoted() {
  printf ' %q' "$@"
}

case ${1:-} in
make)
  : "${TYPE:?the kind of slice, as v5p-128}" "${FILESTORE:?the NFS share, as 10.0.0.2:/share}"
  case $TYPE in
  v5p-*) version=v2-alpha-tpuv5 ;;
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  *) version=tpu-ubuntu2204-base ;;
  esac
  run gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" --accelerator-type="$TYPE" --version="$version"
  on_all "sudo apt-get -q update && sudo apt-get -qy install nfs-common python3.11-venv && sudo mkdir -p /mnt/share && sudo mount $FILESTORE /mnt/share && sudo chmod 777 /mnt/share"
  on_all "git clone $repository jaxstab && cd jaxstab && python3.11 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
  ;;
train)
  : "${CHIPS:?the number of chips}"
  workdir=$2
  shift 2
  on_all "cd jaxstab && .venv/bin/python main.py --workdir=$workdir$(quoted "$@") --config.mesh.fsdp=$CHIPS"
  ;;
stop) on_all "pkill -TERM -f main.py" ;;
delete) run gcloud compute tpus tpu-vm delete "$TPU" --zone="$ZONE" --quiet ;;
*)
  echo "tpu_gcloud.sh takes make, train WORKDIR --config=..., stop or delete, not '${1:-}'" >&2
  exit 1
  ;;
esac
