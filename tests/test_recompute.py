"""A layer run again in the backward pass: gradients and updates of one that stores."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, values
from test_reversible import Counted, gradients_of

from resnet.models import ReversibleChain, recompute
from resnet.models.layers import BatchNorm
from resnet.models.pure_function import PureFunction, keep, kept
from resnet.models.recompute import rerun


class Scaled(keras.layers.Layer):
  """The sine of x scaled by column, then by row. The scales are computed in the first run only."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.computed = 0

  def build(self, input_shape):
    self.weight = self.add_weight(shape=(), initializer="ones")

  def call(self, x, training=False):
    for axis in (0, 1):
      scale = kept()
      if scale is None:
        scale = tf.stop_gradient(tf.tanh(tf.reduce_max(x, axis, keepdims=True)))
        self.computed += 1
        keep(scale)
      x = tf.sin(self.weight * x * scale)
    return x


def test_recompute_agrees_with_ordinary_backprop_and_keeps_one_update():
  layer = Counted(4)
  keras.utils.set_random_seed(5)
  layer.build((None, 3))
  x = tf.constant(np.random.RandomState(6).normal(size=(6, 3)), tf.float32)
  state = values(layer.non_trainable_variables)
  results = []
  for run in (lambda x: recompute(layer, x, training=True), lambda x: layer(x, training=True)):
    for variable, value in zip(layer.non_trainable_variables, state, strict=True):
      variable.assign(value)
    with tf.GradientTape() as tape:
      tape.watch(x)
      loss = tf.reduce_sum(run(x) ** 3)
    gradients = tape.gradient(loss, [x, *layer.trainable_variables])
    results.append(([loss], gradients, values(layer.non_trainable_variables)))
  for actual, expected in zip(*results, strict=True):
    assert_close(actual, expected, 1e-6)


@pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_a_second_run_gets_what_the_first_one_kept(run):
  chain = ReversibleChain([(Scaled(dtype="float64"), Scaled(dtype="float64")) for _ in range(2)])
  chain.build([(None, 3), (None, 3)])
  streams = tuple(tf.constant(np.random.RandomState(seed).normal(size=(3, 3))) for seed in (7, 8))
  actual = gradients_of(chain, streams, [], run)
  assert [layer.computed for layer in chain.functions] == 4 * [2]
  chain.manual_gradients = False
  expected = gradients_of(chain, streams, [], run)
  for one, other in zip(actual, expected, strict=True):
    assert_close(one, other, 1e-12)


def test_batch_norm_runs_again_by_the_statistics_of_its_first_run():
  random = np.random.RandomState(9)
  layer = BatchNorm()
  layer.build((None, 4, 4, 3))
  for weight in (layer.gamma, layer.beta):
    weight.assign(random.uniform(1, 2, size=3))
  x = tf.constant(random.normal(5, 3, size=(6, 4, 4, 3)), tf.float32)
  dy = tf.constant(random.normal(size=x.shape), tf.float32)
  function = PureFunction(layer, training=True)
  weights, state = function.weights(), function.state()
  with tf.GradientTape() as tape:
    tape.watch((x, weights))
    y, _, statistics = function(weights, state, x)
  assert {tensor.shape for tensor in tf.nest.flatten(statistics)} == {(3,)}
  expected = tf.nest.flatten([y, tape.gradient(y, (x, weights), dy)])
  actual = tf.nest.flatten(rerun(function, weights, state, statistics, x, dy))
  assert_close(actual, expected, 1e-6)
  moved, *_ = rerun(function, weights, state, statistics, x + 1, dy)
  slope = layer.gamma / np.sqrt(np.var(x, axis=(0, 1, 2)) + 1e-3)
  assert_close([moved], [y + slope], 1e-6)
