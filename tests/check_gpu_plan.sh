#!/usr/bin/env bash
# What XLA plans for an H100: the chain's memory does not grow with depth, and RevNet-104's has a bound.
# It needs no GPU, but Python 3.12 or later and 1.4 GB for an environment, which goes again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck disable=SC1091
[ -n "${VIRTUAL_ENV-}" ] || . .venv/bin/activate
export PYTHONPATH=$PWD
folder=$(mktemp -d) newest=
trap 'rm -rf "$folder"' EXIT
plan() { python -m resnet.tools.xla_plan --environment "$folder/jax" "$@"; }
# Where pyenv has several, the commands on PATH may be those of another version.
for python in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python; do
  [ ! -x "$python" ] || newest=$python
done
plan --install ${newest:+--python "$newest"}
plan --model revnet-38 --filters 8,8,16,32 --batch 100 --units 3,9,18 --mode unrolled,while_loop \
  --activation_memory least --json "$folder/small.json"
plan --model revnet-38 --filters 8,8,16,32 --batch 100 --units 3 --mode ordinary --json "$folder/ordinary.json"
plan --model revnet-104 --batch 64 --mode unrolled --activation_memory least,auto --json "$folder/104.json"
python - "$folder" << 'END'
import json
import sys

folder = sys.argv[1]


def rows(name):
  with open(f"{folder}/{name}.json") as file:
    return json.load(file)


def require(true, what):
  if not true:
    sys.exit(f"check_gpu_plan: {what}")


small = {(row["mode"], row["units"][0]): row["temporary_bytes"] for row in rows("small")}
(ordinary,) = (row["temporary_bytes"] for row in rows("ordinary"))
for mode in ("unrolled", "while_loop"):
  sizes = [small[mode, units] for units in (9, 18)]
  require(max(sizes) <= 1.1 * min(sizes), f"{mode} grows with depth: {sizes}")
  require(small[mode, 18] < 0.5 * ordinary, f"{mode}, 18 units, {small[mode, 18]}; ordinary, 3 units, {ordinary}")
least, auto = (row["temporary_bytes"] / row["batch"] / 1e6 for row in rows("104"))
require(least <= 28, f"RevNet-104 takes {least:.1f} MB an image with nothing kept, more than 28")
# 1.75 times by the chain's own estimate, which is within 15 %.
require(auto <= 1.15 * 1.75 * least, f"RevNet-104 takes {auto:.1f} MB an image at auto, {least:.1f} at least")
END
