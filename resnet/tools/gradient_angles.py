"""How far manual gradients are from ordinary backpropagation's, on a batch of digits at the initial weights.

python -m resnet.tools.gradient_angles --model revnet-110 --dtype mixed_bfloat16 --grid_bits 0,14

For each grid and form of the chain: the angle between the two gradients of a variable, the median and the
largest over the variables, and the share of variables whose gradients are equal in every bit.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from resnet.configs import get_config
from resnet.configs.config import CHAINS, DTYPES, Config
from resnet.utils.app import run
from resnet.utils.errors import UserError

if TYPE_CHECKING:
  import tensorflow as tf

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("model", "revnet-110", "RevNet: one of resnet/configs/cifar_configs.py.")
  flags.DEFINE_enum("dtype", "mixed_bfloat16", DTYPES, "What the residual functions compute in.")
  flags.DEFINE_list("grid_bits", ["0", "14"], "Grids, as in a configuration; 0: none.")
  flags.DEFINE_list("chain", list(CHAINS), "Forms of the reversible chain.")
  flags.DEFINE_integer("batch", 100, "Images.", lower_bound=1)


def main() -> None:
  config = get_config(FLAGS.model)
  if config.model_class != "revnet" or config.dataset == "imagenet":
    raise UserError(f"--model must be a RevNet for CIFAR, got {FLAGS.model}")
  for bits in FLAGS.grid_bits:
    if not bits.isdigit():
      raise UserError(f"--grid_bits must be whole numbers, got {bits!r}")
  # These load TensorFlow, which takes seconds: mistakes in the flags are answered before.
  import tensorflow as tf

  from resnet.data import get_dataset

  tf.config.experimental.enable_op_determinism()
  config = dataclasses.replace(config, dataset="digits", dtype=FLAGS.dtype, valid_batch_size=FLAGS.batch)
  images, labels = next(iter(get_dataset(config, "data", "train").evaluation_batches(1)))
  for bits in FLAGS.grid_bits:
    config = dataclasses.replace(config, grid_bits=int(bits))
    expected = gradients(dataclasses.replace(config, manual_gradients=False), images, labels)
    for form in FLAGS.chain:
      actual = gradients(dataclasses.replace(config, chain=form), images, labels)
      degrees = [angle(a, e) for a, e in zip(actual, expected, strict=True)]
      equal = np.mean([np.array_equal(a, e) for a, e in zip(actual, expected, strict=True)])
      print(
        f"{config.name}, {config.dtype}, grid_bits {config.grid_bits}, {form}: angle {np.median(degrees):.2g} "
        f"({max(degrees):.2g}) degrees, {100 * equal:.1f} % of gradients equal in every bit",
        flush=True,
      )


def gradients(config: Config, images: "tf.Tensor", labels: "tf.Tensor") -> list[np.ndarray]:
  """Of the initial network of a configuration, for one batch."""
  import keras
  import tensorflow as tf

  from resnet.models import get_model
  from resnet.training.step import loss_and_gradients

  keras.utils.set_random_seed(config.seed)
  model = get_model(config)
  step = tf.function(lambda: loss_and_gradients(model, images, labels)[1], autograph=False)
  return [np.asarray(gradient, np.float64) for gradient in step()]


def angle(a: np.ndarray, b: np.ndarray) -> float:
  """Between two gradients, in degrees; 0 between equal ones."""
  if np.array_equal(a, b):
    return 0.0
  cosine = np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))
  return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def cli() -> None:
  run(define_flags, main)


if __name__ == "__main__":
  cli()
