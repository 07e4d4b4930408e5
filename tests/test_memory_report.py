"""What reversibility saves, as an author of a network is told."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import values

from resnet.recomputation import memory
from resnet.recomputation.contexts import stored
from resnet.reversible import Recompute, ReversibleChain, memory_report

BATCH = 400


def make_model(units):
  """Convolutions on two streams of 25.6 MB each."""
  convolutions = [
    [keras.layers.Conv2D(16, 3, padding="same", activation="tanh") for _ in "FG"] for _ in range(units)
  ]
  chain = ReversibleChain(convolutions)
  chain.build([(None, 32, 32, 16)] * 2)
  return chain, [tf.random.stateless_normal([BATCH // 2, 32, 32, 16], [seed, 0]) for seed in (1, 2)]


def test_a_chain_saves_what_ordinary_backprop_stores():
  model, inputs = make_model(16)
  before = values(model.variables)
  report = memory_report(model, inputs)
  stored = 2 * 16 * inputs[0].shape.num_elements() * 4  # The activations: an output of each function.
  assert report.ordinary > 0.9 * stored
  assert report.reversible < 0.5 * report.ordinary
  assert report.weights == 4 * 2 * 16 * (9 * 16 * 16 + 16)
  for variable, value in zip(model.variables, before, strict=True):
    np.testing.assert_array_equal(variable, value)
  assert f"{report.ordinary / 1e6:.1f} MB" in str(report)
  assert "resident memory on the CPU" in str(report)


def test_on_a_gpu_the_allocator_is_asked(monkeypatch):
  """For GPUs, with an allocator whose peak tells how the step was traced and whether it was reset."""
  peak = {}

  class Block(keras.layers.Dense):
    def call(self, x):
      peak["since start"], peak["of step"] = 10**9, 1000 if stored.get() else 400
      return super().call(x)

  def reset(device):
    peak["since start"] = peak["of step"]

  def info(device):
    assert device == "GPU:0"
    return {"current": 100, "peak": peak["since start"]}

  monkeypatch.setattr(
    tf.config, "list_logical_devices", lambda _: [tf.config.LogicalDevice("/device:GPU:0", "GPU")]
  )
  monkeypatch.setattr(tf.config.experimental, "get_memory_info", info)
  monkeypatch.setattr(tf.config.experimental, "reset_memory_stats", reset)
  norm = Recompute(keras.layers.BatchNormalization())
  report = memory_report(keras.Sequential([Block(3), norm]), tf.random.stateless_normal([4, 3], [1, 2]))
  assert (report.reversible, report.ordinary) == (300, 900)
  np.testing.assert_array_equal(norm.layer.moving_mean, [0, 0, 0])
  assert "allocator on the GPU" in str(report)


class NotRegistered(keras.layers.Dense):
  pass


@pytest.mark.parametrize(
  ("layer", "batch", "message"),
  [
    (keras.layers.Dense(4), 1, "needs a batch of at least 2 examples, got 1"),
    (keras.layers.Activation("tanh", name="bare"), 2, "trainable variables, 'bare' has none"),
    (NotRegistered(4), 2, "one could not .*register classes of your own by"),
  ],
)
def test_what_cannot_be_measured_is_refused(layer, batch, message):
  with pytest.raises(ValueError, match=message):
    memory.memory_report(layer, tf.zeros([batch, 3]))
