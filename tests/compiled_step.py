"""Compiles training steps by XLA and prints, as JSON, how many convolutions and bytes they take.

compiled_step.py FOLDER: the one that XLA's flags say to write its reports to.
"""

import json
import pathlib
import re
import sys

import tensorflow as tf
from helpers import make_batch, make_model

from resnet.training.step import loss_and_gradients

DUMP = pathlib.Path(sys.argv[1])


def compiled(**fields):
  """(convolutions, bytes of temporary memory) of the step of a network of one stage."""
  model = make_model("revnet-test", filters=(8, 8), strides=(1,), height=16, width=16, **fields)
  images, labels = make_batch(model, 100)
  step = tf.function(lambda x, y: loss_and_gradients(model, x, y), jit_compile=True)
  before = set(DUMP.glob("*"))
  program = step.experimental_get_compiler_ir(images, labels)(stage="optimized_hlo")
  (assignment,) = (p for p in set(DUMP.glob("*")) - before if p.name.endswith("buffer-assignment.txt"))
  sizes = re.findall(r"allocation \d+: size (\d+), preallocated-temp", assignment.read_text())
  return program.count(" convolution("), sum(map(int, sizes))


modes = {
  "ordinary": {"manual_gradients": False},
  "unrolled": {"chain": "unrolled"},
  "while_loop": {"chain": "while_loop"},
}
json.dump(
  {
    mode: {units: compiled(num_residual_units=(units,), **fields) for units in (4, 6)}
    for mode, fields in modes.items()
  },
  sys.stdout,
)
