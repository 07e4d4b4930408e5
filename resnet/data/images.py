"""CIFAR-10, CIFAR-100 and Fashion-MNIST: what a folder has of them, or their download."""

import functools
import pathlib
import urllib.request

import numpy as np
from absl import logging

from resnet.data.published_files import FORMS, Images, load_files
from resnet.utils.errors import UserError, reason_of

TFDS_NAMES = {"cifar-10": "cifar10", "cifar-100": "cifar100", "fashion-mnist": "fashion_mnist"}
SIZE = 32  # pixels, the input size of the CIFAR networks


@functools.lru_cache(maxsize=1)  # Training and evaluation read the same files.
def load_images(name: str, data_dir: str) -> dict[str, Images]:
  """(images [N, 32, 32, 3] uint8, labels [N]) by split.

  The first of these that there is: what TensorFlow Datasets has prepared in `data_dir`; the published files
  there, see published_files.py; the download by TensorFlow Datasets. All of them give the same images in the
  same order. CIFAR's is that of its archives, Fashion-MNIST's the one in which TensorFlow Datasets writes it;
  its grey 28x28 pictures are padded with black, the three channels equal.

  Args:
    name: a key of TFDS_NAMES.
    data_dir: the folder. A download is kept there.

  Raises:
    UserError: the images are not in `data_dir`, and the download failed.
  """
  problems: list[str] = []
  found = _load_prepared(name, data_dir) or load_files(name, data_dir, problems)
  if not found:
    try:
      found = _download(name, data_dir)
    except Exception as error:  # Whatever the network, the disk or a damaged file raises.
      raise UserError(_missing(name, data_dir, reason_of(error), problems)) from error
  for problem in problems:
    logging.warning("passed over: %s", problem)
  return {split: (_padded(images), labels) for split, (images, labels) in found.items()}


def _load_prepared(name: str, data_dir: str) -> dict[str, Images] | None:
  if not pathlib.Path(data_dir, TFDS_NAMES[name]).is_dir():
    return None
  import tensorflow_datasets as tfds  # seconds to import

  builder = tfds.builder(TFDS_NAMES[name], data_dir=data_dir)
  if not builder.is_prepared():
    return None
  try:
    return {split: _load_split(builder, split) for split in ("train", "test")}
  except Exception as error:  # Whatever reading a damaged file raises.
    raise UserError(
      f"{name} in {builder.data_dir} is damaged ({reason_of(error)}); delete this folder, so that it is made "
      "anew"
    ) from error


def _load_split(builder, split: str) -> Images:
  import tensorflow_datasets as tfds

  examples = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
  images, labels = examples["image"], examples["label"]
  if "id" in examples:  # CIFAR's examples are shuffled when prepared; their ids remember the archives' order.
    order = np.argsort(examples["id"])
    images, labels = images[order], labels[order]
  return images, labels


def _download(name: str, data_dir: str) -> dict[str, Images]:
  import tensorflow_datasets as tfds

  builder = tfds.builder(TFDS_NAMES[name], data_dir=data_dir)
  # TensorFlow Datasets tries for minutes before it reports that there is no network.
  urllib.request.urlopen(builder.info.homepage, timeout=20).close()
  builder.download_and_prepare()
  return {split: _load_split(builder, split) for split in ("train", "test")}


def _padded(images: np.ndarray) -> np.ndarray:
  border = (SIZE - images.shape[1]) // 2
  images = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
  return np.repeat(images, 3 // images.shape[-1], axis=-1)


def _missing(name: str, data_dir: str, reason: str, problems: list[str]) -> str:
  files = " or ".join(form.name for form in FORMS[name])
  passed_over = f"; passed over: {'; '.join(problems)}" if problems else ""
  return (
    f"{name} is not in {data_dir} and could not be downloaded ({reason}); put {files} into {data_dir}, or give "
    f"its folder by --data_dir; --dataset digits needs no download{passed_over}"
  )
