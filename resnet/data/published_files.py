"""CIFAR-10, CIFAR-100 (Krizhevsky 2009) and Fashion-MNIST (Xiao et al. 2017) as their authors publish them."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging

from resnet.configs.config import NUM_CLASSES
from resnet.data.array_pickles import load_arrays
from resnet.utils.data_folder import Place, find_places

Images = tuple[np.ndarray, np.ndarray]  # [N, H, W, C] uint8, and labels [N]


@dataclasses.dataclass(frozen=True)
class Form:
  """One of the forms in which a data set is published."""

  name: str  # what there is to bring
  files: Mapping[str, Sequence[str]]  # by split, without .gz
  read: Callable[[list[bytes]], Images]  # of a split's files; a ValueError says what is wrong with them
  md5: str | None = None  # of the archive, where there is one; from its page


# Images of each split.
COUNTS = {
  "cifar-10": {"train": 50000, "test": 10000},
  "cifar-100": {"train": 50000, "test": 10000},
  "fashion-mnist": {"train": 60000, "test": 10000},
}


def load_files(name: str, data_dir: str | os.PathLike, problems: list[str]) -> dict[str, Images] | None:
  """The images of a data set by split, from its files in `data_dir`; None if they are not there.

  The files may lie in the folder or in one of two levels below it, unpacked or in an archive. What they are is
  known by their content. CIFAR's images are in the order of the files, Fashion-MNIST's in that of TensorFlow
  Datasets, by which they were always read.

  Args:
    name: a key of FORMS.
    data_dir: the folder; need not exist.
    problems: what was found and is damaged or another data set's is noted here and passed over.
  """
  forms = FORMS[name]
  names = {file for form in forms for files in form.files.values() for file in files}
  for place in find_places(data_dir, names, problems):
    for form in forms:
      if any(file in place.contents for files in form.files.values() for file in files):
        try:
          images = {split: _load_split(name, form, split, place) for split in form.files}
        except ValueError as error:
          problems.append(f"{place.path} is not {name}: {error}")
        else:
          _compare_checksum(form, place)
          return images
  return None


def _load_split(name: str, form: Form, split: str, place: Place) -> Images:
  missing = [file for file in form.files[split] if file not in place.contents]
  if missing:
    raise ValueError(f"{', '.join(missing)} is missing")
  images, labels = form.read([place.contents[file] for file in form.files[split]])
  count, num_classes = COUNTS[name][split], NUM_CLASSES[name]
  if len(images) != count:
    raise ValueError(f"it has {len(images)} {split} images instead of {count}")
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(f"its labels are {labels.min()}..{labels.max()} instead of 0..{num_classes - 1}")
  return _in_order_of_tfds(split, images, labels) if name == "fashion-mnist" else (images, labels)


def _compare_checksum(form: Form, place: Place) -> None:
  if form.md5 and place.is_archive:
    md5 = hashlib.md5(place.path.read_bytes(), usedforsecurity=False).hexdigest()
    if md5 != form.md5:
      logging.warning(
        "%s is used, but is not the published %s: its MD5 is %s instead of %s",
        *(place.path, form.name, md5, form.md5),
      )


def _read_python(key: str, batches: list[bytes]) -> Images:
  """Pickled dicts of "data" ([n, 3072] uint8: red, green, blue, each row by row) and labels."""
  images, labels = [], []
  for batch in batches:
    try:
      fields = load_arrays(batch)
      images.append(_images(np.asarray(fields["data"])))
      labels.append(np.asarray(fields[key]))
    except KeyError as error:
      raise ValueError(f"a batch has no {error}") from error
    except Exception as error:  # A damaged pickle raises anything.
      raise ValueError(f"a batch cannot be read: {error}") from error
    if labels[-1].shape != images[-1].shape[:1] or labels[-1].dtype.kind not in "iu":
      raise ValueError(f"a batch has {len(images[-1])} images and labels of shape {labels[-1].shape}")
  return np.concatenate(images), np.concatenate(labels)


def _read_binary(label_bytes: int, batches: list[bytes]) -> Images:
  """Records of labels, of which the last counts, and the 3,072 bytes of an image."""
  data = np.frombuffer(b"".join(batches), np.uint8)
  if not len(data) or len(data) % (label_bytes + 3072):
    raise ValueError(f"{len(data)} bytes are no records of {label_bytes + 3072}")
  records = data.reshape(-1, label_bytes + 3072)
  return _images(records[:, label_bytes:]), records[:, label_bytes - 1]


def _images(data: np.ndarray) -> np.ndarray:
  if data.ndim != 2 or data.shape[1] != 3072 or data.dtype != np.uint8:
    raise ValueError(f"images are of shape {data.shape} and type {data.dtype} instead of (n, 3072) and uint8")
  return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


# SHA-256 of each of Fashion-MNIST's files, unpacked: MNIST's digits have files of the same names and sizes.
FASHION_MNIST_DIGESTS = {
  "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
  "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
  "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
  "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def _read_fashion_mnist(files: list[bytes]) -> Images:
  """A header of 16 bytes and images of 28x28; a header of 8 bytes and labels."""
  for file in files:
    if hashlib.sha256(file).hexdigest() not in FASHION_MNIST_DIGESTS.values():
      raise ValueError("the files are damaged or another data set's")
  images, labels = (np.frombuffer(file, np.uint8, offset=offset) for file, offset in zip(files, (16, 8)))
  return images.reshape(-1, 28, 28, 1), labels


def _in_order_of_tfds(split: str, images: np.ndarray, labels: np.ndarray) -> Images:
  """The order in which TensorFlow Datasets writes the examples 0, 1, ... of a split: that of their hashes."""
  hashes = [
    hashlib.md5(f"{split}{index}".encode(), usedforsecurity=False).digest() for index in range(len(labels))
  ]
  order = sorted(range(len(labels)), key=hashes.__getitem__)
  return images[order], labels[order]


def _cifar(name: str, files: dict[str, list[str]], label_key: str, label_bytes: int, md5s: tuple[str, str]):
  """The two forms of `name` that are read; the third is for Matlab."""
  python = Form(f"{name}-python.tar.gz", files, functools.partial(_read_python, label_key), md5=md5s[0])
  binary = Form(
    f"{name}-binary.tar.gz",
    {split: [f"{file}.bin" for file in names] for split, names in files.items()},
    functools.partial(_read_binary, label_bytes),
    md5=md5s[1],
  )
  return python, binary


FORMS: dict[str, tuple[Form, ...]] = {
  "cifar-10": _cifar(
    "cifar-10",
    {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
    label_key="labels",
    label_bytes=1,
    md5s=("c58f30108f718f92721af3b95e74349a", "c32a1d4ab5d03f1284b67883e8d87530"),
  ),
  "cifar-100": _cifar(
    "cifar-100",
    {"train": ["train"], "test": ["test"]},
    label_key="fine_labels",
    label_bytes=2,
    md5s=("eb9058c3a382ffc7106e4002c42a8d85", "03b5dce01913d631647c71ecec9e9cb8"),
  ),
  "fashion-mnist": (
    Form(
      ", ".join(f"{name}.gz" for name in FASHION_MNIST_DIGESTS),
      {"train": list(FASHION_MNIST_DIGESTS)[:2], "test": list(FASHION_MNIST_DIGESTS)[2:]},
      _read_fashion_mnist,
    ),
  ),
}
