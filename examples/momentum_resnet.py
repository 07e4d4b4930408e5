"""A momentum residual network that tells two interleaved spirals apart.

A layer moves a velocity v and the state x by it: v' = g v + (1 - g) f(x), x' = x + v'. As a reversible unit the
streams are x1 = v and x2 = x, F = (1 - g) f is coupled by `Scaled(g)`, and G is the identity. The inverse
multiplies what rounding left by 1 / g in every unit, which the reconstruction error shows.

PYTHONPATH=. python examples/momentum_resnet.py

Source: Sander, Ablin, Blondel, Peyré 2021, "Momentum Residual Neural Networks".
"""

import math

import keras
import numpy as np
from keras import layers

from resnet.reversible import Additive, ReversibleChain, Scaled


def make_spirals(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """(points [count, 2], which spiral [count]): one and a half turns each, and noise."""
  random = np.random.RandomState(seed)
  labels = random.randint(0, 2, count)
  turns = 1.5 * np.sqrt(random.uniform(0.02, 1, count))
  angles = 2 * math.pi * (turns + labels / 2)
  points = turns[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  return (points + random.normal(scale=0.03, size=points.shape)).astype("float32"), labels


def make_chain(units: int, width: int, momentum: float) -> ReversibleChain:
  def change():  # (1 - g) f
    last = layers.Dense(width, use_bias=False)
    return keras.Sequential([layers.Dense(width, "tanh"), last, layers.Rescaling(1 - momentum)])

  functions = [(change(), layers.Identity()) for _ in range(units)]
  return ReversibleChain(functions, coupling=(Scaled(momentum), Additive()))


def main(units: int = 30, width: int = 16, momentum: float = 0.9, epochs: int = 60) -> tuple[float, float]:
  """Trains; prints and returns (accuracy on points that were not trained on, reconstruction error)."""
  keras.utils.set_random_seed(0)
  points = keras.Input([2])
  state = layers.Dense(width)(points)
  velocity = layers.Rescaling(0.0)(state)
  chain = make_chain(units, width, momentum)
  _, x = chain((velocity, state))
  model = keras.Model(points, layers.Dense(2)(x))
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
  model.fit(*make_spirals(2000, seed=0), batch_size=100, epochs=epochs, verbose=2)
  test, labels = make_spirals(2000, seed=1)
  _, accuracy = model.evaluate(test, labels, verbose=0)
  start = model.layers[1](test)
  error = float(chain.reconstruction_error((0 * start, start)))
  print(f"test accuracy {100 * accuracy:.2f} %; reconstruction error {error:.1e} after {units} units")
  return accuracy, error


if __name__ == "__main__":
  main()
