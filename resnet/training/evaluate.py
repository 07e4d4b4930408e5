"""Accuracy of a model on a dataset."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf


def make_evaluate(
  model: keras.Model, strategy: tf.distribute.Strategy, top: Sequence[int] = (1,)
) -> Callable[[tf.data.Dataset], list[float]]:
  """A function from a finite dataset of (images, labels) batches to the top-k accuracies, for k in `top`.

  The batches are split over the strategy's replicas. It is traced once, whatever the batches' sizes.
  """

  def count(images, labels):
    logits = model(images, training=False)
    # Not tf.math.in_top_k, which calls every class of a constant output correct.
    best = tf.math.top_k(logits, max(top)).indices
    hits = tf.cast(best == tf.cast(labels, tf.int32)[:, None], tf.int32)
    return tf.stack([tf.reduce_sum(hits[:, :k]) for k in top] + [tf.size(labels)])

  @tf.function
  def count_next(iterator):
    counts = strategy.run(count, args=next(iterator))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, counts, axis=None)

  def evaluate(dataset):
    iterator = iter(strategy.experimental_distribute_dataset(dataset))
    total = 0
    while True:
      try:
        total += count_next(iterator)
      except tf.errors.OutOfRangeError:
        break
    *correct, examples = total.numpy()
    return [float(hits / examples) for hits in correct]

  return evaluate
