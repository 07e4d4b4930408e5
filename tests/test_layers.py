"""Layers of the networks: frozen, and in their recomputation, in the backward pass."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import run_ops
from helpers import assert_close, values

from resnet.configs import get_config
from resnet.models import layers
from resnet.models.layers import BatchNorm, conv
from resnet.models.residual import ResidualFunction
from resnet.models.resnet_model import Stem
from resnet.recomputation.stateless import StatelessLayers


def run_twice(layer, keep, x, dy, moved_by=0.0):
  """([y, gradients] of a first run, those of the recomputation on x + moved_by, what was saved)."""
  stateless = StatelessLayers([layer], "layer", keep)
  weights, state = stateless.weights(), stateless.state()
  results, saved = [], None
  for inputs in (x, x + moved_by):
    with tf.GradientTape() as tape:
      tape.watch((inputs, weights))
      with stateless.evaluation(weights, state, saved) as evaluation:
        y = layer(inputs, training=True)
    saved = evaluation.saved
    results.append([y, *tf.nest.flatten(tape.gradient(y, (inputs, weights), dy))])
  return *results, saved


def test_batch_norm_runs_again_by_the_statistics_of_its_first_run():
  random = np.random.RandomState(9)
  layer = BatchNorm()
  layer.build((None, 4, 4, 3))
  for weight in (layer.gamma, layer.beta):
    weight.assign(random.uniform(1, 2, size=3))
  x = tf.constant(random.normal(5, 3, size=(6, 4, 4, 3)), tf.float32)
  dy = tf.constant(random.normal(size=x.shape), tf.float32)
  expected, actual, statistics = run_twice(layer, ["statistics"], x, dy)
  assert {tensor.shape for saved in statistics for tensor in tf.nest.flatten(saved.tensors)} == {(3,)}
  assert_close(actual, expected, 1e-6)
  _, (moved, *_), _ = run_twice(layer, ["statistics"], x, dy, moved_by=1)
  slope = layer.gamma / np.sqrt(np.var(x, axis=(0, 1, 2)) + 1e-3)
  assert_close([moved], [expected[0] + slope], 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-14)])
def test_a_frozen_batch_norm_does_what_that_of_keras_does(dtype, tolerance):
  random = np.random.RandomState(11)
  ours, theirs = (
    BatchNorm(dtype=dtype),
    keras.layers.BatchNormalization(epsilon=1e-3, momentum=0.99, dtype=dtype),
  )
  for layer in (ours, theirs):
    layer.build((None, 4, 4, 3))
  start = [random.uniform(1, 2, size=3) for _ in ours.variables]
  x, dy = (tf.constant(random.normal(5, 3, size=(6, 4, 4, 3)), dtype) for _ in range(2))

  def step(layer, trainable):
    for variable, value in zip(layer.variables, start, strict=True):
      variable.assign(value)
    layer.trainable = trainable
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = layer(x, training=True)
    return [y, *tape.gradient(y, [x, *layer.trainable_variables], dy)], values([layer.moving_mean])

  for trainable in (False, True, False):
    results, moved = step(ours, trainable)
    expected, moved_as = step(theirs, trainable)
    assert_close(results, expected, tolerance)
    assert_close(moved, moved_as, tolerance)
    assert np.allclose(moved, start[2]) != trainable


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("keep", [["statistics"], ["activations"]], ids=str)
def test_a_convolution_whose_output_is_kept_is_not_computed_again(bottleneck, keep):
  layer = ResidualFunction(8, stride=2, bottleneck=bottleneck, dtype="float64")
  layer.build((None, 4, 4, 8))
  random = np.random.RandomState(10)
  x, dy = (tf.constant(random.normal(size=(6, size, size, 8))) for size in (4, 2))
  run = tf.function(lambda: run_twice(layer, keep, x, dy)[:2])
  expected, actual = run()
  assert_close(actual, expected, 1e-12)
  kinds = [op.type for op in run_ops(run.get_concrete_function().graph)]
  last = 1  # Its output is not kept, and only needed again to rebuild a stream.
  assert kinds.count("Conv2D") == len(layer.subs) + (last if keep == ["activations"] else len(layer.subs))


def test_the_stem_pools_as_if_after_its_relu():
  config = dataclasses.replace(get_config("resnet-50"), filters=(6, 8, 8, 8, 8), height=23, width=24)
  keras.utils.set_random_seed(0)
  stem = Stem(config, name="init")
  stem.build((None, 23, 24, 3))
  random = np.random.RandomState(3)
  stem.bn.beta.assign(random.normal(-0.3, 0.5, size=6))  # Windows without a positive value are many.
  # Whole numbers make many equal ones in a window, of which the first has the gradient.
  stem.conv.kernel.assign(random.randint(-1, 2, size=stem.conv.kernel.shape))
  images = tf.constant(random.randint(0, 2, size=(4, 23, 24, 3)), tf.float32)

  def in_the_original_s_order(images):
    x = tf.nn.relu(stem.bn(stem.conv(images), training=True))
    return tf.nn.max_pool2d(x, 3, 2, "SAME")

  results = []
  for function in (lambda images: stem(images, training=True), in_the_original_s_order):
    with tf.GradientTape() as tape:
      y = function(images)
    weights = [v.value for v in stem.trainable_variables]
    dy = tf.constant(np.random.RandomState(4).normal(size=y.shape), tf.float32)
    results.append([y, *tape.gradient(y, weights, dy)])
  assert 0.1 < np.mean(results[0][0].numpy() == 0) < 0.9
  for actual, expected in zip(*results, strict=True):
    np.testing.assert_array_equal(actual, expected)


def _reads_everything(convolution, x):
  graph = tf.function(convolution).get_concrete_function(tf.TensorSpec(x.shape)).graph
  (op,) = (op for op in graph.get_operations() if op.type == "Conv2D")
  return op.inputs[0].shape == x.shape


@pytest.mark.parametrize("size", [6, 7])
def test_a_convolution_of_one_pixel_takes_only_the_pixels_it_needs_on_a_gpu(size, monkeypatch):
  monkeypatch.setattr(layers, "_on_gpu", lambda: True)
  x = tf.constant(np.random.RandomState(5).normal(size=(2, size, size, 3)), tf.float32)
  layer = conv(4, 1, 2, "project", "float32")
  reference = keras.layers.Conv2D(4, 1, 2, padding="same", use_bias=False)
  for convolution in (layer, reference):
    convolution.build(x.shape)
  reference.kernel.assign(layer.kernel)
  results = []
  for convolution in (layer, reference):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = convolution(x)
    assert tuple(y.shape) == convolution.compute_output_shape(x.shape)
    assert (convolution is layer) == (not _reads_everything(convolution, x))
    results.append([y, *tape.gradient(y, [x, convolution.kernel.value], y**2)])
  assert_close(*results, 1e-6)
