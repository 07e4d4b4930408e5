"""CIFAR and Fashion-MNIST from what a folder has of them: the same images in the same order, whatever it is."""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_build_imagenet_records import add

from resnet.configs import get_config
from resnet.data import get_dataset, published_files
from resnet.data.images import TFDS_NAMES, load_images
from resnet.tools import prepare_data
from resnet.utils.errors import UserError

COUNTS = {
  "cifar-10": {"train": 50, "test": 10},
  "cifar-100": {"train": 50, "test": 10},
  "fashion-mnist": {"train": 60, "test": 20},
}
SPLITS = ("train", "test")


def pictures(name, split):
  """[N, 32, 32, 3] or [N, 28, 28, 1] uint8 of noise, and labels [N]."""
  count = COUNTS[name][split]
  random = np.random.RandomState(count)
  shape = (28, 28, 1) if name == "fashion-mnist" else (32, 32, 3)
  return random.randint(0, 256, (count, *shape)).astype(np.uint8), (np.arange(count) * 7 % 10).astype(np.uint8)


@pytest.fixture(autouse=True)
def few(monkeypatch):
  """The published sets have a few images of noise instead of their photographs, and there is no network."""
  digests = {name: hashlib.sha256(content).hexdigest() for name, content in fashion_mnist_files().items()}
  assert list(digests) == list(published_files.FASHION_MNIST_DIGESTS)
  monkeypatch.setattr(published_files, "FASHION_MNIST_DIGESTS", digests)
  monkeypatch.setattr(published_files, "COUNTS", COUNTS)

  def no_network(*_, **__):
    raise OSError("no route to host\nand more")

  monkeypatch.setattr("urllib.request.urlopen", no_network)
  load_images.cache_clear()
  yield
  load_images.cache_clear()


def fashion_mnist_files():
  """The four files, unpacked: a header of big-endian numbers, then the bytes of pictures or labels."""
  files = {}
  for split, prefix in zip(SPLITS, ("train", "t10k")):
    images, labels = pictures("fashion-mnist", split)
    header = np.array([2051, len(images), 28, 28], ">i4").tobytes()
    files[f"{prefix}-images-idx3-ubyte"] = header + images.tobytes()
    files[f"{prefix}-labels-idx1-ubyte"] = np.array([2049, len(labels)], ">i4").tobytes() + labels.tobytes()
  return files


def rows(images):
  """The [n, 3072] of the published files: red, green, blue."""
  return np.stack([np.concatenate([image[..., channel].ravel() for channel in range(3)]) for image in images])


def python_2(data, labels, key):
  """What Python 2's cPickle wrote by protocol 2, instruction by instruction."""

  def string(text):
    return b"U" + bytes([len(text)]) + text

  shape = b"K\x01" + b"M" + struct.pack("<H", len(data)) + b"M\x00\x0c\x86"
  dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
  content = b"T" + struct.pack("<I", data.size) + data.tobytes()
  empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
  array = empty + b"(" + shape + dtype + b"\x89" + content + b"tb"
  numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
  return b"\x80\x02}(" + string(b"data") + array + string(key) + numbers + b"u."


def python_3(protocol):
  """A batch as somebody writes it who repacks the set."""
  return lambda data, labels, key: pickle.dumps({key.decode(): labels, "data": data}, protocol=protocol)


def binary(data, labels, key):
  coarse = b"\x13" if key == b"fine_labels" else b""
  return b"".join(coarse + bytes([label]) + row.tobytes() for row, label in zip(data, labels))


def cifar_files(name, write):
  """The files of the published form that `write` makes."""
  suffix = ".bin" if write is binary else ""
  files = {}
  for split in SPLITS:
    images, labels = pictures(name, split)
    if name == "cifar-100":
      files[split + suffix] = write(rows(images), labels, b"fine_labels")
    elif split == "test":
      files["test_batch" + suffix] = write(rows(images), labels, b"labels")
    else:
      for k in range(5):
        part = slice(10 * k, 10 * k + 10)
        files[f"data_batch_{k + 1}{suffix}"] = write(rows(images[part]), labels[part], b"labels")
  return files


def write_folder(folder, files):
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (folder / name).write_bytes(content)


def write_tar(path, files, mode="w:gz", folder="cifar-10-batches-py/"):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, mode) as tar:
    for name, content in files.items():
      add(tar, folder + name, content)


