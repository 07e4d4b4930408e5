"""Prepares Fashion-MNIST for --dataset fashion-mnist from its four files, on a machine without a network.

python -m resnet.tools.prepare_fashion_mnist --source /usr/share/datasets/fashion-mnist --data_dir data

The result is that of TensorFlow Datasets' own download: its builder writes it, from these files. Debian has
them in the package dataset-fashion-mnist.
"""

import gzip
import hashlib
import os
import pathlib
import tempfile
import zlib
from collections.abc import Mapping

import tensorflow_datasets as tfds
from absl import flags

from resnet.data.tfds_images import TFDS_NAMES
from resnet.utils.app import run
from resnet.utils.errors import UserError

FLAGS = flags.FLAGS

# SHA-256 of each file's content, unpacked: MNIST's digits have files of the same names and sizes.
DIGESTS = {
  "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
  "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
  "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
  "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def define_flags() -> None:
  flags.DEFINE_string("source", None, "Folder of " + ", ".join(DIGESTS) + ".")
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
  if builder.is_prepared():
    return
  with tempfile.TemporaryDirectory() as unpacked:
    for name, digest in DIGESTS.items():
      pathlib.Path(unpacked, name).write_bytes(_read(source / name, digest))
    split_generators = builder._split_generators  # Private to TensorFlow Datasets: see requirements.txt.
    builder._split_generators = lambda _: split_generators(_Folder(unpacked))
    builder.download_and_prepare()


class _Folder:
  """Instead of the builder's download manager: has the files already."""

  def __init__(self, folder: str) -> None:
    self._folder = folder

  def download_and_extract(self, urls: Mapping[str, str]) -> dict[str, str]:
    return {key: os.path.join(self._folder, os.path.basename(url)) for key, url in urls.items()}


def _read(path: pathlib.Path, digest: str) -> bytes:
  """A file's content, unpacked and checked."""
  try:
    content = gzip.decompress(path.read_bytes())
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error
  if hashlib.sha256(content).hexdigest() != digest:
    raise UserError(f"{path} is damaged, or is not Fashion-MNIST's {path.name}")
  return content


def cli() -> None:
  run(define_flags, main)


if __name__ == "__main__":
  cli()
