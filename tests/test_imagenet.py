"""The ImageNet data set: finding, parsing, order, resuming, sharding and errors."""

import collections
import itertools
import json
import os
import struct

import numpy as np
import pytest
import tensorflow as tf
from imagenet_helpers import (
  classic_example,
  jpeg,
  prepare_tfds,
  preprocess_for_evaluation,
  small_config,
  write_classic,
  write_records,
)

from resnet.data.imagenet import ImagenetDataset
from resnet.data.record_files import parse_classic
from resnet.utils.errors import UserError


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("records")
  write_classic(folder)  # 11 examples in 4 files
  return folder


def take(dataset, number, start_step=0, **shard):
  batches = dataset.training_batches(start_step, **shard)
  return [(images.numpy(), labels.numpy()) for images, labels in itertools.islice(batches, number)]


def labels_of(batches):
  return np.concatenate([labels for _, labels in batches])


def assert_same(left, right):
  for (left_images, left_labels), (right_images, right_labels) in zip(left, right, strict=True):
    np.testing.assert_array_equal(left_labels, right_labels)
    np.testing.assert_array_equal(left_images, right_images)


def test_parsing():
  record = classic_example(b"bytes", 17, [(0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 1.0000001)])
  encoded, label, boxes = parse_classic(tf.constant(record))
  assert encoded.numpy() == b"bytes"
  assert label.numpy() == 16
  assert label.dtype == tf.int64
  np.testing.assert_allclose(boxes, [[0.2, 0.1, 0.4, 0.3], [0.6, 0.5, 1, 0.7]], rtol=1e-6)
  assert boxes.numpy().max() <= 1
  assert parse_classic(tf.constant(classic_example(b"", 1)))[2].shape == (0, 4)


def test_evaluation_sees_everything_once(folder):
  dataset = ImagenetDataset(small_config(), folder, "train")
  batches = list(dataset.evaluation_batches())
  assert [len(labels) for _, labels in batches] == [5, 5, 1]
  for images, labels in batches:
    for image, label in zip(images, labels.numpy()):
      expected = preprocess_for_evaluation("inception", jpeg(label + 1), 16, 16)
      np.testing.assert_allclose(image, expected, atol=1e-5)
  assert sorted(labels_of(batches)) == list(range(11))
  assert len(list(dataset.evaluation_batches(2))) == 2
  assert dataset.num_examples == 11


@pytest.mark.parametrize("preprocessor", ["inception", "vgg"])
def test_training_batches(folder, preprocessor):
  dataset = ImagenetDataset(small_config(preprocessor=preprocessor), folder, "train")
  batches = dataset.training_batches(0)
  images, labels = batches.element_spec
  assert images == tf.TensorSpec([4, 16, 16, 3], tf.float32)
  assert labels == tf.TensorSpec([4], tf.int32)
  batches = take(dataset, 11)  # 44 examples are 4 epochs
  epochs = labels_of(batches).reshape(4, 11)
  for epoch in epochs:
    assert sorted(epoch) == list(range(11))
  assert len({tuple(epoch) for epoch in epochs}) == 4
  low, high = (-1, 1) if preprocessor == "inception" else (-124, 152)
  values = np.stack([images for images, _ in batches])
  assert low <= values.min() < 0 < values.max() <= high


def test_distortions_differ_between_epochs_and_seeds(folder):
  def images_of_label_0(seed):
    batches = take(ImagenetDataset(small_config(seed=seed, preprocessor="vgg"), folder, "train"), 6)
    return [image for images, labels in batches for image, label in zip(images, labels) if label == 0]

  first, second = images_of_label_0(1)[:2]
  assert np.abs(first - second).max() > 5
  assert np.abs(first - images_of_label_0(2)[0]).max() > 5


@pytest.mark.parametrize("preprocessor", ["inception", "vgg"])
def test_resuming_gives_the_same_batches(folder, preprocessor):
  dataset = ImagenetDataset(small_config(preprocessor=preprocessor), folder, "train")
  whole = take(dataset, 9)
  for start_step in (1, 3, 7) if preprocessor == "vgg" else (3,):
    tf.random.set_seed(start_step)  # TensorFlow's global seed must not matter
    assert_same(take(dataset, 9 - start_step, start_step), whole[start_step:])


