#!/usr/bin/env bash
# Trains one network on a TPU VM, or on all hosts of a pod slice (docs/tpu.md).
#
#   experiments/tpu.sh [--dry-run] STEP NAME [CONFIG [OPTIONS of experiments.run ...]]
#
# STEP is create, install (the committed source, on every host), data, run or delete.
# ZONE, TYPE, VERSION and DATASET in the environment choose the machine and the data.
set -euo pipefail
cd "$(dirname "$0")/.."

dry=
if [[ ${1:-} == --dry-run ]]; then dry=1; shift; fi
if (($# < 2)); then
  echo "usage: tpu.sh [--dry-run] create|install|data|run|delete NAME [CONFIG ...]" >&2
  exit 2
fi
step=$1 name=$2
shift 2
zone=${ZONE:-us-central2-b}

do_() { # Prints a command and, without --dry-run, runs it.
  printf '%q ' "$@"
  echo
  if [[ ! $dry ]]; then "$@"; fi
}
tpu() { do_ gcloud compute tpus tpu-vm "$1" "${@:2}" --zone="$zone"; }
everywhere() { tpu ssh "$name" --worker=all --command="$1"; }

case $step in
  create)
    tpu create "$name" --accelerator-type="${TYPE:-v4-8}" \
      --version="${VERSION:-tpu-ubuntu2204-base}"
    ;;
  install)
    do_ git archive --prefix=jaxprune/ --output=/tmp/jaxprune.tar.gz HEAD
    tpu scp /tmp/jaxprune.tar.gz "$name:/tmp/" --worker=all
    everywhere "tar xzf /tmp/jaxprune.tar.gz && python3 -m pip install --user uv && \
cd jaxprune && python3 -m uv venv --clear --python=3.11 && \
python3 -m uv pip install 'jax[tpu]' -e '.[experiments,tensorboard]'"
    ;;
  data)
    everywhere "cd jaxprune && .venv/bin/tfds build ${DATASET:-cifar10} \
--file_format=array_record --data_dir=\$HOME/tfds"
    ;;
  run)
    (($#)) || { echo "run needs a CONFIG, such as cifar10_mesh" >&2; exit 2; }
    printf -v options '%q ' "$@"
    everywhere "cd jaxprune && .venv/bin/python -m experiments.run \
$options--data.dir=\$HOME/tfds --parallel.distributed"
    ;;
  delete) tpu delete "$name" --quiet ;;
  *)
    echo "no step $step: create, install, data, run or delete" >&2
    exit 2
    ;;
esac
