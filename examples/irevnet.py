"""An i-RevNet-like classifier of digits: one chain over all resolutions, which can be undone as a whole.

`SpaceToDepth` moves 2 x 2 pixels into channels between resolutions, so that only the last streams are kept for
the backward pass. With --shortcut, `Shortcut` couplings bring the streams to the same shapes, as in a RevNet;
they cannot be undone, so their streams are kept. --memory measures a training step instead of training.

PYTHONPATH=. python examples/irevnet.py --resolutions 4

Source: Jacobsen, Smeulders, Oyallon 2018, "i-RevNet: Deep Invertible Networks".
"""

import argparse

import keras
from keras import layers, ops

from resnet.data.digits import SIZE, load_digits
from resnet.reversible import Additive, ReversibleChain, Shortcut, SpaceToDepth, memory_report

CHANNELS = 8  # of each stream at the first resolution


def function(channels: int, hidden: int, stride: int = 1) -> keras.Sequential:
  """F or G: [N, H, W, .] -> [N, H / stride, W / stride, channels]."""
  parts = []
  for filters, strides in ((hidden, stride), (channels, 1)):
    convolution = layers.Conv2D(filters, 3, strides, "same", use_bias=False)
    parts += [layers.BatchNormalization(), layers.ReLU(), convolution]
  return keras.Sequential(parts)


def make_chain(units: int, resolutions: int, shortcut: bool) -> ReversibleChain:
  """`units` units at each resolution."""
  steps, couplings = [], []
  for resolution in range(resolutions):
    changes, channels = resolution > 0, CHANNELS * 4**resolution
    if changes and not shortcut:
      steps.append(SpaceToDepth())
    for unit in range(units):
      first = changes and shortcut and unit == 0
      hidden = max(CHANNELS, channels // 4)  # As many as the channels of the resolution before.
      steps.append(tuple(function(channels, hidden, stride) for stride in ((2, 1) if first else (1, 1))))
      couplings += [Shortcut(layers.Conv2D(channels, 1, 2)) if first else Additive() for _ in "FG"]
  return ReversibleChain(steps, coupling=couplings)


def make_model(units: int, resolutions: int, shortcut: bool) -> keras.Model:
  """Images [N, SIZE, SIZE, 1] -> logits [N, 10]."""
  images = keras.Input([SIZE, SIZE, 1])
  x = layers.Conv2D(2 * CHANNELS, 3, 2, "same", use_bias=False)(images)
  streams = make_chain(units, resolutions, shortcut)(ops.split(x, 2, axis=-1))
  x = layers.ReLU()(layers.BatchNormalization()(layers.Concatenate()(streams)))
  return keras.Model(images, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def main(resolutions: int = 2, shortcut: bool = False, units: int = 3, epochs: int = 15) -> float:
  """Trains, prints and returns the accuracy on the test images."""
  keras.utils.set_random_seed(0)
  digits = {
    split: (images[..., :1].astype("float32") / 255, labels)
    for split, (images, labels) in load_digits().items()
  }
  images, labels = digits["train"]
  batch = 50
  model = make_model(units, resolutions, shortcut)
  learning_rate = keras.optimizers.schedules.CosineDecay(1e-2, epochs * len(images) // batch)
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  model.compile(keras.optimizers.AdamW(learning_rate, weight_decay=0.01), loss, metrics=["accuracy"])
  model.fit(images, labels, batch, epochs, verbose=2)
  _, accuracy = model.evaluate(*digits["test"], verbose=0)
  print(f"test accuracy {100 * accuracy:.2f} %")
  return accuracy


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--resolutions", type=int, choices=(2, 4), default=2)
  parser.add_argument("--shortcut", action="store_true", help="change resolutions by Shortcut couplings")
  parser.add_argument("--memory", action="store_true", help="measure a training step with 2,000 images")
  flags = parser.parse_args()
  if flags.memory:
    print(memory_report(make_model(3, flags.resolutions, flags.shortcut), ops.zeros([2000, SIZE, SIZE, 1])))
  else:
    main(flags.resolutions, flags.shortcut)
