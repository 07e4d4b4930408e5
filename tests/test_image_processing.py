"""The inception and vgg preprocessing, against tf.image and against each other."""

import numpy as np
import pytest
import tensorflow as tf
from imagenet_helpers import cmyk_jpeg, jpeg, picture, preprocess_for_evaluation

from resnet.data import image_processing
from resnet.data.color_jitter import jitter_from_uniform, mirror_and_jitter
from resnet.data.image_processing import preprocess_for_training

NO_BOXES = tf.zeros([0, 4])


def training(encoded, preprocessor="inception", boxes=NO_BOXES, seed=(1, 2), turn=0, size=(24, 16)):
  return preprocess_for_training(
    preprocessor, encoded, boxes, tf.constant(seed, tf.int64), tf.constant(turn, tf.int64), *size
  )


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("draws", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0.1, 1), (1, 0.2, 0.9, 0.3)])
def test_jitter_equals_tf_image(order, mirror, draws):
  image = np.random.RandomState(3).uniform(-20, 275, [224, 224, 3]).astype(np.float32)
  image[0, 0], image[0, 1], image[0, 2], image[0, 3] = 0, 255, 100, (200, 100, 100)
  draws = tf.constant(draws, tf.float32)
  jitter = jitter_from_uniform(draws)
  expected = tf.image.flip_left_right(image) if mirror else tf.constant(image)
  expected = tf.image.adjust_brightness(expected / 255, jitter.brightness)
  if order == 1:
    expected = tf.image.adjust_contrast(expected, jitter.contrast)
  expected = tf.image.adjust_saturation(expected, jitter.saturation)
  expected = tf.image.adjust_hue(expected, jitter.hue)
  if order == 0:
    expected = tf.image.adjust_contrast(expected, jitter.contrast)
  expected = 2 * tf.clip_by_value(expected, 0, 1) - 1
  np.testing.assert_allclose(mirror_and_jitter(image, draws, order, mirror), expected, atol=2e-4)


def test_jitter_covers_the_ranges_of_inception():
  low, high = (np.array(jitter_from_uniform(tf.fill([4], float(bound)))) for bound in (0, 1))
  np.testing.assert_allclose(low, [-32 / 255, 0.5, -0.2, 0.5], rtol=1e-6)
  np.testing.assert_allclose(high, [32 / 255, 1.5, 0.2, 1.5], rtol=1e-6)


@pytest.mark.parametrize("preprocessor", ["inception", "vgg"])
def test_same_pixels_eagerly_and_in_a_dataset(preprocessor):
  encoded = [
    jpeg(0, 300, 340),
    jpeg(1, 280, 270),
    tf.io.encode_png(picture(2, 290, 300)).numpy(),
    jpeg(3, 20, 30),
  ]
  boxes = tf.constant([[0.2, 0.1, 0.9, 0.8], [0.4, 0.4, 0.6, 0.6]])

  def both(index, data):
    seed = tf.stack([tf.constant(7, tf.int64), index])
    return (
      preprocess_for_training(preprocessor, data, boxes, seed, index, 24, 16),
      preprocess_for_evaluation(preprocessor, data, 24, 16),
    )

  in_dataset = list(tf.data.Dataset.from_tensor_slices(encoded).enumerate().map(both, num_parallel_calls=2))
  for index, images in enumerate(in_dataset):
    eager = both(tf.constant(index, tf.int64), tf.constant(encoded[index]))
    for left, right in zip(images, eager):
      assert left.shape == (24, 16, 3)
      np.testing.assert_allclose(left, right, atol=1e-4 * np.ptp(right))


@pytest.mark.parametrize("preprocessor", ["inception", "vgg"])
def test_the_seed_decides(preprocessor):
  encoded = jpeg(4, 300, 340)
  np.testing.assert_array_equal(training(encoded, preprocessor), training(encoded, preprocessor))
  assert np.abs(training(encoded, preprocessor) - training(encoded, preprocessor, seed=(1, 3))).max() > 0.1


def test_methods_and_orders_in_turn(monkeypatch):
  monkeypatch.setattr(
    image_processing,
    "mirror_and_jitter",
    lambda image, draws, order, mirror: tf.cast(image, tf.float32) + 1000.0 * order,
  )
  encoded = tf.io.encode_png(picture(5, 37, 53)).numpy()  # no loss: exactly comparable
  boxes = tf.constant([[0.0, 0.0, 1.0, 1.0]])
  begin, extent = [], []
  sample = tf.image.stateless_sample_distorted_bounding_box

  def recording(*args, **kwargs):
    result = sample(*args, **kwargs)
    begin.append(result[0].numpy())
    extent.append(result[1].numpy())
    return result

  monkeypatch.setattr(tf.image, "stateless_sample_distorted_bounding_box", recording)
  for turn, method in enumerate(["bilinear", "nearest", "bicubic", "area"] * 2):
    result = training(encoded, boxes=boxes, turn=turn)
    (top, left, _), (height, width, _) = begin[-1], extent[-1]
    crop = picture(5, 37, 53)[top : top + height, left : left + width]
    expected = tf.compat.v1.image.resize(crop[np.newaxis].astype(np.float32), [24, 16], method)[0]
    np.testing.assert_allclose(result, expected + 1000.0 * (turn % 2), atol=1e-2)


