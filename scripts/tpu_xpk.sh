#!/usr/bin/env bash
# A workload on a GKE cluster of TPUs, by xpk:
#   CLUSTER=pods ZONE=us-east5-a TYPE=v5p-128 CHIPS=64 IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/jaxstab \
#     scripts/tpu_xpk.sh wesar-13b /mnt/share/runs/wesar-13b --config=configs/wesar.py:size=13b
# The cluster has the storage of the workdir attached (xpk storage attach --type=gcpfilestore). The image is made by
#   docker build -f scripts/Dockerfile --build-arg EXTRA=tpu -t $IMAGE . && docker push $IMAGE
# SLICES=2 has a replica in each of two slices. DRY_RUN=1 prints the command.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/run.sh
: "${CLUSTER:?}" "${ZONE:?}" "${TYPE:?the kind of slice, as v5p-128}" "${CHIPS:?chips of all slices}" "${IMAGE:?}"
name=$1 workdir=$2
shift 2
mesh="--config.mesh.replica=${SLICES:=1} --config.mesh.fsdp=$((CHIPS / SLICES))"
command="python main.py --workdir=$workdir$(printf ' %q' "$@") $mesh"
run xpk workload create --workload="$name" --cluster="$CLUSTER" --zone="$ZONE" --tpu-type="$TYPE" \
  --num-slices="$SLICES" --docker-image="$IMAGE" --max-restarts=10 --command="$command"
