"""Splits, augmentation and batches, eagerly and in tf.data."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from resnet.configs import get_config
from resnet.data import get_dataset, splits
from resnet.data.digits import load_digits
from resnet.data.get_dataset import held_out_indices
from resnet.data.image_arrays import ImageArrays, crop_and_flip, random_crops, shuffled_indices


def take(dataset, count):
  return [(x.numpy(), y.numpy()) for x, y in dataset.take(count)]


def make_arrays(num_examples=23, flip=True, **fields):
  """Images whose pixels tell which example they are of."""
  config = dataclasses.replace(get_config("resnet-test"), **{"batch_size": 10, **fields})
  images = np.broadcast_to(np.arange(num_examples)[:, None, None, None], (num_examples, 32, 32, 3))
  return ImageArrays(config, images.astype(np.uint8), np.arange(num_examples), np.zeros([32, 32, 3]), flip)


def test_splits():
  assert splits(validation=False) == ("train", "test")
  assert splits(validation=True) == ("traintrain", "trainval")
  held_out, rest = held_out_indices(50000)
  order = np.arange(50000)
  np.random.RandomState(0).shuffle(order)
  np.testing.assert_array_equal(held_out, order[:5000])
  np.testing.assert_array_equal(rest, order[5000:])


def test_digits():
  data = load_digits()
  (train, train_labels), (test, test_labels) = data["train"], data["test"]
  assert (train.shape, test.shape) == ((1500, 32, 32, 3), (297, 32, 32, 3))
  assert train.dtype == np.uint8
  assert train.max() == 255
  assert set(train_labels) == set(test_labels) == set(range(10))
  together = np.concatenate([train, test]).reshape(1797, -1)
  assert len(np.unique(together, axis=0)) > 1790, "the splits must not overlap"
  config = dataclasses.replace(get_config("resnet-32"), dataset="digits")
  sizes = {
    split: get_dataset(config, "", split).num_examples for split in ("train", "traintrain", "trainval", "test")
  }
  assert sizes == {"train": 1500, "traintrain": 1350, "trainval": 150, "test": 297}


def test_mean_of_the_training_images_is_subtracted():
  config = dataclasses.replace(get_config("resnet-32"), dataset="digits", valid_batch_size=1500)
  ((images, _),) = take(get_dataset(config, "", "train").evaluation_batches(), 2)
  np.testing.assert_allclose(images.mean(0), 0, atol=1e-3)
  ((test_images, _),) = take(get_dataset(config, "", "test").evaluation_batches(), 2)
  mean = load_digits()["train"][0].mean(0)
  np.testing.assert_allclose(test_images, load_digits()["test"][0] - mean, atol=1e-3)


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_crop_and_flip_by_hand(wrap):
  images = np.random.RandomState(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
  offsets, flips = np.array([[2, 2], [0, 4], [3, 1]], np.int32), np.array([False, False, True])
  actual = wrap(crop_and_flip)(tf.constant(images), tf.constant(offsets), tf.constant(flips)).numpy()
  np.testing.assert_array_equal(actual[0], images[0])
  np.testing.assert_array_equal(actual[1, 2:, :-2], images[1, :-2, 2:])
  assert not actual[1, :2].any()
  assert not actual[1, :, -2:].any()
  np.testing.assert_array_equal(actual[2, :-1, :-1], images[2, 1:, :-1][:, ::-1])


def test_random_crops_cover_all_offsets_and_both_sides():
  offsets, flips = random_crops(tf.constant(3), 5000, seed=0)
  np.testing.assert_array_equal(np.unique(offsets, axis=0), [[i, j] for i in range(5) for j in range(5)])
  assert 0.45 < np.mean(flips) < 0.55
  assert np.any(offsets != random_crops(tf.constant(4), 5000, seed=0)[0])
  assert np.any(offsets != random_crops(tf.constant(3), 5000, seed=1)[0])


def test_every_epoch_is_another_permutation():
  def indices(count, **kwargs):
    return np.array(list(shuffled_indices(num_examples=200, **kwargs).take(count).as_numpy_iterator()))

  order = indices(2000, seed=0, start=0)
  epochs = order.reshape(10, 200)
  np.testing.assert_array_equal(np.sort(epochs), np.broadcast_to(np.arange(200), (10, 200)))
  for one, other in itertools.combinations([np.arange(200), *epochs, indices(200, seed=1, start=0)], 2):
    assert np.mean(one == other) < 0.05, "as two random orders would have it"
  np.testing.assert_array_equal(indices(1000, seed=0, start=777), order[777:1777])


def test_batches_depend_on_seed_and_step_alone():
  data = make_arrays()
  batches = take(data.training_batches(0), 5)
  assert batches[0][0].shape == (10, 32, 32, 3)
  assert data.training_batches(0).element_spec[0].shape == (10, 32, 32, 3)
  for (x, y), (x_again, y_again) in zip(batches[3:], take(data.training_batches(3), 2), strict=True):
    np.testing.assert_array_equal(x, x_again)
    np.testing.assert_array_equal(y, y_again)
  for x, y in batches:
    np.testing.assert_array_equal(x[:, 16, 16, 0], y)


def test_tf_data_augments_as_eager_code_does():
  ((x, y),) = take(make_arrays().training_batches(4), 1)
  index = next(iter(shuffled_indices(23, seed=0, start=40).batch(10)))
  offsets, flips = random_crops(tf.constant(4), 10, seed=0)
  images = tf.cast(tf.broadcast_to(index[:, None, None, None], (10, 32, 32, 3)), tf.float32)
  np.testing.assert_array_equal(y, index)
  np.testing.assert_array_equal(x, crop_and_flip(images, offsets, flips))


def test_shards_are_parts_of_the_batch():
  data = make_arrays()
  whole = take(data.training_batches(1), 1)[0]
  parts = [take(data.training_batches(1, num_shards=2, shard=shard), 1)[0] for shard in (0, 1)]
  for tensor, pieces in zip(whole, zip(*parts), strict=True):
    np.testing.assert_array_equal(tensor, np.concatenate(pieces))


def test_digits_are_shifted_but_never_mirrored():
  config = dataclasses.replace(get_config("resnet-32"), dataset="digits", batch_size=300)
  data = get_dataset(config, "", "train")
  ((x, _),) = take(data.training_batches(0), 1)
  index = next(iter(shuffled_indices(1500, seed=0, start=0).batch(300)))
  images = load_digits()["train"][0]
  centred = tf.constant(images[index.numpy()] - images.mean(0).astype(np.float32))
  offsets, _ = random_crops(tf.constant(0), 300, seed=0)
  assert len(np.unique(offsets)) == 5
  np.testing.assert_allclose(x, crop_and_flip(centred, offsets, tf.zeros([300], tf.bool)), atol=1e-4)


def test_evaluation_sees_every_example_once():
  data = make_arrays(valid_batch_size=10)
  batches = take(data.evaluation_batches(), 10)
  assert [len(y) for _, y in batches] == [10, 10, 3]
  np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), np.arange(23))
  assert [len(y) for _, y in take(data.evaluation_batches(num_batches=2), 10)] == [10, 10]


@pytest.fixture(scope="module")
def prepared_cifar(tmp_path_factory):
  """The real builders' files of 30 and 10 pictures, in another order than the archives'."""
  folder = tmp_path_factory.mktemp("data")
  random = np.random.RandomState(0)

  def examples(prefix, count, **extra):
    for index in range(count):
      key = f"{prefix}_{index:05d}"
      image = random.randint(0, 256, (32, 32, 3)).astype(np.uint8)
      yield key, {"id": key, "image": image, "label": index % 10, **extra}

  for name, extra in (("cifar10", {}), ("cifar100", {"coarse_label": 0})):
    builder = tfds.builder(name, data_dir=str(folder))
    builder._split_generators = lambda _, extra=extra: {
      "train": examples("train", 30, **extra),
      "test": examples("test", 10, **extra),
    }
    builder.download_and_prepare()
  return folder


@pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
def test_cifar_is_read_in_the_order_of_its_archives(prepared_cifar, name):
  config = dataclasses.replace(get_config("resnet-32"), dataset=name, num_classes=100)
  for split, size in (("train", 30), ("test", 10)):
    data = get_dataset(config, prepared_cifar, split)
    labels = np.concatenate([y for _, y in take(data.evaluation_batches(), 10)])
    np.testing.assert_array_equal(labels, np.arange(size) % 10)
  held_out, _ = held_out_indices(30)
  ((_, labels),) = take(get_dataset(config, prepared_cifar, "trainval").evaluation_batches(), 2)
  np.testing.assert_array_equal(labels, held_out % 10)


def test_data_that_does_not_fit_is_refused(prepared_cifar):
  with pytest.raises(ValueError, match=r"images of shape \[32, 32, 3\].*takes \[8, 8, 3\]"):
    get_dataset(get_config("revnet-test"), prepared_cifar, "train")
  config = dataclasses.replace(get_config("resnet-32"), num_classes=5)
  with pytest.raises(ValueError, match="cifar-10 has 10 classes, but num_classes is 5"):
    get_dataset(config, prepared_cifar, "train")