@pytest.mark.parametrize("num_shards", [2, 4])
def test_workers_share_the_examples(folder, num_shards):
  config = small_config(batch_size=8, preprocessor="vgg")
  seen = []
  for shard in range(num_shards):
    dataset = ImagenetDataset(config, folder, "train")
    batches = take(dataset, 8, num_shards=num_shards, shard=shard)
    assert all(len(labels) == 8 // num_shards for _, labels in batches)
    seen.append(set(labels_of(batches)))
    resumed = take(dataset, 3, start_step=5, num_shards=num_shards, shard=shard)
    assert_same(resumed, batches[5:])
  assert sum(map(len, seen)) == 11
  assert set().union(*seen) == set(range(11))


def test_more_workers_than_files(tmp_path):
  write_classic(tmp_path, counts=(5, 4))
  config = small_config(batch_size=3, preprocessor="vgg")
  workers = []
  for shard in range(3):
    dataset = ImagenetDataset(config, tmp_path, "train")
    batches = take(dataset, 12, num_shards=3, shard=shard)
    assert_same(take(dataset, 5, start_step=7, num_shards=3, shard=shard), batches[7:])
    workers.append(labels_of(batches).reshape(4, 3))
  for epoch in range(4):
    assert sorted(np.concatenate([worker[epoch] for worker in workers])) == list(range(9))


def test_prepared_by_tensorflow_datasets(tmp_path):
  labels = {"train": [3, 999, 0, 5, 7, 8], "validation": [4, 6, 2]}
  prepare_tfds(tmp_path, labels)
  for data_dir in (tmp_path, tmp_path / "imagenet2012", next((tmp_path / "imagenet2012").iterdir())):
    for split, expected in labels.items():
      dataset = ImagenetDataset(small_config(), data_dir, split)
      batches = list(dataset.evaluation_batches())
      assert sorted(labels_of(batches)) == sorted(expected)
      assert dataset.num_examples == len(expected)
  for image, label in zip(*batches[0]):
    expected = preprocess_for_evaluation("inception", jpeg(label.numpy()), 16, 16)
    np.testing.assert_allclose(image, expected, atol=1e-5)
  dataset = ImagenetDataset(small_config(preprocessor="vgg"), tmp_path, "train")
  batches = take(dataset, 3)
  assert collections.Counter(labels_of(batches)) == collections.Counter(2 * labels["train"])
  assert_same(take(dataset, 1, start_step=2), batches[2:])


def test_missing_data(tmp_path):
  with pytest.raises(UserError, match=r"no ImageNet in .*nowhere.*no such folder"):
    ImagenetDataset(small_config(), tmp_path / "nowhere", "train")
  with pytest.raises(UserError, match=r"no ImageNet train split in .*train-00000-of-01024"):
    ImagenetDataset(small_config(), tmp_path, "train")
  write_classic(tmp_path)
  with pytest.raises(UserError, match=r"no ImageNet validation split .*validation-00000-of-00128"):
    ImagenetDataset(small_config(), tmp_path, "validation")


def test_missing_and_mixed_record_files(tmp_path):
  write_classic(tmp_path, counts=(1,) * 8)
  os.remove(tmp_path / "train-00003-of-00008")
  with pytest.raises(UserError, match=r"lacks train-00003-of-00008, 1 of 8"):
    ImagenetDataset(small_config(), tmp_path, "train")
  write_classic(tmp_path, counts=(1,))
  with pytest.raises(UserError, match=r"mixes train files of sets of 1, 8"):
    ImagenetDataset(small_config(), tmp_path, "train")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"preprocessor": "cifar"}, "preprocessor must be inception or vgg"),
    ({"num_channel": 1}, "num_channel must be 3"),
    ({"preprocessor": "vgg", "height": 320}, "height and width must be at most 256"),
  ],
)
def test_configurations_that_do_not_fit(folder, fields, message):
  with pytest.raises(UserError, match=message):
    ImagenetDataset(small_config(**fields), folder, "train")


def test_batch_that_does_not_divide(folder):
  with pytest.raises(UserError, match="batch_size must be a multiple of the 3 workers, got 4"):
    ImagenetDataset(small_config(), folder, "train").training_batches(0, num_shards=3)


def spoil(folder, record):
  """Four files of three examples, the second record of the third file being `record`."""
  write_classic(folder, counts=(3, 3, 3, 3))
  write_records(
    folder / "train-00002-of-00004", [classic_example(jpeg(1), 1), record, classic_example(jpeg(2), 2)]
  )


