"""Encoded photographs to network input: the "inception" and "vgg" preprocessing of ImageNet.

Pure functions: what is random depends on a stateless seed alone, so the same example with the same seed gives
the same pixels, eagerly or in a graph. A file that is called JPEG but is a PNG decodes too (ImageNet has one),
and so does a JPEG in CMYK (ImageNet has 22), which the decoder converts to RGB.

inception, training (Szegedy et al. 2015, as the original code does it): crop a random part of the picture that
covers at least 0.1 of an annotated box, resize it whatever its aspect, mirror it with probability 1/2, jitter
the colours, clip, scale to [-1, 1]. Evaluation: central 0.875 of each side, bilinear resize, scale to [-1, 1].

vgg, training (Simonyan & Zisserman 2015, section 3.1): scale the shorter side to a length drawn from 256-480
pixels, crop at random, mirror with probability 1/2. Evaluation: shorter side 256 pixels, centre crop. Pixels
stay in 0..255, less the mean colour of ImageNet's training pictures. The original's configurations name this
preprocessor, but its code has none.
"""

from collections.abc import Callable

import tensorflow as tf

from resnet.data.color_jitter import NUM_ORDERS, mirror_and_jitter

# The resize methods in the original's order. They sample with TensorFlow 1's convention, output pixel i at
# input coordinate i * scale, which the weights in existing checkpoints were trained with; tf.image.resize
# samples at (i + 0.5) * scale - 0.5 and uses another bicubic kernel.
RESIZE_METHODS: tuple[Callable[..., tf.Tensor], ...] = (
  tf.raw_ops.ResizeBilinear,
  tf.raw_ops.ResizeNearestNeighbor,
  tf.raw_ops.ResizeBicubic,
  tf.raw_ops.ResizeArea,
)

CENTRAL_FRACTION = 0.875  # of each side, in inception evaluation

VGG_SIDE_RANGE = (256, 480)  # pixels of the shorter side, both inclusive, in training
VGG_EVALUATION_SIDE = 256
VGG_MEAN = (123.68, 116.779, 103.939)  # red, green, blue

# What the networks take, scale * pixels + offset, of pixels in 0..255.
RANGES = {"inception": (1 / 127.5, -1.0), "vgg": (1.0, tuple(-mean for mean in VGG_MEAN))}


def preprocess_for_training(
  preprocessor: str,
  encoded: tf.Tensor,
  boxes: tf.Tensor,
  seed: tf.Tensor,
  turn: tf.Tensor | int,
  height: int,
  width: int,
) -> tf.Tensor:
  """One training image, randomly distorted.

  Args:
    preprocessor: "inception" or "vgg".
    encoded: scalar string, the JPEG (or PNG) file.
    boxes: [N, 4] float32, annotated objects as ymin, xmin, ymax, xmax in [0, 1]; if N is 0, the whole image.
      Only inception uses them.
    seed: [2] integers, not negative; everything random follows from it.
    turn: scalar integer. inception takes its four resize methods and two colour orders in turn: method
      turn % 4, order turn % 2 (the original numbers its reading threads and uses a thread's number).
    height: of the result, pixels.
    width: of the result, pixels.

  Returns:
    [height, width, 3] float32.

  Raises:
    tf.errors.InvalidArgumentError: `encoded` is no intact picture.
  """
  encoded = tf.convert_to_tensor(encoded)
  if preprocessor == "vgg":
    return _vgg_training(encoded, seed, height, width)
  assert preprocessor == "inception", preprocessor
  return _inception_training(encoded, boxes, seed, turn, height, width)


def evaluation_pixels(
  preprocessor: str, picture: tf.Tensor, height: int, width: int, border: int = 0
) -> tf.Tensor:
  """One picture for evaluation, nothing random: [height, width, 3] float32, in 0..255.

  Args:
    preprocessor: "inception" or "vgg", the centre that ImageNet's evaluation shows; or "resize", for the
      networks of small images: pictures of the network's size stay as they are, of others the largest central
      part of the network's aspect is scaled.
    picture: scalar string, the file of a JPEG, PNG, GIF or BMP; or [H, W, 3] uint8.
    height: of the result, pixels.
    width: of the result, pixels.
    border: black pixels on each side of what "resize" scales.

  Raises:
    tf.errors.InvalidArgumentError: the file is no intact picture.
  """
  picture = tf.convert_to_tensor(picture)
  if preprocessor == "vgg":
    return _vgg_evaluation(picture, height, width)
  if preprocessor == "inception":
    return _inception_evaluation(picture, height, width)
  assert preprocessor == "resize", preprocessor
  return _resized(picture, height, width, border)