def check(name, data_dir):
  """What is read is what was written, in its order."""
  loaded = load_images(name, str(data_dir))
  for split in SPLITS:
    images, labels = pictures(name, split)
    np.testing.assert_array_equal(loaded[split][0], images)
    np.testing.assert_array_equal(loaded[split][1], labels)


WRITERS = {"python 2": python_2, "protocol 2": python_3(2), "protocol 5": python_3(5), "binary": binary}


@pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_form_packed_or_not(tmp_path, name, writer):
  files = cifar_files(name, WRITERS[writer])
  write_tar(tmp_path / "packed/any name.tar.gz", files)
  check(name, tmp_path / "packed")
  write_folder(tmp_path / "unpacked/any name", files)
  check(name, tmp_path / "unpacked")


@pytest.mark.parametrize(
  "place",
  [
    "cifar-10-batches-py/",
    "cifar-10/cifar-10-batches-py/",
    "./",
    "downloads/extracted/TAR_GZ.cs.toronto.edu/cifar-10-batches-bin/",
    "cifar-10/cifar-10-python.tar.gz",
    "downloads/cs.toronto.edu_kriz_cifar-10-binaryXYZ.tar.gz",
    "a/b/cifar.tar",
    "cifar-10-python.tgz",
    "cifar-10-python.tar(1).bz2",
    "cifar.tar.xz",
  ],
)
def test_where_people_have_it(tmp_path, place):
  files = cifar_files("cifar-10", binary if "bin" in place else python_2)
  if place.endswith("/"):
    write_folder(tmp_path / place, files)
  else:
    compression = {".bz2": "bz2", ".tar": "", ".xz": "xz"}.get(os.path.splitext(place)[1], "gz")
    write_tar(tmp_path / place, files, f"w:{compression}", folder="./")
  check("cifar-10", tmp_path)


def test_the_archive_itself_may_be_named(tmp_path):
  write_tar(tmp_path / "cifar-10-python.tar.gz", cifar_files("cifar-10", python_2))
  check("cifar-10", tmp_path / "cifar-10-python.tar.gz")


def test_the_original_has_both_sets_in_folders_beside_each_other(tmp_path):
  for name in ("cifar-10", "cifar-100"):
    write_folder(tmp_path / name / f"{name}-python", cifar_files(name, python_2))
  check("cifar-10", tmp_path)
  check("cifar-100", tmp_path)


def prepare(name, data_dir, source):
  """Has TensorFlow Datasets write its form, from the published files in `source`."""

  class Downloaded:
    def download_and_extract(self, urls):
      return (
        {key: os.path.join(source, os.path.basename(url)) for key, url in urls.items()}
        if isinstance(urls, dict)
        else source
      )

  builder = tfds.builder(TFDS_NAMES[name], data_dir=str(data_dir))
  split_generators = builder._split_generators
  builder._split_generators = lambda _: split_generators(Downloaded())
  builder.download_and_prepare()


@pytest.mark.parametrize("name", TFDS_NAMES)
def test_files_give_what_tensorflow_datasets_makes_of_them(tmp_path, monkeypatch, name):
  source = tmp_path / "source"
  if name == "fashion-mnist":
    monkeypatch.setattr(tfds.image_classification.mnist, "_TRAIN_EXAMPLES", COUNTS[name]["train"])
    monkeypatch.setattr(tfds.image_classification.mnist, "_TEST_EXAMPLES", COUNTS[name]["test"])
    packed = {f"{file}.gz": content for file, content in fashion_mnist_files().items()}
    write_folder(source, packed)
    write_folder(tmp_path / "files", {file: gzip.compress(content) for file, content in packed.items()})
  else:
    folder = source / ("cifar-10-batches-bin" if name == "cifar-10" else "cifar-100-binary")
    write_folder(folder, cifar_files(name, binary))
    texts = {"cifar-10": {"batches.meta": 10}, "cifar-100": {"coarse_label_names": 20, "fine_label_names": 100}}
    for file, count in texts[name].items():
      (folder / f"{file}.txt").write_text("".join(f"class {number}\n" for number in range(count)))
    write_folder(tmp_path / "files", cifar_files(name, python_2))
  prepare(name, tmp_path / "prepared", str(source))
  expected = load_images(name, str(tmp_path / "prepared"))
  actual = load_images(name, str(tmp_path / "files"))
  for split in SPLITS:
    for ours, theirs in zip(actual[split], expected[split], strict=True):
      np.testing.assert_array_equal(ours, theirs)