@pytest.mark.parametrize(
  ("record", "reason"),
  [
    (classic_example(jpeg(1)[:300], 1), "the picture is damaged"),
    (classic_example(b"", 1), "the picture is damaged"),
    (classic_example(jpeg(1), 0), r"label 0 is out of range 1\.\.1000"),
    (classic_example(jpeg(1), 1001), r"label 1001 is out of range 1\.\.1000"),
    (b"no example", "not an ImageNet example"),
  ],
)
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_a_bad_record_is_named(tmp_path, record, reason, mode):
  spoil(tmp_path, record)
  dataset = ImagenetDataset(small_config(preprocessor="vgg"), tmp_path, "train")
  batches = dataset.training_batches(0).take(3) if mode == "training" else dataset.evaluation_batches()
  with (
    pytest.raises(UserError, match=rf"train-00002-of-00004, record 1: {reason}") as caught,
    dataset.data_errors(),
  ):
    list(batches)
  assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named(tmp_path):
  write_classic(tmp_path, counts=(3, 3, 3, 3))
  path = tmp_path / "train-00002-of-00004"
  path.write_bytes(path.read_bytes()[:-20])
  dataset = ImagenetDataset(small_config(preprocessor="vgg"), tmp_path, "train")
  for batches in (dataset.training_batches(0).take(3), dataset.evaluation_batches()):
    with pytest.raises(UserError, match=r"train-00002-of-00004 is truncated.* record 2"), dataset.data_errors():
      list(batches)
  with pytest.raises(UserError, match=r"train-00002-of-00004 is truncated.* record 2"):
    dataset.training_batches(2)


def test_a_wrong_checksum_is_named(tmp_path):
  write_classic(tmp_path, counts=(3, 3, 3, 3))
  path = tmp_path / "train-00001-of-00004"
  data = bytearray(path.read_bytes())
  length = struct.unpack("<Q", data[:8])[0]
  data[length + 16 + 40] ^= 1  # within the second record
  path.write_bytes(data)
  dataset = ImagenetDataset(small_config(preprocessor="vgg"), tmp_path, "train")
  with pytest.raises(UserError, match=r"train-00001-of-00004 is damaged at record 1"), dataset.data_errors():
    list(dataset.evaluation_batches())


def test_other_errors_pass(folder):
  dataset = ImagenetDataset(small_config(), folder, "train")
  with pytest.raises(tf.errors.InvalidArgumentError), dataset.data_errors():
    tf.io.decode_jpeg(b"not of this data set")


def test_prepared_files_must_hold_what_their_description_says(tmp_path):
  prepare_tfds(tmp_path, {"train": [3, 4], "validation": [5]})
  (file,) = tmp_path.rglob("*-train.tfrecord-*")
  file.write_bytes(b"")
  with pytest.raises(UserError, match="train.tfrecord-.* has 0 bytes, but dataset_info.json says 2 examples"):
    ImagenetDataset(small_config(), tmp_path, "train")


# The description beside the records.


def describe(folder, **fields):
  (folder / "description.json").write_text(json.dumps({"classes": ["cat", "dog", "owl"]} | fields))


def test_the_folders_of_imagenet_to_gcs(tmp_path):
  write_classic(tmp_path / "train", "train")
  write_classic(tmp_path / "validation", "validation", counts=(2, 1))
  for split, count in (("train", 11), ("validation", 3)):
    assert ImagenetDataset(small_config(), tmp_path, split).num_examples == count


def test_pictures_instead_of_records_are_told_how_to_become_records(tmp_path):
  (tmp_path / "train/cat").mkdir(parents=True)
  (tmp_path / "train/cat/a.jpg").write_bytes(jpeg(0))
  with pytest.raises(
    UserError, match=r"python -m resnet.tools.build_imagenet_records makes record files of pic"
  ):
    ImagenetDataset(small_config(), tmp_path, "train")


def test_a_description_by_hand_is_enough(tmp_path):
  write_classic(tmp_path, counts=(3,))
  describe(tmp_path)
  assert ImagenetDataset(small_config(num_classes=3), tmp_path, "train").class_names == ("cat", "dog", "owl")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"classes": ["cat", "dog"]}, "num_classes is 3, but the data has 2 classes, see .*description.json; give"),
    ({"bytes": {"train": 7}}, r"the train record files in .* have \d+ bytes, but had 7 when they were made"),
    ({"classes": []}, "description.json must be like"),
    ({"classes": "cat"}, "description.json must be like"),
    ({"classes": ["cat", "dog", 3]}, "description.json must be like"),
    ({"bytes": 7}, "description.json must be like"),
  ],
)
def test_data_that_does_not_fit_its_description_is_refused(tmp_path, fields, message):
  write_classic(tmp_path, counts=(3,))
  describe(tmp_path, **fields)
  with pytest.raises(UserError, match=message):
    ImagenetDataset(small_config(num_classes=3), tmp_path, "train")


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "[" * 10**5])
def test_a_damaged_description_is_named(tmp_path, text):
  write_classic(tmp_path, counts=(3,))
  (tmp_path / "description.json").write_text(text)
  with pytest.raises(UserError, match=r"description.json (is not JSON|must be like)"):
    ImagenetDataset(small_config(num_classes=3), tmp_path, "train")
