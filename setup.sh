#!/usr/bin/env bash
# Sets up the project: folders, a virtual environment, packages and, if asked, data. Runs again without harm.
# Change the values here, or give them in the environment: DATA_ROOT=/datasets ./setup.sh

# Where datasets are, or will be. Empty: data/ in this folder.
DATA_ROOT="${DATA_ROOT-}"

# Where training curves go. Empty: logs/public/ in this folder.
LOGS_DIR="${LOGS_DIR-}"

# Where configurations and checkpoints go. Empty: results/ in this folder.
SAVE_DIR="${SAVE_DIR-}"

# 'yes' downloads the dataset.
DOWNLOAD_CIFAR="${DOWNLOAD_CIFAR-no}"
DOWNLOAD_IMAGENET="${DOWNLOAD_IMAGENET-no}"

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
  echo "setup.sh: error: $*" >&2
  exit 1
}

# place LINK TARGET: LINK is a link to TARGET, or a folder of its own where TARGET is empty. What is there stays.
place() {
  local link=$1 target=$2
  if [ -z "$target" ]; then
    [ -d "$link" ] || mkdir -p "$link"
  elif [ -d "$link" ] && [ "$(realpath "$link")" = "$(realpath -m "$target")" ]; then
    :
  elif [ -e "$link" ] && [ ! -L "$link" ]; then
    rmdir "$link" 2>/dev/null || fail "$link has files in it and is not a link to $target; move them first"
    place "$link" "$target"
  else
    mkdir -p "$target" "$(dirname "$link")"
    ln -sfn "$(realpath "$target")" "$link"
  fi
}

for answer in "$DOWNLOAD_CIFAR" "$DOWNLOAD_IMAGENET"; do
  case "$answer" in yes | no) ;; *) fail "DOWNLOAD_CIFAR and DOWNLOAD_IMAGENET are yes or no, got '$answer'" ;; esac
done

place data "$DATA_ROOT"
place logs/public "$LOGS_DIR"
place results "$SAVE_DIR"

if [ -z "${VIRTUAL_ENV-}" ]; then
  if [ ! -x .venv/bin/pip ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or later is needed, got $(python3 --version)"
    python3 -m venv .venv || fail "python3 cannot make a virtual environment (on Debian: apt-get install python3-venv)"
  fi
  # shellcheck disable=SC1091
  . .venv/bin/activate
fi

# TensorFlow's package for this machine: with CUDA, without (half the download), or the only one there is.
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  tensorflow='tensorflow[and-cuda]'
elif [ "$(uname -sm)" = 'Linux x86_64' ]; then
  tensorflow='tensorflow-cpu'
else
  tensorflow='tensorflow'
fi
# matplotlib is for the tools that draw.
sed "s/^tensorflow\([<>=]\)/$tensorflow\1/" requirements.txt |
  pip install --quiet --disable-pip-version-check -r /dev/stdin matplotlib

if [ "$DOWNLOAD_CIFAR" = yes ]; then
  for name in cifar-10 cifar-100; do
    python -m resnet.tools.prepare_data --dataset "$name" --data_dir data
  done
fi
if [ "$DOWNLOAD_IMAGENET" = yes ]; then
  archives=(ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar ILSVRC2012_devkit_t12.tar.gz)
  for labels in LOC_val_solution.csv imagenet_2012_validation_synset_labels.txt; do
    [ ! -e "data/$labels" ] || archives[2]=$labels # The devkit is needed for the validation labels alone.
  done
  for file in "${archives[@]}"; do
    [ -e "data/$file" ] || fail "$file is not in $(realpath data). ImageNet cannot be downloaded without a login: \
register at https://image-net.org, put ${archives[*]} and, if wanted, ILSVRC2012_bbox_train_v2.tar.gz there, and run \
this again"
  done
  boxes=()
  [ ! -e data/ILSVRC2012_bbox_train_v2.tar.gz ] || boxes=(--bounding_boxes data/ILSVRC2012_bbox_train_v2.tar.gz)
  python -m resnet.tools.build_imagenet_records --train_dir "data/${archives[0]}" --validation_dir "data/${archives[1]}" \
    --validation_labels "data/${archives[2]}" --output_dir data/imagenet "${boxes[@]}"
fi

echo "Ready.${VIRTUAL_ENV:+ Activate the environment with: source ${VIRTUAL_ENV#"$PWD"/}/bin/activate}"
