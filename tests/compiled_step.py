"""Compiles training steps by XLA and prints, as JSON, how many convolutions and bytes they take.

compiled_step.py FOLDER STAGES UNITS: the folder that XLA's flags say to write its reports to, the stages of the
network, and the units of each stage, for instance 4,6 for two networks.
"""

import json
import pathlib
import re
import sys

import tensorflow as tf
from helpers import make_batch, make_model

from resnet.training.step import loss_and_gradients
from resnet.utils.xla import heed_memory_on_a_cpu

heed_memory_on_a_cpu()  # As --jit does.
DUMP, STAGES = pathlib.Path(sys.argv[1]), int(sys.argv[2])
UNITS = [int(units) for units in sys.argv[3].split(",")]
SIZE = 32 if STAGES > 1 else 16  # pixels; the test's network is small, to be compiled soon


def compiled(units, **fields):
  """(convolutions, bytes of temporary memory) of the step of a network, batch 100."""
  network = {
    "num_residual_units": (units,) * STAGES,
    "filters": (8, *(8 * 2**stage for stage in range(STAGES))),
    "strides": (1, *[2] * (STAGES - 1)),
    "height": SIZE,
    "width": SIZE,
  }
  model = make_model("revnet-test", **network, **fields)
  images, labels = make_batch(model, 100)
  step = tf.function(lambda x, y: loss_and_gradients(model, x, y), jit_compile=True)
  before = set(DUMP.glob("*"))
  program = step.experimental_get_compiler_ir(images, labels)(stage="optimized_hlo")
  (assignment,) = (p for p in set(DUMP.glob("*")) - before if p.name.endswith("buffer-assignment.txt"))
  sizes = re.findall(r"allocation \d+: size (\d+), preallocated-temp", assignment.read_text())
  return program.count(" convolution("), sum(map(int, sizes))


MODES = {
  "ordinary": {"manual_gradients": False},
  "unrolled": {"chain": "unrolled", "activation_memory": "least"},
  "while_loop": {"chain": "while_loop"},
}
steps: dict = {mode: {} for mode in MODES}
for units in UNITS:
  for mode, fields in MODES.items():
    steps[mode][units] = compiled(units, **fields)
json.dump(steps, sys.stdout)
