"""A partially reversible U-Net that finds the ball among the boxes in small, noisy volumes.

Shows chains at two resolutions, and `Recompute` for the steps between them, which cannot be undone: of the
whole network only the ends of the chains and the inputs of the steps are kept for the backward pass.

PYTHONPATH=. python examples/segmentation_3d.py

Source: Brügger, Baumgartner, Konukoglu 2019, "A Partially Reversible U-Net for Memory-Efficient Volumetric
Image Segmentation".
"""

import keras
import numpy as np
from keras import layers, ops

from resnet.reversible import Recompute, ReversibleChain

SIZE = 16


def make_volumes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """(volumes of a ball, two boxes as bright, and noise; masks of the ball), [count, SIZE, SIZE, SIZE, 1]."""
  random = np.random.RandomState(seed)
  grid = np.indices([SIZE] * 3)[None]  # [1, 3, SIZE, SIZE, SIZE]

  def distance_from_centres():
    return np.abs(grid - random.uniform(3, SIZE - 4, (count, 3, 1, 1, 1)))

  def sizes(low, high, axes):
    return random.uniform(low, high, (count, axes, 1, 1, 1))

  ball = np.linalg.norm(distance_from_centres() / sizes(2.5, 4.5, 1), axis=1) < 1
  boxes = [np.all(distance_from_centres() < sizes(1.5, 3.5, 3), axis=1) for _ in range(2)]
  bright = ball | boxes[0] | boxes[1]
  volumes = bright + random.normal(scale=0.5, size=bright.shape)
  return volumes[..., None].astype("float32"), ball[..., None].astype("float32")


def convolution(channels: int, kind: type = layers.Conv3D, **kwargs) -> keras.Sequential:
  convolve = kind(channels, 3, padding="same", use_bias=False, **kwargs)
  return keras.Sequential([convolve, layers.GroupNormalization(4), layers.ReLU()])


def chain(x, units: int, channels: int):
  """Reversible units on the two halves of the channels."""
  functions = [(convolution(channels // 2), convolution(channels // 2)) for _ in range(units)]
  return layers.Concatenate()(ReversibleChain(functions)(ops.split(x, 2, axis=-1)))


def make_model(units: int, channels: int) -> keras.Model:
  """Volumes [N, SIZE, SIZE, SIZE, 1] -> logits of the same shape."""
  volumes = keras.Input([SIZE, SIZE, SIZE, 1])
  x = layers.Conv3D(channels, 3, padding="same")(volumes)
  fine = chain(x, units, channels)
  x = Recompute(convolution(2 * channels, strides=2))(fine)
  x = chain(x, units, 2 * channels)
  x = Recompute(convolution(channels, layers.Conv3DTranspose, strides=2))(x)
  x = chain(layers.Add()([x, fine]), units, channels)
  return keras.Model(volumes, layers.Conv3D(1, 1)(x))


def dice(truth: np.ndarray, predicted: np.ndarray) -> float:
  """2 |A and B| / (|A| + |B|), over all volumes."""
  return 2 * np.sum(truth * predicted) / (np.sum(truth) + np.sum(predicted))


def main(units: int = 2, channels: int = 16, count: int = 400, epochs: int = 10) -> float:
  """Trains, prints and returns the Dice score of 100 volumes that were not trained on."""
  keras.utils.set_random_seed(0)
  model = make_model(units, channels)
  learning_rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * count // 4)
  model.compile(keras.optimizers.Adam(learning_rate), keras.losses.BinaryCrossentropy(from_logits=True))
  model.fit(*make_volumes(count, seed=0), batch_size=4, epochs=epochs, verbose=2)
  volumes, ball = make_volumes(100, seed=1)
  score = dice(ball, model.predict(volumes, batch_size=4, verbose=0) > 0)
  print(f"Dice score {score:.3f}; by a threshold {dice(ball, volumes > 0.5):.3f}")
  return score


if __name__ == "__main__":
  main()
