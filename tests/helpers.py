"""Small networks and batches that several test modules share."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from resnet.configs import get_config
from resnet.models import get_model

ROOT = pathlib.Path(__file__).parents[1]


def start(script: str, *arguments: str, cwd: pathlib.Path, **env: str) -> subprocess.CompletedProcess:
  """Runs a script in a process of its own, as from the shell."""
  command = [sys.executable, str(ROOT / script), *arguments]
  return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False)


@contextlib.contextmanager
def fresh_flags():
  """Forgets the flags that are defined within, so that the next script can define its own."""
  before = set(flags.FLAGS)
  try:
    yield
  finally:
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)


def make_model(name: str, dtype: str = "float32", **fields) -> keras.Model:
  """The network of a registered configuration, its batch norms away from their initial values."""
  keras.utils.set_random_seed(1)
  model = get_model(dataclasses.replace(get_config(name), dtype=dtype, **fields))
  random = np.random.RandomState(2)
  for variable in model.variables:
    if variable.name in ("gamma", "moving_variance"):
      variable.assign(random.uniform(0.5, 1.5, variable.shape))
    elif variable.name in ("beta", "moving_mean"):
      variable.assign(random.uniform(-0.5, 0.5, variable.shape))
  return model


def copy_of(model: keras.Model, **fields) -> keras.Model:
  """A network with the same variables, of a configuration that differs in `fields`."""
  copy = get_model(dataclasses.replace(model.config, **fields))
  for ours, theirs in zip(copy.variables, model.variables, strict=True):
    ours.assign(theirs)
  return copy


def make_batch(model: keras.Model, size: int = 10, seed: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
  """(images, labels) that fit the model."""
  config = model.config
  random = np.random.RandomState(seed)
  images = random.normal(size=(size, config.height, config.width, config.num_channel))
  return tf.constant(images, model.dtype), tf.constant(random.randint(0, config.num_classes, size))


def relative_difference(actual, expected) -> float:
  """Norm of the difference over the norm of `expected`."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


def assert_close(actual, expected, tolerance: float, names=None) -> None:
  """Asserts that each tensor of one list is within `tolerance`, relative to its norm, of the other's."""
  names = names or range(len(expected))
  for name, a, e in zip(names, actual, expected, strict=True):
    difference = relative_difference(a, e)
    assert difference <= tolerance, f"{name}: relative difference {difference:.2e}"


def values(variables) -> list[np.ndarray]:
  """The variables' values now."""
  return [np.array(variable.value) for variable in variables]
