#!/usr/bin/env bash
# Installs the wheel of a clean checkout into an empty environment, and runs its commands there, in an empty folder.
# Takes the commit that is checked out: what is not committed is not in it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export TF_CPP_MIN_LOG_LEVEL=2 PIP_DISABLE_PIP_VERSION_CHECK=1
unset VIRTUAL_ENV PYTHONPATH

git clone --quiet "$root" "$folder/clone"
python3 -m venv "$folder/env"
PATH="$folder/env/bin:$PATH"
pip wheel --quiet --no-deps --wheel-dir "$folder" "$folder/clone"
pip install --quiet "$folder"/revnet-*.whl
mkdir "$folder/empty"
cd "$folder/empty"
python -c "
import importlib.metadata, pathlib, resnet
assert resnet.__version__ == importlib.metadata.version('revnet'), resnet.__version__
assert (pathlib.Path(resnet.__file__).parent / 'py.typed').is_file()
"

revnet-cifar-train --dataset digits --model revnet-38 --override batch_size=10 --max_num_steps 2 --id a
revnet-export-checkpoint --id a --results results/cifar --format tf1 --output exported
revnet-import-checkpoint --checkpoint exported/tf1 --config exported/conf.json --results results/cifar --id b

revnet-export-checkpoint --id a --results results/cifar --output served --tflite
python -c 'import tensorflow as tf; tf.io.write_file("picture.png", tf.io.encode_png(tf.zeros([40, 50, 3], tf.uint8)))'
revnet-classify --export served picture.png | grep "^picture.png$"
revnet-classify --id b --csv picture.png | grep "^picture.png,5,"

# Help names all flags, and every other command says what it needs.
(revnet-cifar-train --help || true) >help
grep --quiet -- "--dataset" help
grep --quiet -- "--\[no\]restore" help
fails_with() {
  local message=$1
  shift
  if "$@" 2>error; then
    echo "$1 must fail" >&2
    exit 1
  fi
  tail -n 1 error | grep "^$1: error: " | grep --fixed-strings -- "$message" || { cat error >&2 && exit 1; }
}
fails_with "--train_dir or --validation_dir" revnet-build-imagenet-records --output_dir records
fails_with "unknown model 'revnet-111'" revnet-gradient-angles --model revnet-111
fails_with "value should be one of <cifar-10|cifar-100|fashion-mnist>" revnet-prepare-data --dataset mnist
fails_with "no ImageNet in nowhere" revnet-imagenet-train --num_gpu 0 --data_dir nowhere
fails_with "no experiment c in" revnet-imagenet-eval --id c
fails_with "pip install matplotlib" revnet-benchmark
fails_with "pip install matplotlib" revnet-plot-curves a
pip install --quiet "$(echo "$folder"/revnet-*.whl)[plot]"
revnet-plot-curves a
[ -s curves.png ]
echo "The wheel works."
