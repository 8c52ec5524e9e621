#!/usr/bin/env bash
# Trains one network on the GPUs of this host, or of many under SLURM (docs/gpu.md).
#
#   experiments/gpu.sh [--dry-run] CONFIG [OPTIONS of experiments.run ...]
#
# With NODES and GPUS (per node) in the environment, srun starts one process per GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

dry=
if [[ ${1:-} == --dry-run ]]; then dry=1; shift; fi
if (($# == 0)) || [[ $1 == -* ]]; then
  echo "usage: gpu.sh [--dry-run] CONFIG [OPTIONS]" >&2
  exit 2
fi

command=("${PYTHON:-python}" -m experiments.run "$@")
if [[ ${NODES:-} ]]; then
  command=(srun "--nodes=$NODES" "--gpus-per-node=${GPUS:-8}"
    "--ntasks-per-node=${GPUS:-8}" "${command[@]}" --parallel.distributed)
fi

printf '%q ' "${command[@]}"
echo
if [[ ! $dry ]]; then exec "${command[@]}"; fi
