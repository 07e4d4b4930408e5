"""A normalising flow of Glow's steps, fitted to two moons by maximum likelihood.

Shows `Affine`, `ActNorm`, `InvertibleDense`, `log_det`, samples by `inverse`, and a training loop of one's own.

PYTHONPATH=. python examples/affine_flow.py moons.png

Source: Kingma, Dhariwal 2018, "Glow: Generative Flow with Invertible 1x1 Convolutions".
"""

import math
import sys

import keras
import numpy as np
import tensorflow as tf
from keras.layers import Dense
from matplotlib.figure import Figure

from resnet.reversible import ActNorm, Affine, InvertibleDense, ReversibleChain

NOISE = 0.1


def moons(angles: np.ndarray, sign: np.ndarray | int) -> np.ndarray:
  """Points [N, 2] on a half circle, or with sign -1 on its mirror image."""
  return np.stack([sign * (np.cos(angles) - 0.5), sign * (np.sin(angles) - 0.25)], axis=1)


def make_points(count: int, random: np.random.RandomState) -> np.ndarray:
  points = moons(random.uniform(0, math.pi, count), random.choice([-1, 1], count))
  return (points + random.normal(scale=NOISE, size=points.shape)).astype("float32")


def true_log_density(points: np.ndarray) -> np.ndarray:
  """Of what `make_points` draws, [N, 2] -> [N]: the integral over the angle is a sum."""
  angles = (np.arange(200) + 0.5) * math.pi / 200
  centres = np.concatenate([moons(angles, 1), moons(angles, -1)])
  squares = np.sum((points[:, None] - centres) ** 2, axis=-1)
  return np.log(np.mean(np.exp(-squares / (2 * NOISE**2)), axis=1) / (2 * math.pi * NOISE**2))


def log_density(chain: ReversibleChain, points: tf.Tensor) -> tf.Tensor:
  """log p(x) = log N(z; 0, I) + log|det dz/dx|, where the chain gives z. [N, 2] -> [N], in nats."""
  z1, z2, log_det = chain(tf.split(points, 2, axis=-1))
  return log_det - 0.5 * tf.reduce_sum(z1**2 + z2**2, axis=-1) - math.log(2 * math.pi)


def make_chain(units: int, width: int) -> ReversibleChain:
  def function():  # (s, t), both 0 at first.
    return keras.Sequential([Dense(width, "relu"), Dense(width, "relu"), Dense(2, kernel_initializer="zeros")])

  steps = [step for _ in range(units) for step in (ActNorm(), InvertibleDense(), (function(), function()))]
  return ReversibleChain(steps, coupling=Affine(bound=2.0), log_det=True)


def draw(chain: ReversibleChain, points: np.ndarray, samples: np.ndarray, output: str) -> None:
  """Data, samples and density side by side, as a PNG."""
  x, y = np.meshgrid(np.linspace(-2, 2, 321), np.linspace(-1.4, 1.4, 225))
  density = np.exp(log_density(chain, tf.constant(np.stack([x, y], -1).reshape(-1, 2), tf.float32)))
  figure = Figure(figsize=(13, 3.4), layout="constrained")
  limits = {"xlim": (-2, 2), "ylim": (-1.4, 1.4), "aspect": "equal"}
  axes = figure.subplots(1, 3, sharey=True, subplot_kw=limits)
  for axis, title, shown in zip(axes, ("points of the data", "samples of the flow"), (points, samples)):
    axis.plot(*shown.T, ".", markersize=1.5, alpha=0.5)
    axis.set_title(f"{len(shown):,} {title}")
  axes[2].pcolormesh(x, y, density.reshape(x.shape), cmap="magma", rasterized=True)
  axes[2].set_title("density of the flow")
  figure.savefig(output, dpi=120)


def main(output: str, units: int = 6, width: int = 64, steps: int = 4000) -> tuple[float, float]:
  """Trains and draws; prints and returns the mean log-likelihoods of test points: (flow's, Gaussian's)."""
  keras.utils.set_random_seed(0)
  random = np.random.RandomState(0)
  chain = make_chain(units, width)
  chain.build([(None, 1), (None, 1)])
  chain.adapt(tf.split(make_points(1000, random), 2, axis=-1))
  optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps))
  optimizer.build(chain.trainable_variables)

  @tf.function
  def step(points):
    with tf.GradientTape() as tape:
      loss = -tf.reduce_mean(log_density(chain, points))
    optimizer.apply(tape.gradient(loss, chain.trainable_variables))

  for _ in range(steps):
    step(make_points(256, random))
  points = make_points(5000, random)
  flow = float(tf.reduce_mean(log_density(chain, points)))
  gaussian = -0.5 * np.linalg.slogdet(2 * math.pi * math.e * np.cov(points.T))[1]
  truth = true_log_density(points).mean()
  print(f"log-likelihood in nats: flow {flow:.3f}, Gaussian {gaussian:.3f}, truth {truth:.3f}")
  samples = tf.concat(chain.inverse(tf.unstack(tf.random.stateless_normal([2, 5000, 1], [0, 0]))), axis=-1)
  draw(chain, points, samples.numpy(), output)
  return flow, gaussian


if __name__ == "__main__":
  main(*sys.argv[1:] or ["moons.png"])