def test_fashion_mnist_fits_the_cifar_networks(tmp_path, monkeypatch):
  write_folder(
    tmp_path / "fashion", {f"{name}.gz": gzip.compress(data) for name, data in fashion_mnist_files().items()}
  )
  images, labels = load_images("fashion-mnist", str(tmp_path))["train"]
  assert (images.shape, images.dtype) == ((60, 32, 32, 3), np.uint8)
  originals, original_labels = pictures("fashion-mnist", "train")
  by_content = {image.tobytes(): label for image, label in zip(originals, original_labels, strict=True)}
  for image, label in zip(images, labels, strict=True):
    assert by_content[image[2:30, 2:30, 0].tobytes()] == label
    assert (image == image[..., :1]).all(), "three equal channels"
    assert image.sum() == 3 * image[2:30, 2:30, 0].astype(int).sum(), "the border is black"

  config = dataclasses.replace(get_config("revnet-38"), dataset="fashion-mnist", batch_size=10)
  sizes = {
    split: get_dataset(config, tmp_path, split).num_examples
    for split in ("train", "traintrain", "trainval", "test")
  }
  assert sizes == {"train": 60, "traintrain": 54, "trainval": 6, "test": 20}
  train = get_dataset(dataclasses.replace(config, valid_batch_size=60), tmp_path, "train")
  ((centred, _),) = train.evaluation_batches()
  np.testing.assert_allclose(np.mean(centred, axis=0), 0, atol=1e-3)
  # Without the shifts of the crops, half of the pictures of a batch are mirrored.
  monkeypatch.setattr("resnet.data.image_arrays.PADDING", 0)
  ((batch, _),) = train.training_batches(0).take(1)
  plain = {image.tobytes() for image in centred.numpy()}
  mirrored = {image[:, ::-1].tobytes() for image in centred.numpy()}
  kinds = [(image.tobytes() in plain, image.tobytes() in mirrored) for image in batch.numpy()]
  assert set(kinds) == {(True, False), (False, True)}


# What is not as published.


def test_another_checksum_is_a_warning(tmp_path, caplog, monkeypatch):
  path = tmp_path / "cifar-10-python.tar.gz"
  write_tar(path, cifar_files("cifar-10", python_2))
  check("cifar-10", tmp_path)
  md5 = hashlib.md5(path.read_bytes()).hexdigest()
  assert f"{path} is used, but is not the published cifar-10-python.tar.gz: its MD5 is {md5}" in caplog.text
  caplog.clear()
  python, other = published_files.FORMS["cifar-10"]
  forms = published_files.FORMS | {"cifar-10": (dataclasses.replace(python, md5=md5), other)}
  monkeypatch.setattr(published_files, "FORMS", forms)
  load_images.cache_clear()
  check("cifar-10", tmp_path)
  assert not caplog.text