def _inception_training(
  encoded: tf.Tensor, boxes: tf.Tensor, seed: tf.Tensor, turn: tf.Tensor | int, height: int, width: int
) -> tf.Tensor:

  def window(size: tf.Tensor) -> tf.Tensor:
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
      tf.concat([size, [3]], 0),
      boxes[tf.newaxis],
      seed,
      min_object_covered=0.1,
      aspect_ratio_range=(0.75, 1.33),
      area_range=(0.05, 1.0),
      max_attempts=100,
      use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], extent[:2]], 0)

  crop = _decode_window(encoded, window)
  draws = tf.random.stateless_uniform([5], _other(seed))
  jitter_draws = draws[1:]

  def branch(method: int, mirror: bool) -> Callable[[], tf.Tensor]:
    def resize_and_jitter() -> tf.Tensor:
      return mirror_and_jitter(_resize(crop, method, height, width), jitter_draws, method % NUM_ORDERS, mirror)

    return resize_and_jitter

  methods = range(len(RESIZE_METHODS))
  branches = [branch(method, mirror) for mirror in (False, True) for method in methods]
  number = tf.cast(turn % len(methods), tf.int32) + tf.where(draws[0] < 0.5, len(methods), 0)
  return tf.ensure_shape(tf.switch_case(number, branches), [height, width, 3])


def _inception_evaluation(picture: tf.Tensor, height: int, width: int) -> tf.Tensor:
  def window(size: tf.Tensor) -> tf.Tensor:
    size64 = tf.cast(size, tf.float64)
    begin = tf.cast((size64 - size64 * CENTRAL_FRACTION) / 2, tf.int32)
    return tf.concat([begin, size - 2 * begin], 0)

  crop = _decode_window(picture, window)
  return tf.ensure_shape(_resize(crop, 0, height, width), [height, width, 3])


def _vgg_training(encoded: tf.Tensor, seed: tf.Tensor, height: int, width: int) -> tf.Tensor:
  shortest, longest = VGG_SIDE_RANGE
  side = tf.random.stateless_uniform([], seed, shortest, longest + 1, tf.int32)
  draws = tf.random.stateless_uniform([3], _other(seed))
  image = _vgg_crop(encoded, side, draws[1:], height, width) - VGG_MEAN
  return tf.cond(draws[0] < 0.5, lambda: tf.reverse(image, [1]), lambda: image)


def _vgg_evaluation(picture: tf.Tensor, height: int, width: int) -> tf.Tensor:
  return _vgg_crop(picture, tf.constant(VGG_EVALUATION_SIDE), tf.constant([0.5, 0.5]), height, width)


