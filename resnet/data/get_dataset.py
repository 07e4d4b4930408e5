"""From a configuration to the dataset it names."""

import contextlib
import dataclasses
import math
import os
from typing import Protocol

import numpy as np
import tensorflow as tf

from resnet.configs.config import Config
from resnet.data.digits import load_digits
from resnet.data.image_arrays import ImageArrays
from resnet.data.imagenet import ImagenetDataset
from resnet.data.images import load_images
from resnet.data.preprocessing import Preprocessing
from resnet.utils.errors import UserError


class Dataset(Protocol):
  """One split of a dataset, preprocessed for the network of a configuration."""

  preprocessing: Preprocessing  # of its evaluation

  @property
  def num_examples(self) -> int:
    """The number of examples."""

  @property
  def class_names(self) -> tuple[str, ...] | None:
    """The classes in the order of the network's outputs; None where nothing says them."""

  def training_batches(self, start_step: int, num_shards: int = 1, shard: int = 0) -> tf.data.Dataset:
    """Endless: element k is this shard's part of the batch of step start_step + k, shuffled and augmented.

    (images [config.batch_size / num_shards, H, W, C] float32, labels [...] int32)
    """

  def evaluation_batches(self, num_batches: int | None = None) -> tf.data.Dataset:
    """Every example once, not augmented, in batches of config.valid_batch_size; the last may be smaller.

    With `num_batches`, only the first so many batches.
    """

  def data_errors(self) -> contextlib.AbstractContextManager[None]:
    """A context for taking batches: damaged data raises a UserError that names the place."""


@dataclasses.dataclass(frozen=True)
class EvaluationData:
  """The data that an accuracy is measured on: the first `num_batches` batches of a dataset, or all of it.

  Example:
    >>> config = override_config(get_config("revnet-38"), ["dataset=digits"])
    >>> first_two = EvaluationData(get_dataset(config, "data", "test"), num_batches=2)
    >>> sum(len(labels) for images, labels in first_two.batches())
    200
  """

  dataset: Dataset
  num_batches: int | None = None

  def batches(self) -> tf.data.Dataset:
    """The batches, see `Dataset.evaluation_batches`."""
    return self.dataset.evaluation_batches(self.num_batches)


def splits(validation: bool) -> tuple[str, str]:
  """(split to train on, split to evaluate on); `validation` holds out a tenth of the training images.

  Example:
    >>> splits(validation=True)
    ('traintrain', 'trainval')
  """
  return ("traintrain", "trainval") if validation else ("train", "test")


def get_dataset(config: Config, data_dir: str | os.PathLike, split: str) -> Dataset:
  """A split of config.dataset.

  Args:
    config: names the dataset, and the shape and size of its batches.
    data_dir: the folder of the data, into which images are downloaded if they are not there, see images.py;
      for ImageNet a folder of record files, see record_files.py.
    split: "train" or "validation" for ImageNet; for the others "train" or "test", or a part of the
      training images: "trainval" is the tenth that --validation holds out, "traintrain" the rest.

  Raises:
    UserError: the data is missing and cannot be downloaded, or does not fit the network.

  Example:
    >>> config = override_config(get_config("revnet-38"), ["dataset=digits"])
    >>> digits = get_dataset(config, "data", "train")
    >>> images, labels = next(iter(digits.training_batches(start_step=0)))
    >>> images.shape, labels.shape
    (TensorShape([100, 32, 32, 3]), TensorShape([100]))
  """
  if config.dataset == "imagenet":
    return ImagenetDataset(config, data_dir, split)
  arrays = load_digits() if config.dataset == "digits" else load_images(config.dataset, os.fspath(data_dir))
  train_images, train_labels = arrays["train"]
  shape = (config.height, config.width, config.num_channel)
  if train_images.shape[1:] != shape:
    raise UserError(
      f"{config.dataset} has images of shape {list(train_images.shape[1:])}, but the network of "
      f"{config.name} takes {list(shape)}"
    )
  num_classes = train_labels.max() + 1
  if num_classes > config.num_classes:
    raise UserError(f"{config.dataset} has {num_classes} classes, but num_classes is {config.num_classes}")
  held_out, rest = held_out_indices(len(train_images))
  index = {"traintrain": rest, "trainval": held_out}.get(split, slice(None))
  images, labels = arrays["test" if split == "test" else "train"]
  flip = config.dataset != "digits"  # A mirrored digit is another sign.
  return ImageArrays(config, images[index], labels[index], train_images.mean(0), flip)


def held_out_indices(num_examples: int) -> tuple[np.ndarray, np.ndarray]:
  """(indices of the tenth that --validation holds out, of the rest); for CIFAR as in the original code."""
  order = np.random.RandomState(0).permutation(num_examples)
  num_held_out = math.ceil(num_examples / 10)
  return order[:num_held_out], order[num_held_out:]
