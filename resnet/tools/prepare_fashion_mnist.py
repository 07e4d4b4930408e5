"""Prepares Fashion-MNIST for --dataset fashion-mnist from its four files, on a machine without a network.

python -m resnet.tools.prepare_fashion_mnist --source /usr/share/datasets/fashion-mnist --data_dir data

The result is that of TensorFlow Datasets' own download: its builder writes it, from these files. Debian has
them in the package dataset-fashion-mnist.
"""

import gzip
import os
import pathlib
import tempfile
import zlib
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from resnet.data.tfds_images import TFDS_NAMES
from resnet.utils.app import run
from resnet.utils.errors import UserError

FLAGS = flags.FLAGS

# Header of each file (its type, then its dimensions), http://yann.lecun.com/exdb/mnist, big-endian.
HEADERS = {
  "train-images-idx3-ubyte.gz": (2051, 60000, 28, 28),
  "train-labels-idx1-ubyte.gz": (2049, 60000),
  "t10k-images-idx3-ubyte.gz": (2051, 10000, 28, 28),
  "t10k-labels-idx1-ubyte.gz": (2049, 10000),
}
NUM_CLASSES = 10


def define_flags() -> None:
  flags.DEFINE_string("source", None, "Folder of " + ", ".join(HEADERS) + ".")
  flags.DEFINE_string("data_dir", "data", "Folder of TensorFlow Datasets, to write to.")
  flags.mark_flags_as_required(["source"])


def main() -> None:
  prepare(pathlib.Path(FLAGS.source), pathlib.Path(FLAGS.data_dir))
  print(f"fashion-mnist is prepared in {FLAGS.data_dir}")


def prepare(source: pathlib.Path, data_dir: pathlib.Path) -> None:
  """Writes the form of TensorFlow Datasets to `data_dir`; does nothing if it is there.

  Raises:
    UserError: a file of `source` is missing or damaged.
  """
  builder = tfds.builder(TFDS_NAMES["fashion-mnist"], data_dir=os.fspath(data_dir))
  with tempfile.TemporaryDirectory() as unpacked:
    for name, header in HEADERS.items():
      pathlib.Path(unpacked, name).write_bytes(_read(source / name, header))
    split_generators = builder._split_generators
    builder._split_generators = lambda _: split_generators(_Folder(unpacked))
    builder.download_and_prepare()


class _Folder:
  """Instead of the builder's download manager: has the files already."""

  def __init__(self, folder: str) -> None:
    self._folder = folder

  def download_and_extract(self, urls: Mapping[str, str]) -> dict[str, str]:
    return {key: os.path.join(self._folder, os.path.basename(url)) for key, url in urls.items()}


def _read(path: pathlib.Path, header: tuple[int, ...]) -> bytes:
  """A file's content, unpacked and checked."""
  try:
    content = gzip.decompress(path.read_bytes())
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error
  start = np.array(header, ">i4").tobytes()
  if not content.startswith(start) or len(content) != len(start) + np.prod(header[1:]):
    raise UserError(f"{path} is not Fashion-MNIST's: it must hold {' x '.join(map(str, header[1:]))} bytes")
  if len(header) == 2 and max(content[len(start) :]) >= NUM_CLASSES:
    raise UserError(f"{path} is damaged: labels must be below {NUM_CLASSES}")
  return content


def cli() -> None:
  run(define_flags, main)


if __name__ == "__main__":
  cli()
