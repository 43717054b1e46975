#!/usr/bin/env bash
# ImageNet at 256x256, from an empty machine with one GPU to the report. docs/imagenet.md says what it costs.
#
#   bash docs/imagenet.sh --dry-run   what would be fetched, built and measured; downloads nothing but the packages
#   bash docs/imagenet.sh DATA        everything; after an interruption the same command goes on where it stopped
#
# DATA: the validation set of ILSVRC 2012, unpacked. Variables: MODELS, STEPS, DTYPE, DEVICE, ACCEPT=--accept-licence;
# BENCH_CACHE_DIR, HF_HOME and BENCH_RUNS_DIR move the weights and the results to another disk.
set -euo pipefail

protocol=fair-imagenet-256-v2 reference=imagenet-val-256-adm-crop
models=${MODELS:-ucgm-xl} steps=${STEPS:-1,2,4,40} dtype=${DTYPE:-bfloat16} device=${DEVICE:-auto}
data=${1:?name the folder of the validation set, or --dry-run}

if ! command -v bench > /dev/null; then
  here=$(cd "$(dirname "$0")/.." && pwd)
  python3 -m venv "$here/.venv"
  . "$here/.venv/bin/activate"
  pip install "$here[figures]"
fi

if [ "$data" = --dry-run ]; then
  bench fetch --model "$models" --protocol $protocol --dry-run
  bench run --model "$models" --protocol $protocol --steps "$steps" --dtype "$dtype" --device "$device" --dry-run
  exit
fi

bench fetch --model "$models" --protocol $protocol ${ACCEPT:-}
bench reference build $reference --data "$data" --protocol $protocol --device "$device"
bench run --model "$models" --protocol $protocol --steps "$steps" --dtype "$dtype" --device "$device"
bench leaderboard --protocol $protocol --all
bench report --protocol $protocol
bench report --protocol $protocol --figures "${BENCH_RUNS_DIR:-runs}/figures"