def _resized(picture: tf.Tensor, height: int, width: int, border: int) -> tf.Tensor:
  image = _decode_window(picture, lambda size: tf.concat([[0, 0], size], 0))
  size, inner = tf.shape(image)[:2], tf.constant([height - 2 * border, width - 2 * border])

  def scaled() -> tf.Tensor:
    shrink = tf.reduce_min(size / inner)
    part = tf.clip_by_value(tf.cast(tf.round(tf.cast(inner, tf.float64) * shrink), tf.int32), 1, size)
    top, left = tf.unstack((size - part) // 2)
    middle = image[top : top + part[0], left : left + part[1]]
    pixels = tf.round(tf.image.resize(middle, inner, antialias=True))  # As the data sets have them.
    return tf.pad(pixels, [[border, border], [border, border], [0, 0]])

  fits = tf.reduce_all(size == [height, width])
  return tf.ensure_shape(tf.cond(fits, lambda: tf.cast(image, tf.float32), scaled), [height, width, 3])


def _vgg_crop(picture: tf.Tensor, side: tf.Tensor, position: tf.Tensor, height: int, width: int) -> tf.Tensor:
  """Scales the shorter side to `side` pixels, bilinearly, and crops; decodes and scales only what is shown.

  Args:
    picture: scalar string, or [H, W, 3] uint8.
    side: scalar int32.
    position: [2] float32 in [0, 1): of the crop, downwards and to the right; 0.5 is the centre.
    height: of the crop, pixels; not more than `side`.
    width: of the crop, pixels; not more than `side`.

  Returns:
    [height, width, 3] float32, in 0..255.
  """
  crop_size = tf.constant([height, width])
  size = _decode_size(picture)
  scale = tf.cast(side, tf.float32) / tf.cast(tf.reduce_min(size), tf.float32)
  scaled_size = tf.maximum(tf.cast(tf.round(tf.cast(size, tf.float32) * scale), tf.int32), side)
  room = tf.cast(scaled_size - crop_size + 1, tf.float32)
  offset = tf.floor(position * room)  # of the crop, in scaled pixels
  # The crop's first and last pixel centres, in pixels of the source; in a crop at the picture's edge they would
  # lie outside it by up to half a pixel.
  first = tf.maximum((offset + 0.5) / scale - 0.5, 0)
  last = (offset + tf.cast(crop_size, tf.float32) - 0.5) / scale - 0.5
  last = tf.minimum(last, tf.cast(size - 1, tf.float32))
  # Beyond them bilinear interpolation needs one source pixel, whose chroma needs another.
  begin = tf.cast(tf.maximum(tf.floor(first) - 1, 0), tf.int32)
  end = tf.minimum(tf.cast(tf.math.ceil(last), tf.int32) + 2, size)
  source = _decode_window(picture, lambda _: tf.concat([begin, end - begin], 0))
  origin = tf.cast(begin, tf.float32)
  extent = tf.cast(tf.maximum(end - begin - 1, 1), tf.float32)  # 0 where the picture is one pixel high or wide.
  box = tf.concat([(first - origin) / extent, (last - origin) / extent], 0)
  image = tf.image.crop_and_resize(source[tf.newaxis], box[tf.newaxis], [0], crop_size)[0]
  return tf.ensure_shape(image, [height, width, 3])


def _decode_window(picture: tf.Tensor, window: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
  """A part of the picture, decoded; [h, w, 3] uint8.

  `window` maps the picture's size, [2] int32 height and width, to [4] int32: top, left, height, width. Of a
  JPEG only that part is decoded.
  """

  def from_jpeg() -> tf.Tensor:
    size = tf.io.extract_jpeg_shape(picture)[:2]
    return tf.io.decode_and_crop_jpeg(picture, window(size), channels=3)

  def from_other() -> tf.Tensor:
    image = _decode_other(picture)
    top, left, height, width = tf.unstack(window(tf.shape(image)[:2]))
    return image[top : top + height, left : left + width]

  return _if_jpeg(picture, from_jpeg, from_other)


def _decode_size(picture: tf.Tensor) -> tf.Tensor:
  """The picture's height and width, pixels; [2] int32."""
  return _if_jpeg(
    picture,
    lambda: tf.io.extract_jpeg_shape(picture)[:2],
    lambda: tf.shape(_decode_other(picture))[:2],
  )


def _if_jpeg(
  picture: tf.Tensor, from_jpeg: Callable[[], tf.Tensor], from_other: Callable[[], tf.Tensor]
) -> tf.Tensor:
  is_file = picture.dtype == tf.string
  return tf.cond(tf.io.is_jpeg(picture), from_jpeg, from_other) if is_file else from_other()


def _decode_other(picture: tf.Tensor) -> tf.Tensor:
  """[H, W, 3] uint8, of a file that is no JPEG, or as it is."""
  if picture.dtype != tf.string:
    return picture
  return tf.io.decode_image(picture, channels=3, expand_animations=False)


def _other(seed: tf.Tensor) -> tf.Tensor:
  """A seed that no example has, for a second, independent draw."""
  return tf.bitwise.invert(seed)


def _resize(image: tf.Tensor, method: int, height: int, width: int) -> tf.Tensor:
  """[h, w, 3] uint8 to [height, width, 3], in 0..255: float32, or uint8 from the nearest neighbour."""
  return RESIZE_METHODS[method](images=image[tf.newaxis], size=[height, width])[0]