def test_crops_cover_the_box():
  image = np.zeros([200, 200, 3], np.uint8)
  image[150:170, 20:40] = 255
  encoded = tf.io.encode_png(image)
  spot = tf.constant([[0.75, 0.1, 0.85, 0.2]])
  # Area interpolation (turn 3) drops no pixel; without the spot the crop is of one colour.
  with_box = [np.ptp(training(encoded, boxes=spot, seed=(0, seed), turn=3)) for seed in range(20)]
  without = [np.ptp(training(encoded, seed=(0, seed), turn=3)) for seed in range(20)]
  assert min(with_box) > 0.01
  assert min(without) < 0.001


def test_half_of_the_pictures_are_mirrored():
  image = np.zeros([300, 300, 3], np.uint8)
  image[:, 150:] = 255
  encoded = tf.io.encode_png(image)
  for preprocessor in ("inception", "vgg"):
    differences = []
    for seed in range(30):
      result = training(encoded, preprocessor, seed=(0, seed), size=(200, 200)).numpy()
      differences.append(result[:, -40:].mean() - result[:, :40].mean())
    assert 5 < sum(difference > 0.1 for difference in differences) < 25
    assert 5 < sum(difference < -0.1 for difference in differences) < 25


def test_inception_evaluation_is_the_centre():
  image = picture(6, 64, 96)
  result = preprocess_for_evaluation("inception", tf.io.encode_png(image), 24, 16)
  expected = tf.compat.v1.image.resize_bilinear(image[np.newaxis, 4:60, 6:90].astype(np.float32), [24, 16])
  np.testing.assert_allclose(result, expected[0] / 127.5 - 1, atol=1e-4)


@pytest.mark.parametrize("size", [(256, 300), (640, 512), (64, 96)])
def test_vgg_evaluation_is_the_centre(size):
  image = picture(7, *size)
  result = preprocess_for_evaluation("vgg", tf.io.encode_png(image), 224, 200)
  scale = 256 / min(size)
  scaled = tf.image.resize(image, [round(side * scale) for side in size])
  top, left = (scaled.shape[0] - 224 + 1) // 2, (scaled.shape[1] - 200 + 1) // 2
  expected = scaled[top : top + 224, left : left + 200] - [123.68, 116.779, 103.939]
  np.testing.assert_allclose(result, expected, atol=1e-2)


def test_vgg_scales_the_shorter_side():
  # Stripes of 30 pixels in a picture of 300: their width in the result shows the scale.
  image = np.tile((np.arange(300) // 30 % 2 * 255).astype(np.uint8)[np.newaxis, :, np.newaxis], [300, 1, 3])
  encoded = tf.io.encode_png(image)
  sides = []
  for seed in range(40):
    row = training(encoded, "vgg", seed=(0, seed), size=(8, 224))[4, :, 0].numpy() > 0
    edges = np.flatnonzero(np.diff(row))
    sides.append(np.diff(edges).mean() * 10)
  assert 250 < min(sides) < 300
  assert 430 < max(sides) < 490


def test_cmyk_posing_as_rgb():
  encoded = cmyk_jpeg(255, 128, 55, 200)
  np.testing.assert_array_equal(tf.io.extract_jpeg_shape(encoded), [16, 16, 4])
  result = preprocess_for_evaluation("inception", encoded, 8, 8)
  np.testing.assert_allclose(result[3, 3], np.array([200, 100, 43]) / 127.5 - 1, atol=2 / 127.5)
  assert training(encoded, size=(8, 8)).shape == (8, 8, 3)


def test_grayscale():
  gray = tf.io.encode_jpeg(picture(8)[:, :, :1], quality=95)
  result = preprocess_for_evaluation("inception", gray, 8, 8).numpy()
  np.testing.assert_array_equal(result[..., 0], result[..., 2])


@pytest.mark.parametrize("data", [b"", b"no picture at all", jpeg(9)[:600]])
def test_damaged_pictures_are_errors(data):
  with pytest.raises(tf.errors.InvalidArgumentError):
    training(data, boxes=tf.constant([[0.0, 0.0, 1.0, 1.0]]))
  with pytest.raises(tf.errors.InvalidArgumentError):
    preprocess_for_evaluation("inception", data, 8, 8)


@pytest.mark.parametrize("preprocessor", ["inception", "vgg"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (1, 3000)])
def test_pictures_one_pixel_high_or_wide(preprocessor, size):
  encoded = tf.io.encode_png(np.full([*size, 3], 200, np.uint8))
  for boxes in ([[0.0, 0.0, 1.0, 1.0]], [[0.9, 0.9, 0.1, 0.1]], [[0.5, 0.5, 0.5, 0.5]]):
    assert np.isfinite(training(encoded, preprocessor, boxes=tf.constant(boxes), size=(8, 8))).all()
  result = preprocess_for_evaluation(preprocessor, encoded, 8, 8)
  np.testing.assert_allclose(result, np.broadcast_to(result[0, 0], [8, 8, 3]), atol=1e-3)
