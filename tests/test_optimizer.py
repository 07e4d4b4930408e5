"""Momentum and the learning rate against numbers worked out by hand."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from resnet.configs import get_config
from resnet.training.loss_scale import INITIAL_LOSS_SCALE
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


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_step_that_overflows_anywhere_changes_no_weight_and_halves_the_scale(replicas, monkeypatch):
  monkeypatch.setattr("resnet.training.loss_scale.STEPS_TO_DOUBLE", 2)
  # Not by collective ops, whose keys, of all strategies of a process, go with one shape.
  strategy = tf.distribute.MirroredStrategy(
    [f"CPU:{index}" for index in range(replicas)], cross_device_ops=tf.distribute.ReductionToOneDevice()
  )
  with strategy.scope():
    weights = [keras.Variable([1.0, 2.0]), keras.Variable(3.0)]
    optimizer = Momentum(0.125, momentum=0.5, scales_loss=True)
    optimizer.build(weights)

  @tf.function
  def step(overflows):
    def apply():
      replica = tf.distribute.get_replica_context().replica_id_in_sync_group
      first = tf.where(overflows & (replica == replicas - 1), np.inf, 1.0)
      optimizer.apply([tf.stack([first, 1.0]), tf.constant(1.0)], weights)

    strategy.run(apply)

  def state():
    scales = strategy.experimental_local_results(optimizer.loss_scale.value.value)
    last = scales[-1].numpy() / INITIAL_LOSS_SCALE
    return [*weights[0].numpy(), weights[1].numpy(), last, optimizer.loss_scale.finite_steps.numpy()]

  # Accumulators: replicas * 1, then 1.5, then 1.75 times that.
  moved = np.cumsum([1, 1.5, 1.75]) * replicas * 0.125
  for k, (overflows, expected) in enumerate(
    [
      (False, [moved[0], 1, 1]),
      (True, [moved[0], 0.5, 0]),
      (False, [moved[1], 0.5, 1]),
      (False, [moved[2], 1, 0]),
    ]
  ):
    step(tf.constant(overflows))
    total, scale, finite_steps = expected
    np.testing.assert_allclose(state()[:4], [1 - total, 2 - total, 3 - total, scale], rtol=1e-6)
    assert (state()[4] == finite_steps) or replicas == 2  # It reads as the first replica's.
    assert int(optimizer.iterations.numpy()) == k + 1


def test_momentum_survives_serialisation():
  optimizer = Momentum(0.25, momentum=0.5, scales_loss=True)
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
