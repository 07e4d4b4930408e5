"""Datasets small enough to be held in memory: shuffling and augmentation as functions of seed and step."""

import numpy as np
import tensorflow as tf

from resnet.configs.config import Config

# Augmentation of the CIFAR experiments: zero-pad by 2 pixels on each side, crop at random.
PADDING = 2


class ImageArrays:
  """One split of images in memory.

  Element k of `training_batches` depends on the seed and on k alone, so that a resumed run sees what an
  uninterrupted one would have seen, and the shards of a batch are the same whatever their number.

  Args:
    config: batch sizes and seed.
    images: [N, H, W, C] uint8.
    labels: [N] integers.
    mean_image: [H, W, C], subtracted from every image.
    flip: whether training may mirror images left to right.
  """

  def __init__(
    self, config: Config, images: np.ndarray, labels: np.ndarray, mean_image: np.ndarray, flip: bool
  ):
    self._config = config
    self._flip = flip
    self._images = images
    self._labels = labels.astype(np.int32)
    self._mean_image = mean_image.astype(np.float32)

  @property
  def num_examples(self) -> int:
    return len(self._images)

  def training_batches(self, start_step: int, num_shards: int = 1, shard: int = 0) -> tf.data.Dataset:
    """Endless: element k is this shard's part of the batch of step start_step + k.

    Returns:
      (images [batch_size / num_shards, H, W, C] float32, labels [batch_size / num_shards] int32).
      Epochs follow each other without a gap: a batch may hold the end of one and the start of the next.
    """
    images, labels = tf.constant(self._images), tf.constant(self._labels)
    batch_size, seed = self._config.batch_size, self._config.seed
    share = batch_size // num_shards

    def batch(step):
      index = shuffled_indices(step, batch_size, self.num_examples, seed)
      offsets, flips = random_crops(step, batch_size, seed)
      mine = slice(shard * share, (shard + 1) * share)
      centred = self._centre(tf.gather(images, index[mine]))
      flips = flips[mine] if self._flip else tf.zeros([share], tf.bool)
      return crop_and_flip(centred, offsets[mine], flips), tf.gather(labels, index[mine])

    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    return steps.map(batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

  def evaluation_batches(self, num_batches: int | None = None) -> tf.data.Dataset:
    """Every example once, in order, unaugmented; with `num_batches`, the first so many batches."""
    dataset = tf.data.Dataset.from_tensor_slices((self._images, self._labels))
    dataset = dataset.batch(self._config.valid_batch_size).take(-1 if num_batches is None else num_batches)
    return dataset.map(lambda x, y: (self._centre(x), y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

  def _centre(self, images):
    return tf.cast(images, tf.float32) - self._mean_image


def shuffled_indices(step: tf.Tensor, batch_size: int, num_examples: int, seed: int) -> tf.Tensor:
  """Indices [batch_size] int32 of the examples of `step`, in an order drawn anew for each epoch."""
  position = tf.cast(step, tf.int64) * batch_size + tf.range(batch_size, dtype=tf.int64)
  epoch = tf.cast(position // num_examples, tf.int32)
  # The raw op: tf.random.experimental.index_shuffle does not take a seed for each index, as of 2.21.
  return tf.raw_ops.RandomIndexShuffle(
    index=tf.cast(position % num_examples, tf.int32),
    seed=tf.stack([tf.fill([batch_size], seed), epoch, tf.zeros_like(epoch)], axis=1),
    max_index=tf.fill([batch_size], num_examples - 1),
    rounds=4,
  )


def random_crops(step: tf.Tensor, batch_size: int, seed: int) -> tuple[tf.Tensor, tf.Tensor]:
  """(crop offsets [batch_size, 2] int32 in 0..2 * PADDING, flips [batch_size] bool) of `step`."""
  offset_seed, flip_seed = tf.unstack(tf.random.split([seed, tf.cast(step, tf.int32)], 2))
  offsets = tf.random.stateless_uniform([batch_size, 2], offset_seed, 0, 2 * PADDING + 1, tf.int32)
  return offsets, tf.random.stateless_uniform([batch_size], flip_seed) < 0.5


def crop_and_flip(images: tf.Tensor, offsets: tf.Tensor, flips: tf.Tensor) -> tf.Tensor:
  """Zero-pads by PADDING on each side, crops to the old size at `offsets`, then mirrors where `flips`.

  Args:
    images: [N, H, W, C].
    offsets: [N, 2] int32, row and column of the crop's corner in the padded image.
    flips: [N] bool.

  Returns:
    [N, H, W, C].
  """
  height, width = images.shape[1:3]
  padded = tf.pad(images, [[0, 0], [PADDING, PADDING], [PADDING, PADDING], [0, 0]])
  rows = offsets[:, :1] + tf.range(height)
  columns = offsets[:, 1:] + tf.where(flips[:, None], tf.range(width)[::-1], tf.range(width))
  cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
  return tf.gather(cropped, columns, axis=2, batch_dims=1)