class Call:
  """Pickled, it asks for a call."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize(
  ("function", "arguments", "named"),
  [
    (os.system, ["touch harmed"], "system"),
    (eval, ["open('harmed', 'w')"], "eval"),
    (np.save, ["harmed", [1]], "numpy.save"),
    (getattr, ["text", "upper"], "getattr"),
  ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_asks_for_more_than_arrays_is_refused(
  tmp_path, monkeypatch, function, arguments, named, protocol
):
  monkeypatch.chdir(tmp_path)
  files = cifar_files("cifar-10", python_2)
  files["data_batch_3"] = pickle.dumps({b"data": Call(function, *arguments), b"labels": []}, protocol=protocol)
  write_tar(tmp_path / "data/cifar-10-python.tar.gz", files)
  with pytest.raises(UserError, match=f"passed over: .*python.tar.gz is not cifar-10: .* asks for .*{named}"):
    load_images("cifar-10", "data")
  assert os.listdir(tmp_path) == ["data"]


def test_an_array_of_objects_is_refused(tmp_path):
  data = pickle.dumps({"data": np.array([[1]], object), "labels": [1]})
  write_folder(tmp_path, cifar_files("cifar-10", python_2) | {"test_batch": data})
  with pytest.raises(UserError, match="asks for an array of 'O8', which are no numbers"):
    load_images("cifar-10", str(tmp_path))


def test_codecs_are_not_run(tmp_path):
  data = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00bz2__\x86R."
  write_folder(tmp_path, cifar_files("cifar-10", python_2) | {"test_batch": data})
  with pytest.raises(UserError, match="asks for the encoding 'bz2__', which no array needs"):
    load_images("cifar-10", str(tmp_path))


def changed(**changes):
  """Batches of which some are replaced, or left out where None."""
  files = cifar_files("cifar-10", python_2) | changes
  return {name: content for name, content in files.items() if content is not None}


def batch(shape=(10, 3072), dtype="uint8", labels=(1,) * 10):
  return pickle.dumps({"data": np.zeros(shape, dtype), "labels": list(labels)})


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data_batch_4": None}, "data_batch_4 is missing"),
    ({"data_batch_1": batch((9, 3072), labels=(1,) * 9)}, "it has 49 train images instead of 50"),
    ({"data_batch_1": batch(labels=(1,) * 9)}, r"a batch has 10 images and labels of shape (9,)"),
    ({"test_batch": batch(labels=(10,) * 10)}, "its labels are 10..10 instead of 0..9"),
    ({"test_batch": batch(labels=(-1,) * 10)}, "its labels are -1..-1 instead of 0..9"),
    ({"test_batch": batch(labels="abcdefghij")}, "a batch has 10 images and labels of shape (10,)"),
    ({"test_batch": batch((10, 3073))}, "images are of shape (10, 3073) and type uint8"),
    ({"test_batch": batch(dtype="float32")}, "images are of shape (10, 3072) and type float32"),
    ({"test_batch": pickle.dumps({"data": 1})}, "a batch cannot be read"),
    ({"test_batch": pickle.dumps([1])}, "a batch cannot be read"),
    ({"test_batch": b""}, "a batch cannot be read"),
    ({"test_batch": cifar_files("cifar-10", python_2)["test_batch"][:-900]}, "a batch cannot be read"),
    ({"test_batch": cifar_files("cifar-100", python_2)["test"]}, "a batch has no 'labels'"),
  ],
)
def test_what_is_damaged_is_named(tmp_path, changes, message):
  write_folder(tmp_path / "cifar", changed(**changes))
  with pytest.raises(UserError) as error:
    load_images("cifar-10", str(tmp_path))
  assert f"passed over: {tmp_path / 'cifar'} is not cifar-10: " in str(error.value)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_archive_is_named(tmp_path, share):
  write_tar(tmp_path / "cifar-10-binary.tar.gz", cifar_files("cifar-10", binary))
  whole = (tmp_path / "cifar-10-binary.tar.gz").read_bytes()
  (tmp_path / "cifar-10-binary.tar.gz").write_bytes(whole[: int(share * len(whole))])
  with pytest.raises(UserError, match=r"passed over: .*cifar-10-binary.tar.gz is no intact archive: \S"):
    load_images("cifar-10", str(tmp_path))


def test_the_checksum_at_the_end_of_an_archive_is_read(tmp_path):
  path = tmp_path / "cifar-10-binary.tar.gz"
  write_tar(path, cifar_files("cifar-10", binary))
  data = bytearray(path.read_bytes())
  data[-6] ^= 1
  path.write_bytes(data)
  with pytest.raises(UserError, match="cifar-10-binary.tar.gz is no intact archive: CRC check failed"):
    load_images("cifar-10", str(tmp_path))


def test_a_file_of_half_a_record_is_named(tmp_path):
  write_folder(tmp_path, cifar_files("cifar-100", binary) | {"test.bin": bytes(3074 * 10 - 1)})
  with pytest.raises(UserError, match="is not cifar-100: 30739 bytes are no records of 3074"):
    load_images("cifar-100", str(tmp_path))


@pytest.mark.parametrize("damage", ["missing", "changed", "cut"])
def test_fashion_mnist_is_known_by_its_digests(tmp_path, damage):
  files = {f"{name}.gz": gzip.compress(content) for name, content in fashion_mnist_files().items()}
  name = "t10k-labels-idx1-ubyte.gz"
  if damage == "missing":
    del files[name]
  elif damage == "changed":
    files[name] = gzip.compress(gzip.decompress(files[name])[:-1] + b"\x01")
  else:
    files[name] = files[name][:-9]
  write_folder(tmp_path, files)
  reason = {
    "missing": "t10k-labels-idx1-ubyte is missing",
    "changed": "the files are damaged or another data set's",
    "cut": "t10k-labels-idx1-ubyte.gz is damaged",
  }[damage]
  with pytest.raises(UserError, match=f"fashion-mnist is not in .*passed over: .*{reason}"):
    load_images("fashion-mnist", str(tmp_path))


def test_a_whole_archive_after_a_damaged_one_is_used(tmp_path, caplog):
  write_folder(tmp_path / "cifar-10-batches-py", changed(data_batch_2=None))
  write_tar(tmp_path / "deeper/cifar-10-binary.tar.gz", cifar_files("cifar-10", binary))
  check("cifar-10", tmp_path)
  assert (
    f"passed over: {tmp_path / 'cifar-10-batches-py'} is not cifar-10: data_batch_2 is missing" in caplog.text
  )


def test_other_data_in_the_folder_is_left_alone(tmp_path, caplog):
  write_folder(tmp_path / "cifar-100", {"train.txt": b"", "._train": b"", "meta": b"x"})
  write_folder(tmp_path / "downloads", {"cifar-10-binary.tar.gz.INFO": b"{}"})
  write_tar(tmp_path / "pictures.tar", {f"{number}.jpg": b"1" for number in range(100)}, "w")
  (tmp_path / "train").mkdir()
  for number in range(101):
    write_folder(tmp_path / f"imagenet/n{number}", {"test": b"no batch"})
  with pytest.raises(UserError) as error:
    load_images("cifar-100", str(tmp_path))
  assert "passed over" not in str(error.value)


# The way out.


def test_prepared_data_comes_first(tmp_path, monkeypatch):
  write_folder(tmp_path / "source/cifar-10-batches-bin", cifar_files("cifar-10", binary))
  (tmp_path / "source/cifar-10-batches-bin/batches.meta.txt").write_text("".join(f"{k}\n" for k in range(10)))
  prepare("cifar-10", tmp_path / "data", str(tmp_path / "source"))
  files = {
    name: content[:1] + bytes(3072) + content[3073:]
    for name, content in cifar_files("cifar-10", binary).items()
  }
  write_folder(tmp_path / "data", files)
  check("cifar-10", tmp_path / "data")
  for record in (tmp_path / "data/cifar10").rglob("*train.tfrecord*"):
    record.write_bytes(record.read_bytes()[:-100])
  load_images.cache_clear()
  with pytest.raises(UserError, match="cifar-10 in .*cifar10/3.* is damaged .*; delete this folder"):
    load_images("cifar-10", str(tmp_path / "data"))


def test_what_is_not_there_is_downloaded_and_kept(tmp_path, monkeypatch):
  write_folder(tmp_path / "source/cifar-10-batches-bin", cifar_files("cifar-10", binary))
  (tmp_path / "source/cifar-10-batches-bin/batches.meta.txt").write_text("".join(f"{k}\n" for k in range(10)))
  monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO())
  downloaded = []

  def download(_, url):
    downloaded.append(url)
    return str(tmp_path / "source")

  monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", download)
  for _ in range(2):
    check("cifar-10", tmp_path / "data")
    load_images.cache_clear()
  assert downloaded == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("cifar-10", "put cifar-10-python.tar.gz or cifar-10-binary.tar.gz into data"),
    ("cifar-100", "put cifar-100-python.tar.gz or cifar-100-binary.tar.gz into data"),
    ("fashion-mnist", "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images"),
  ],
)
def test_without_a_network_the_error_names_the_file_and_its_place(run_module, name, wanted):
  error = run_module(prepare_data, f"--dataset={name}")
  assert f"error: {name} is not in data and could not be downloaded (no route to host); {wanted}" in error
  assert "--dataset digits needs no download" in error
  assert "\n" not in error


def test_a_whole_set_is_ready(run_module, tmp_path, capsys):
  write_tar(tmp_path / "data/cifar-100-python.tar.gz", cifar_files("cifar-100", python_2))
  assert run_module(prepare_data, "--dataset=cifar-100") is None
  assert "cifar-100 is ready in data: 50 train images and 10 test images" in capsys.readouterr().out
