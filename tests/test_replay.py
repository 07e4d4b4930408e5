"""Second runs: what layers keep of the first, and what is refused since it would not be repeated."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import ancestors, gradients_of, producer, traced_gradients
from helpers import assert_close

from resnet.reversible import Rebuild, ReversibleChain, Store, recompute, replayed


class Scaled(keras.layers.Layer):
  """The sine of x scaled by column, then by row. The scales are computed in the first run only."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.computed = 0

  def build(self, input_shape):
    self.weight = self.add_weight(shape=(), initializer="ones")

  def call(self, x, training=False):
    for axis in (0, 1):

      def first(x, axis=axis):
        self.computed += 1
        scale = tf.stop_gradient(tf.tanh(tf.reduce_max(x, axis, keepdims=True)))
        return x * scale, scale

      def again(scale, x):
        return x * scale, lambda dy: dy * scale

      x, _ = replayed(self, first, again, x)
      x = tf.sin(self.weight * x)
    return x


class Kept(keras.layers.Layer):
  """w * x * cosh(what the first run kept): in the second run the last factor takes nothing but that."""

  def build(self, input_shape):
    self.weight = self.add_weight(shape=(), initializer="ones")

  def call(self, x, training=False):
    def first(x):
      y = tf.stop_gradient(tf.tanh(x))
      return x * tf.cosh(y), y

    def again(y, x):
      return x * tf.cosh(y), lambda dy: dy * tf.cosh(y)

    return self.weight * replayed(self, first, again, x)[0]


@pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_a_second_run_gets_what_the_first_one_kept(run):
  chain = ReversibleChain([(Scaled(dtype="float64"), Scaled(dtype="float64")) for _ in range(2)])
  chain.build([(None, 3), (None, 3)])
  for layer in chain.functions:
    layer.computed = 0  # Building runs each once, symbolically.
  streams = tuple(tf.constant(np.random.RandomState(seed).normal(size=(3, 3))) for seed in (7, 8))
  actual = gradients_of(chain, streams, [], run)
  assert [layer.computed for layer in chain.functions] == 4 * [2 + 2]  # In two places, inspected and run.
  chain.backward = Store()
  expected = gradients_of(chain, streams, [], run)
  for one, other in zip(actual, expected, strict=True):
    assert_close(one, other, 1e-12)


def test_what_is_computed_from_kept_tensors_waits_for_the_gradients_of_later_units():
  chain = ReversibleChain([(Kept(), Kept()) for _ in range(2)])
  chain.build([(None, 3), (None, 3)])
  graph, _ = traced_gradients(chain, [tf.ones([2, 3])] * 2)
  *_, again_of_g, again_of_f = [op for op in graph.get_operations() if op.type == "Cosh"]
  for op in (again_of_g, again_of_f):
    assert {producer(tensor) for tensor in graph.outputs[2:]} <= ancestors(op)


class Careless(keras.layers.Layer):
  """Calls `replayed` in its runs, counted from 0, by what `calls` says."""

  def __init__(self, calls, **kwargs):
    super().__init__(dtype="float64", **kwargs)
    self.calls, self.runs = [calls[0], *calls], 0  # The first run is traced before.

  def call(self, x):
    for width in self.calls[self.runs]:
      y, _ = replayed(self, lambda x: (x, ()), lambda _, x, width=width: (x[:, :width], lambda dy: dy), x)
    self.runs += 1
    return y if self.calls[self.runs - 1] else x


@pytest.mark.parametrize(
  ("calls", "message"),
  [
    (
      [[4], [4, 4]],
      "layer 'one' calls `replayed` or `keep_output` as number 1 .* first run's calls were by: one. Both runs",
    ),
    ([[4, 4], [4]], "layer 'one' did not call `replayed` or `keep_output` in the recomputation"),
    ([[4], [3]], "layer 'one': the recomputation gives .5, 3. by `replayed`, the first run gave .5, 4."),
  ],
)
def test_second_runs_that_do_not_fit_name_the_layer(calls, message):
  layer = Careless(calls, name="one")
  layer.build((5, 4))
  x = tf.ones([5, 4], tf.float64)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = recompute(layer, x)
  with pytest.raises(ValueError, match=message):
    tape.gradient(y, x)


@pytest.mark.parametrize(
  ("arguments", "computed"),
  [
    ({}, 2),  # Each layer has two calls.
    ({"backward": Rebuild(loop=True)}, 4),
    ({"grid_bits": 14}, 4),
    ({"backward": Store()}, 2),
  ],
)
def test_a_chain_decides_what_is_kept(arguments, computed):
  chain = ReversibleChain([(Scaled(), Scaled()), (Scaled(), Scaled())], **arguments)
  streams = [tf.random.stateless_normal([3, 3], [seed, 0]) for seed in (1, 2)]
  chain.build([(3, 3), (3, 3)])
  for layer in chain.functions:
    layer.computed = 0
  if chain.backward != Store():
    chain(streams)  # Inspects each function once.
    for layer in chain.functions:
      layer.computed = 0
  with tf.GradientTape() as tape:
    tape.watch(streams)
    y = chain(streams)
  tape.gradient(y, streams)
  assert sum(layer.computed for layer in chain.functions) == 4 * computed  # In a loop unit 0 stands for both.
