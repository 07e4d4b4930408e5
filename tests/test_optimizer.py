"""Momentum and the learning rate against numbers worked out by hand."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from resnet.configs import get_config
from resnet.training.lr_schedule import learning_rate_schedule
from resnet.training.optimizer import Momentum


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_momentum_by_hand(wrap):
  weight = keras.Variable([1.0, 2.0])
  optimizer = Momentum(keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.01]), momentum=0.9)
  optimizer.build([weight])
  update = wrap(lambda gradient: optimizer.apply([gradient], [weight]))
  # accumulator: 1, 0.9 * 1 + 2 = 2.9, 0.9 * 2.9 - 1 = 1.61; rates 0.1, 0.1, 0.01.
  for gradient, expected in ((1.0, 0.9), (2.0, 0.61), (-1.0, 0.5939)):
    update(tf.constant([gradient, gradient]))
    np.testing.assert_allclose(weight.numpy(), [expected, expected + 1], rtol=1e-6)
  np.testing.assert_allclose(optimizer.accumulators[0].numpy(), 1.61, rtol=1e-6)
  assert int(optimizer.iterations.numpy()) == 3


def test_momentum_survives_serialisation():
  optimizer = Momentum(0.25, momentum=0.5)
  assert Momentum.from_config(optimizer.get_config()).get_config() == optimizer.get_config()


@pytest.mark.parametrize(
  ("iteration", "rate"),
  [(0, 0.1), (39998, 0.1), (39999, 0.01), (59998, 0.01), (59999, 0.001), (80000, 0.001)],
)
def test_learning_rate_changes_one_iteration_before_its_boundary(iteration, rate):
  schedule = learning_rate_schedule(get_config("revnet-110"))
  np.testing.assert_allclose(schedule(iteration), rate, rtol=1e-6)


def test_learning_rate_without_and_with_early_boundaries():
  config = get_config("revnet-110")
  constant = learning_rate_schedule(dataclasses.replace(config, lr_decay_steps=(), lr_list=()))
  assert float(constant(10**6)) == pytest.approx(0.1)
  early = learning_rate_schedule(dataclasses.replace(config, lr_decay_steps=(1, 2), lr_list=(0.2, 0.3)))
  assert [float(early(i)) for i in range(3)] == pytest.approx([0.2, 0.3, 0.3])
