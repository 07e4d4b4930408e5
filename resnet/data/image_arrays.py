"""Datasets small enough to be held in memory: shuffling and augmentation as functions of seed and step."""

import contextlib

import numpy as np
import tensorflow as tf

from resnet.configs.config import Config
from resnet.data.preprocessing import Preprocessing

# Augmentation of the CIFAR experiments: zero-pad by 2 pixels on each side, crop at random.
PADDING = 2
BATCHES_AHEAD = 4  # batches prepared while a step runs


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

  class_names = None

  def __init__(
    self, config: Config, images: np.ndarray, labels: np.ndarray, mean_image: np.ndarray, flip: bool
  ):
    self._config = config
    self._flip = flip
    self._images = images
    self._labels = labels.astype(np.int32)
    self.preprocessing = Preprocessing(config, mean_image)

  @property
  def num_examples(self) -> int:
    """The number of images."""
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

    def batch(step, index):
      offsets, flips = random_crops(step, batch_size, seed)
      mine = slice(shard * share, (shard + 1) * share)
      centred = self.preprocessing.standardised(tf.gather(images, index[mine]))
      flips = flips[mine] if self._flip else tf.zeros([share], tf.bool)
      return crop_and_flip(centred, offsets[mine], flips), tf.gather(labels, index[mine])

    indices = shuffled_indices(self.num_examples, seed, start_step * batch_size)
    steps = indices.batch(batch_size, drop_remainder=True).enumerate(start_step)
    return _prefetched(steps.map(batch, BATCHES_AHEAD))

  def evaluation_batches(self, num_batches: int | None = None) -> tf.data.Dataset:
    """Every example once, in order, unaugmented; with `num_batches`, the first so many batches."""
    batch_size = self._config.valid_batch_size
    first = slice(None if num_batches is None else num_batches * batch_size)
    dataset = tf.data.Dataset.from_tensor_slices((self._images[first], self._labels[first])).batch(batch_size)
    return _prefetched(dataset.map(lambda x, y: (self.preprocessing.standardised(x), y)))

  def data_errors(self) -> contextlib.AbstractContextManager[None]:
    """Nothing can go wrong with images in memory."""
    return contextlib.nullcontext()


def _prefetched(batches: tf.data.Dataset) -> tf.data.Dataset:
  options = tf.data.Options()
  # There is nothing to tune, and dropping an iterator would wait up to a minute for the tuning thread to wake.
  options.autotune.enabled = False
  return batches.prefetch(BATCHES_AHEAD).with_options(options)


def shuffled_indices(num_examples: int, seed: int, start: int) -> tf.data.Dataset:
  """Endless: the indices of one epoch after the other, in an order drawn anew for each epoch.

  The first `start` indices are skipped.
  """

  def epoch_indices(epoch):
    order = tf.random.experimental.stateless_shuffle(tf.range(num_examples), seed=[seed, epoch])
    return tf.data.Dataset.from_tensor_slices(order)

  epochs = tf.data.Dataset.range(start // num_examples, np.iinfo(np.int32).max, output_type=tf.int32)
  return epochs.flat_map(epoch_indices).skip(start % num_examples)


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
