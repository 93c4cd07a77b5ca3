#!/usr/bin/env bash
# One machine, all its GPUs, one process:  scripts/node.sh runs/wesar-1.3b --config=configs/wesar.py:size=1.3b
# GPUS=8 says how many there are, if not as nvidia-smi counts.  DRY_RUN=1 prints the command.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/run.sh
workdir=$1
shift
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
run .venv/bin/python main.py --workdir="$workdir" "$@" --config.mesh.fsdp="$gpus"
