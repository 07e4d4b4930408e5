"""CIFAR-10, CIFAR-100 (Krizhevsky 2009) and Fashion-MNIST (Xiao et al. 2017) by TensorFlow Datasets."""

import functools
import urllib.request

import numpy as np
import tensorflow_datasets as tfds

from resnet.utils.errors import UserError

TFDS_NAMES = {"cifar-10": "cifar10", "cifar-100": "cifar100", "fashion-mnist": "fashion_mnist"}
FROM_FILES = {"fashion-mnist": ", make it from its four files by python -m resnet.tools.prepare_fashion_mnist"}
SIZE = 32  # pixels, the input size of the CIFAR networks


@functools.lru_cache(maxsize=1)  # Training and evaluation read the same archives.
def load_tfds_images(name: str, data_dir: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """(images [N, 32, 32, 3] uint8, labels [N]) by split.

  CIFAR is in the order of its archives. Fashion-MNIST is in the order in which TensorFlow Datasets writes it,
  which is the same on every machine; its grey 28x28 pictures are padded with black, the three channels equal.

  Args:
    name: a key of TFDS_NAMES.
    data_dir: the folder of TensorFlow Datasets. What is not prepared there yet is downloaded.

  Raises:
    UserError: the images are not in data_dir, and the download failed.
  """
  try:
    builder = tfds.builder(TFDS_NAMES[name], data_dir=data_dir)
    if not builder.is_prepared():
      # TensorFlow Datasets tries for minutes before it reports that there is no network.
      urllib.request.urlopen(builder.info.homepage, timeout=20).close()
      builder.download_and_prepare()
    return {split: _load_split(builder, split) for split in ("train", "test")}
  except Exception as error:  # Whatever the network, the disk or a damaged file raises.
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    raise UserError(
      f"{name} is not prepared in {data_dir} and could not be downloaded ({reason}); give the folder "
      f"that holds {TFDS_NAMES[name]}/ by --data_dir{FROM_FILES.get(name, '')}, or try --dataset digits, which "
      "needs no download"
    ) from error


def _load_split(builder: tfds.core.DatasetBuilder, split: str) -> tuple[np.ndarray, np.ndarray]:
  examples = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
  images, labels = examples["image"], examples["label"]
  if "id" in examples:  # CIFAR's examples are shuffled when prepared; their ids remember the archives' order.
    order = np.argsort(examples["id"])
    images, labels = images[order], labels[order]
  border = (SIZE - images.shape[1]) // 2
  images = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
  return np.repeat(images, 3 // images.shape[-1], axis=-1), labels
