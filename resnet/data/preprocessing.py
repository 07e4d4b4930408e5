"""What evaluation does to a picture before the network takes it: the one place for it.

    pixels [height, width, 3], in 0..255 = the picture, decoded, cropped and scaled
    what the network takes               = scale * pixels + offset

Evaluation batches, exported models and `python -m resnet.tools.classify` all go this way.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from resnet.configs.config import Config
from resnet.data.image_processing import RANGES, evaluation_pixels

# Black pixels around the pictures of a data set, on each side: Fashion-MNIST has 28 of a network's 32 pixels.
BORDERS = {"fashion-mnist": 2}


@dataclasses.dataclass(frozen=True, eq=False)
class Preprocessing:
  """The preprocessing of a network's evaluation.

  Args:
    config: of the network.
    mean_image: [height, width, 3], the mean of the training images, in 0..255; None for ImageNet.

  Attributes:
    scale: of pixels.
    offset: float32, minus the mean image; for ImageNet a number for each channel or for all.

  Example:
    >>> preprocessing = Preprocessing(get_config("revnet-104"), mean_image=None)
    >>> preprocessing.batch(tf.zeros([2, 300, 400, 3], "uint8")).shape
    TensorShape([2, 224, 224, 3])
  """

  config: Config
  mean_image: np.ndarray | None
  scale: float = dataclasses.field(init=False)
  offset: np.ndarray = dataclasses.field(init=False)

  def __post_init__(self) -> None:
    scale, offset = RANGES[self.config.preprocessor] if self.mean_image is None else (1.0, -self.mean_image)
    object.__setattr__(self, "scale", scale)
    object.__setattr__(self, "offset", np.asarray(offset, np.float32))

  def pixels(self, picture: tf.Tensor) -> tf.Tensor:
    """A picture at the network's size: [height, width, 3] float32, in 0..255.

    ImageNet's evaluation crops the centre. Elsewhere a picture of the network's size stays as it is; of others
    the largest central part of the network's aspect is scaled.

    Args:
      picture: scalar string, the file of a JPEG, PNG, GIF (its first frame) or BMP; or [H, W, 3] uint8.

    Raises:
      tf.errors.InvalidArgumentError: the file is no intact picture.
    """
    config = self.config
    preprocessor = "resize" if self.mean_image is not None else config.preprocessor
    border = BORDERS.get(config.dataset, 0)
    return evaluation_pixels(preprocessor, picture, config.height, config.width, border)

  def standardised(self, pixels: tf.Tensor) -> tf.Tensor:
    """What the network takes, float32, of [..., height, width, 3] pixels in 0..255."""
    return tf.cast(pixels, tf.float32) * self.scale + self.offset

  def __call__(self, picture: tf.Tensor) -> tf.Tensor:
    """What the network takes of one picture, [height, width, 3] float32."""
    return self.standardised(self.pixels(picture))

  def batch(self, pictures: tf.Tensor) -> tf.Tensor:
    """What the network takes, [N, height, width, 3] float32, of [N] strings or [N, H, W, 3] uint8: `pixels`."""
    shape = tf.TensorSpec([self.config.height, self.config.width, 3], tf.float32)
    return self.standardised(tf.map_fn(self.pixels, pictures, fn_output_signature=shape))
