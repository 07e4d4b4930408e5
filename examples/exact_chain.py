"""Exact mode: a chain that is undone to the last bit, at any depth and in half precision.

PYTHONPATH=. python examples/exact_chain.py --units 200

Units of batch norm, ReLU and a 3x3 convolution, 16 channels, with and without a grid of 2 ** -14. For each
dtype, unrolled and in a loop, it prints the share of entries of the input that are rebuilt, the angle between
manual and ordinary gradients in degrees (median over the variables, and the largest), and the share of
variables whose gradients are equal in every bit.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import functools

import keras
import numpy as np
import tensorflow as tf

from resnet.models.layers import PreactivatedConv
from resnet.reversible import Rebuild, ReversibleChain, ordinary_backprop
from resnet.reversible.plain import on_grid
from resnet.tools.gradient_angles import angle

FILTERS = 16


@keras.saving.register_keras_serializable("examples")
class Function(PreactivatedConv):
  """Batch norm, ReLU, convolution."""

  def get_config(self):
    return {"dtype": self.dtype_policy.name}


def measure(units: int, dtype: str, loop: bool, grid_bits: int | None) -> tuple[float, float, float, float]:
  """(share of entries rebuilt, median and largest angle, share of gradients that are equal)."""
  keras.utils.set_random_seed(0)
  functions = [[Function(1, FILTERS, 3, dtype=dtype) for _ in "FG"] for _ in range(units)]
  chain = ReversibleChain(functions, backward=Rebuild(loop=loop), grid_bits=grid_bits)
  streams = tuple(tf.random.stateless_normal([4, 8, 8, FILTERS], [seed, 0]) for seed in (1, 2))
  chain.build([(None, 8, 8, FILTERS)] * 2)

  def gradients(x1, x2):
    with tf.GradientTape() as tape:
      tape.watch((x1, x2))
      y1, y2 = chain((x1, x2), training=True)
      loss = tf.reduce_mean(y1**2) + tf.reduce_mean(tf.sin(y2))
    return (y1, y2), tape.gradient(loss, [x1, x2, *chain.trainable_variables])

  state = [variable.numpy() for variable in chain.non_trainable_variables]
  outputs, manual = tf.function(gradients)(*streams)
  rebuilt = tf.function(functools.partial(chain.inverse, training=True))(outputs)
  for variable, value in zip(chain.non_trainable_variables, state, strict=True):
    variable.assign(value)
  with ordinary_backprop():
    _, ordinary = tf.function(gradients)(*streams)
  true = [on_grid(stream, grid_bits) for stream in streams]
  same = np.mean([np.mean(np.equal(a, b)) for a, b in zip(rebuilt, true, strict=True)])
  pairs = [(np.float64(a), np.float64(b)) for a, b in zip(manual, ordinary, strict=True)]
  degrees = [angle(a, b) for a, b in pairs]
  equal = np.mean([np.array_equal(a, b) for a, b in pairs])
  return float(same), float(np.median(degrees)), max(degrees), float(equal)


def main(units: int) -> None:
  tf.config.experimental.enable_op_determinism()
  for dtype in ("float32", "mixed_bfloat16"):
    for grid_bits in (None, 14):
      for loop in (False, True):
        same, median, largest, equal = measure(units, dtype, loop, grid_bits)
        print(
          f"{units} units, {dtype}, loop={loop}, grid_bits {grid_bits}: rebuilt {100 * same:.2f} %, "
          f"angle {median:.2g} ({largest:.2g}), gradients equal {100 * equal:.1f} %",
          flush=True,
        )


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--units", type=int, default=200)
  main(parser.parse_args().units)
