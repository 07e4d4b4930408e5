"""Second runs: what layers keep of the first, and what is refused since it would not be repeated."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import ancestors, gradients_of, producer
from helpers import assert_close

from resnet.reversible import ReversibleChain, replayed


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
  assert [layer.computed for layer in chain.functions] == 4 * [2]
  chain.manual_gradients = False
  expected = gradients_of(chain, streams, [], run)
  for one, other in zip(actual, expected, strict=True):
    assert_close(one, other, 1e-12)


def test_what_is_computed_from_kept_tensors_waits_for_the_gradients_of_later_units():
  chain = ReversibleChain([(Kept(), Kept()) for _ in range(2)])
  chain.build([(None, 3), (None, 3)])

  @tf.function
  def gradients(x1, x2):
    with tf.GradientTape() as tape:
      y1, y2 = chain((x1, x2), training=True)
      loss = tf.reduce_sum(y1**2) + tf.reduce_sum(y2**2)
    return tape.gradient(loss, [function.weight for function in chain.functions])

  graph = gradients.get_concrete_function(tf.ones([2, 3]), tf.ones([2, 3])).graph
  *_, again_of_g, again_of_f = [op for op in graph.get_operations() if op.type == "Cosh"]
  for op in (again_of_g, again_of_f):
    assert {producer(tensor) for tensor in graph.outputs[2:]} <= ancestors(op)
