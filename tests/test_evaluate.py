"""Evaluation: every example counts once, whatever the replicas."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import make_batch, make_model

from resnet.training.evaluate import make_evaluate
from resnet.training.step import loss_and_gradients
from resnet.utils.errors import UserError


@pytest.mark.parametrize("replicas", [1, 2])
def test_evaluation_counts_every_example_once(replicas):
  model = make_model("revnet-test")
  images, labels = make_batch(model, size=23)
  batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(7)
  strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])
  with strategy.scope():
    mirrored = make_model("revnet-test")
  top1, top5 = make_evaluate(mirrored, strategy, top=(1, 5))(batches)
  ranks = np.argsort(-model(images).numpy(), axis=1)
  assert top1 == np.mean(ranks[:, 0] == labels.numpy())
  assert top5 == np.mean(np.any(ranks[:, :5] == labels.numpy()[:, None], axis=1))
  assert top1 < top5 < 1


def test_evaluation_takes_the_mean_of_the_replicas_moving_statistics():
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  with strategy.scope():
    model = make_model("revnet-test")
  images, labels = make_batch(model, size=8)
  batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors((images, labels)))
  strategy.run(lambda x, y: loss_and_gradients(model, x, y), args=next(iter(batches)))
  moving = model.non_trainable_variables[0].value
  first, second = (np.array(replica) for replica in moving.values)
  assert np.any(first != second), "each replica has seen a batch of its own"
  make_evaluate(model, strategy)(tf.data.Dataset.from_tensors((images, labels)))
  for replica in moving.values:
    np.testing.assert_allclose(replica, (first + second) / 2, rtol=1e-6)


@pytest.mark.parametrize("replicas", [1, 2])
def test_nothing_to_evaluate_on_is_one_line(replicas):
  strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])
  with strategy.scope():
    model = make_model("revnet-test")
  batches = tf.data.Dataset.from_tensors(make_batch(model, size=4)).take(0)
  with pytest.raises(UserError, match="no example to evaluate on"):
    make_evaluate(model, strategy)(batches)
