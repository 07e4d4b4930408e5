"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) by TensorFlow Datasets."""

import functools
import urllib.request

import numpy as np
import tensorflow_datasets as tfds

from resnet.utils.errors import UserError

HOME_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
TFDS_NAMES = {"cifar-10": "cifar10", "cifar-100": "cifar100"}


@functools.lru_cache(maxsize=1)  # Training and evaluation read the same archives.
def load_cifar(name: str, data_dir: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """(images [N, 32, 32, 3] uint8, labels [N]) by split, in the order of the original archives.

  Args:
    name: "cifar-10" or "cifar-100".
    data_dir: the folder of TensorFlow Datasets. What is not prepared there yet is downloaded.

  Raises:
    UserError: not there, and the download failed.
  """
  try:
    builder = tfds.builder(TFDS_NAMES[name], data_dir=data_dir)
    if not builder.is_prepared():
      # TensorFlow Datasets tries for minutes before it reports that there is no network.
      urllib.request.urlopen(HOME_PAGE, timeout=20).close()
      builder.download_and_prepare()
    return {split: _in_order(builder, split) for split in ("train", "test")}
  except Exception as error:  # Whatever the network, the disk or a damaged file raises.
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    raise UserError(
      f"{name} is not prepared in {data_dir} and could not be downloaded ({reason}); give the folder "
      f"that holds {TFDS_NAMES[name]}/ by --data_dir, or try --dataset digits, which needs no download"
    ) from error


def _in_order(builder: tfds.core.DatasetBuilder, split: str) -> tuple[np.ndarray, np.ndarray]:
  """TensorFlow Datasets shuffles what it prepares; the examples' ids remember the archives' order."""
  examples = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
  order = np.argsort(examples["id"])
  return examples["image"][order], examples["label"][order]
