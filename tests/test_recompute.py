"""A layer run again in the backward pass: gradients and updates of one that stores."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, make_model, values
from test_reversible import Counted, ancestors, gradients_of, producer

from resnet.models import ReversibleChain, recompute
from resnet.models.layers import BatchNorm
from resnet.models.pure_function import PureFunction, keep, kept
from resnet.models.recompute import rerun
from resnet.models.residual import ResidualFunction


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


class Kept(keras.layers.Layer):
  """w * x * cosh(what the first run kept): in the second run the last factor takes nothing but that."""

  def build(self, input_shape):
    self.weight = self.add_weight(shape=(), initializer="ones")

  def call(self, x, training=False):
    y = kept()
    if y is None:
      y = tf.stop_gradient(tf.tanh(x))
      keep(y)
    return self.weight * x * tf.cosh(y)


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


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("keep_outputs", [False, True])
def test_a_convolution_whose_output_is_kept_is_not_computed_again(bottleneck, keep_outputs):
  layer = ResidualFunction(8, stride=2, bottleneck=bottleneck, dtype="float64")
  layer.build((None, 4, 4, 8))
  layer.keep_outputs = keep_outputs
  random = np.random.RandomState(10)
  x, dy = (tf.constant(random.normal(size=(6, size, size, 8))) for size in (4, 2))
  function = PureFunction(layer, training=True)

  @tf.function
  def run_twice():
    weights, state = function.weights(), function.state()
    with tf.GradientTape() as tape:
      tape.watch((x, weights))
      y, _, outputs = function(weights, state, x)
    return [y, *tape.gradient(y, (x, weights), dy)], rerun(function, weights, state, outputs, x, dy)

  expected, actual = run_twice()
  assert_close(tf.nest.flatten(actual), tf.nest.flatten(expected), 1e-12)
  kinds = [op.type for op in run_twice.get_concrete_function().graph.get_operations()]
  assert kinds.count("Conv2D") == (1 if keep_outputs else 2) * len(layer.subs)


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


@pytest.mark.parametrize(("chain", "keeping"), [("unrolled", 4), ("while_loop", 0)])
def test_the_last_units_keep_the_outputs_of_their_convolutions(chain, keeping):
  model = make_model("revnet-test", num_residual_units=(5, 6), chain=chain)
  keep_outputs = [[unit.f.keep_outputs and unit.g.keep_outputs for unit in stage] for stage in model.stages]
  assert keep_outputs == [5 * [False], (6 - keeping) * [False] + keeping * [True]]
