"""What the tests of chains and recomputed layers beside plain Keras share."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from resnet.reversible import keep_output

eager_and_graph = pytest.mark.parametrize(
  "run", [lambda f: f, tf.function(autograph=False)], ids=["eager", "graph"]
)
both_forms = pytest.mark.parametrize("loop", [False, True])


def random(*shape, seed=0):
  return tf.constant(np.random.RandomState(seed).normal(size=shape))


def dense(units=4, **kwargs):
  return keras.layers.Dense(units, "tanh", dtype="float64", **kwargs)


def attention():
  return keras.layers.MultiHeadAttention(2, 2, use_bias=False, dtype="float64")


def by_hand(chain, streams, *arguments, **kwargs):
  """y1 = a x1 + F(x2), y2 = a x2 + G(y1): the chain's functions by Keras alone."""
  add = keras.layers.Add(dtype="float64")
  streams = list(streams)
  for k, function in enumerate(chain.functions):
    scale = getattr(chain.couplings[k], "a", None)
    x = streams[k % 2] if scale is None else scale * streams[k % 2]
    streams[k % 2] = add([x, function(streams[1 - k % 2], *arguments, **kwargs)])
  return streams


def gradients(call, sources, variables=()):
  """Those of a function of two streams for the sources, and for variables."""
  with tf.GradientTape() as tape:
    tape.watch(sources)
    y1, y2 = call()
    loss = tf.reduce_sum(tf.sin(y1)) + tf.reduce_sum(y2**3)
  return tape.gradient(
    loss, [*sources, *[variable.value for variable in variables]], unconnected_gradients="zero"
  )


class Cross(keras.layers.Layer):
  """Attention to what a call hands over."""

  def build(self, input_shape):
    self.w = self.add_weight(shape=(4, 4))

  def call(self, x, key, value):
    return tf.nn.softmax((x @ self.w) @ tf.transpose(key, [0, 2, 1])) @ value


class Conditioned(keras.layers.Layer):
  """tanh(x w + time), whose output may be kept."""

  def __init__(self):
    super().__init__(dtype="float64")
    self.inner = dense()

  def build(self, input_shape):
    self.inner.build(input_shape)

  def call(self, x, time):
    return tf.tanh(keep_output(self.inner, x) + time)
