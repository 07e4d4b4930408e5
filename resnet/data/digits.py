"""1,797 handwritten digits that come with the package: real data for a machine without a network.

Source: E. Alpaydin and C. Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49, its test set, licensed CC BY 4.0. digits.npz holds
images [1797, 8, 8] uint8 with values 0..16 and labels [1797] uint8, in the set's order, unchanged.
"""

import pathlib

import numpy as np
import tensorflow as tf

FILE = pathlib.Path(__file__).with_name("digits.npz")
NUM_TRAIN = 1500
SIZE = 32  # pixels, the input size of the CIFAR networks
MAX_VALUE = 16


def load_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """(images [N, 32, 32, 3] uint8, labels [N]) by split: 1,500 drawn at random to train on, 297 to test."""
  with np.load(FILE) as file:
    small, labels = file["images"], file["labels"]
  grey = small[..., None] * (255 / MAX_VALUE)
  enlarged = tf.image.resize(grey, [SIZE, SIZE], "bilinear").numpy()
  images = np.repeat(np.round(enlarged).astype(np.uint8), 3, axis=-1)
  order = np.random.RandomState(0).permutation(len(images))
  train, test = order[:NUM_TRAIN], order[NUM_TRAIN:]
  return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
