"""Fashion-MNIST: from its four files to batches for the CIFAR networks."""

import dataclasses
import gzip
import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from resnet.configs import get_config
from resnet.data import get_dataset
from resnet.data.tfds_images import load_tfds_images
from resnet.tools import prepare_fashion_mnist

COUNTS = {"train": 60, "t10k": 20}


def pictures(part):
  """[N, 28, 28] uint8 of noise, and labels [N]."""
  count = COUNTS[part]
  random = np.random.RandomState(count)
  return random.randint(0, 256, (count, 28, 28)).astype(np.uint8), (np.arange(count) % 10).astype(np.uint8)


def contents():
  """The four files, unpacked: a header of big-endian numbers, then the bytes of pictures or labels."""
  files = {}
  for part, count in COUNTS.items():
    images, labels = pictures(part)
    header = np.array([2051, count, 28, 28], ">i4").tobytes()
    files[f"{part}-images-idx3-ubyte.gz"] = header + images.tobytes()
    files[f"{part}-labels-idx1-ubyte.gz"] = np.array([2049, count], ">i4").tobytes() + labels.tobytes()
  return files


def write_source(folder):
  folder.mkdir()
  for name, content in contents().items():
    (folder / name).write_bytes(gzip.compress(content))
  return folder


@pytest.fixture
def few(monkeypatch):
  """The archives have 60 and 20 pictures of noise instead of 60,000 and 10,000 photographs."""
  digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents().items()}
  assert set(digests) == set(prepare_fashion_mnist.DIGESTS)
  monkeypatch.setattr(prepare_fashion_mnist, "DIGESTS", digests)
  module = tfds.image_classification.mnist
  monkeypatch.setattr(module, "_TRAIN_EXAMPLES", COUNTS["train"])
  monkeypatch.setattr(module, "_TEST_EXAMPLES", COUNTS["t10k"])
  load_tfds_images.cache_clear()
  yield
  load_tfds_images.cache_clear()


@pytest.mark.usefixtures("few")
def test_from_the_four_files_to_batches(run_module, tmp_path, capsys, monkeypatch):
  source = write_source(tmp_path / "source")
  assert run_module(prepare_fashion_mnist, f"--source={source}", "--data_dir=data") is None
  assert "fashion-mnist is prepared in data" in capsys.readouterr().out

  images, labels = load_tfds_images("fashion-mnist", "data")["train"]
  assert (images.shape, images.dtype) == ((60, 32, 32, 3), np.uint8)
  originals, original_labels = pictures("train")
  by_content = {image.tobytes(): label for image, label in zip(originals, original_labels, strict=True)}
  for image, label in zip(images, labels, strict=True):
    assert by_content[image[2:30, 2:30, 0].tobytes()] == label
    assert (image == image[..., :1]).all(), "three equal channels"
    assert image.sum() == 3 * image[2:30, 2:30, 0].astype(int).sum(), "the border is black"

  config = dataclasses.replace(get_config("revnet-38"), dataset="fashion-mnist", batch_size=10)
  sizes = {
    split: get_dataset(config, "data", split).num_examples
    for split in ("train", "traintrain", "trainval", "test")
  }
  assert sizes == {"train": 60, "traintrain": 54, "trainval": 6, "test": 20}
  train = get_dataset(dataclasses.replace(config, valid_batch_size=60), "data", "train")
  ((centred, _),) = train.evaluation_batches()
  np.testing.assert_allclose(np.mean(centred, axis=0), 0, atol=1e-3)
  # Without the shifts of the crops, half of the pictures of a batch are mirrored.
  monkeypatch.setattr("resnet.data.image_arrays.PADDING", 0)
  ((batch, _),) = train.training_batches(0).take(1)
  plain = {image.tobytes() for image in centred.numpy()}
  mirrored = {image[:, ::-1].tobytes() for image in centred.numpy()}
  kinds = [(image.tobytes() in plain, image.tobytes() in mirrored) for image in batch.numpy()]
  assert set(kinds) == {(True, False), (False, True)}


@pytest.mark.usefixtures("few")
def test_prepared_once_it_needs_no_source(run_module, tmp_path):
  source = write_source(tmp_path / "source")
  assert run_module(prepare_fashion_mnist, f"--source={source}", "--data_dir=data") is None
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
  assert run_module(prepare_fashion_mnist, "--source=nowhere", "--data_dir=data") is None
  assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


def cut(path):
  path.write_bytes(path.read_bytes()[:-20])


def change(path):
  content = gzip.decompress(path.read_bytes())
  path.write_bytes(gzip.compress(content[:-1] + b"\x01"))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
  ("name", "damage", "message"),
  [
    ("train-images-idx3-ubyte.gz", lambda path: path.unlink(), "train-images-idx3-ubyte.gz: No such file"),
    ("train-images-idx3-ubyte.gz", cut, "train-images-idx3-ubyte.gz is damaged"),
    ("t10k-labels-idx1-ubyte.gz", change, "is damaged, or is not Fashion-MNIST's t10k-labels-idx1-ubyte.gz"),
  ],
)
def test_damaged_files_are_one_line(run_module, tmp_path, name, damage, message):
  source = write_source(tmp_path / "source")
  damage(source / name)
  error = run_module(prepare_fashion_mnist, f"--source={source}", "--data_dir=data")
  assert error.startswith("prepare_fashion_mnist.py: error: ")
  assert message in error
  assert not (tmp_path / "data/fashion_mnist").exists()
