"""A layer run again in the backward pass: gradients and updates of one that stores."""

import keras
import numpy as np
import tensorflow as tf
from chains import Counted
from helpers import assert_close, values

from resnet.reversible import recompute


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
