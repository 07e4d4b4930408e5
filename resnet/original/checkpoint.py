"""Reads and writes checkpoints of the original code, in the format of TensorFlow 1's `tf.train.Saver`.

The original calls a variable Model/{scope}/{variable} and its accumulator of momentum
Model/Model/{scope}/{variable}/Momentum (the scope Model is entered twice). Beside them are
Model/global_step and Model/learn_rate; older checkpoints have Train/Model/learn_rate.
"""

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from resnet.original.checkpoint_files import checkpoint_prefix
from resnet.training.lr_schedule import learning_rate_schedule
from resnet.training.optimizer import Momentum
from resnet.utils.errors import UserError, reason_of

_ORIGINAL_NAMES = {
  "kernel": "w",
  "bias": "b",
  "gamma": "gamma",
  "beta": "beta",
  "moving_mean": "ema_mean",
  "moving_variance": "ema_var",
}
_STEP = "global_step"
_RATE = "learn_rate"


def variable_map(model: keras.Model) -> dict[str, keras.Variable]:
  """The model's weights and moving statistics by their names in the original code, without "Model/".

  Stages count from 1, units from 0.

  Args:
    model: of `resnet.models.get_model`.

  Example:
    >>> variable_map(get_model(get_config("revnet-38")))["unit_2_1/f/sub1/conv1/w"].shape
    TensorShape([3, 3, 32, 32])
  """
  names = {}
  for variable in model.variables:
    _, *scopes, name = variable.path.split("/")  # The first one is the model's own name.
    names["/".join([*scopes, _ORIGINAL_NAMES[name]])] = variable
  return names


def load_tf1_checkpoint(model: keras.Model, path: str | os.PathLike, optimizer: Momentum | None = None) -> None:
  """Reads a checkpoint of the original code into a model of the same network.

  Nothing is written to the model before all of the checkpoint has been read and found to fit.

  Args:
    model: from `resnet.models.get_model`; gets the weights and moving statistics.
    path: the checkpoint's prefix, a folder with a checkpoint in it, or a .tar.gz of one.
    optimizer: gets the momentum and the number of steps, which the checkpoint must then have. It is built
      for the model if it is not yet. None ignores them.

  Raises:
    UserError: no checkpoint, a damaged one, or one that does not fit; names all variables
      that the checkpoint lacks, has too many, or has in another shape.

  Example:
    >>> model, optimizer = get_model(get_config("revnet-38")), Momentum()
    >>> optimizer.build(model.trainable_variables)
    >>> save_tf1_checkpoint(model, optimizer, "exported")
    >>> load_tf1_checkpoint(model, "exported/model.ckpt-0", optimizer)
  """
  if optimizer is not None:
    optimizer.build(model.trainable_variables)
  expected = _expected(model, optimizer)
  with checkpoint_prefix(path) as prefix:
    values = _read(prefix, expected, path)
  for name, value in values.items():
    variable = expected[name].variable
    if variable is not None:
      variable.assign(value)


def save_tf1_checkpoint(model: keras.Model, optimizer: Momentum, folder: str | os.PathLike) -> None:
  """Writes a checkpoint that the original code restores: {folder}/model.ckpt-{steps}.

  Args:
    model: of `resnet.models.get_model`.
    optimizer: built for the model.
    folder: of the checkpoint, its graph and the file `checkpoint` that names it.

  Example:
    >>> model, optimizer = get_model(get_config("revnet-38")), Momentum()
    >>> optimizer.build(model.trainable_variables)
    >>> save_tf1_checkpoint(model, optimizer, "exported")
  """
  names = {id(variable): name for name, variable in variable_map(model).items()}
  values = {f"Model/{name}": variable.numpy() for name, variable in variable_map(model).items()}
  for variable in model.trainable_variables:
    values[f"Model/Model/{names[id(variable)]}/Momentum"] = optimizer.accumulator(variable).numpy()
  step = int(optimizer.iterations.numpy())
  values[f"Model/{_STEP}"] = np.float32(step)
  last_rate = learning_rate_schedule(model.config)(max(step - 1, 0))
  values[f"Model/{_RATE}"] = np.float32(last_rate)
  with tf.Graph().as_default(), tf.device("/cpu:0"):
    feeds, variables = {}, []
    for name, value in values.items():
      # Weights fed, not constants: a graph may not be larger than 2 GB.
      feed = tf.compat.v1.placeholder(value.dtype, value.shape)
      variables.append(tf.compat.v1.Variable(feed, name=name, use_resource=False))
      feeds[feed] = value
    with tf.compat.v1.Session(config=tf.compat.v1.ConfigProto(device_count={"GPU": 0})) as session:
      session.run(tf.compat.v1.variables_initializer(variables), feeds)
      saver = tf.compat.v1.train.Saver(variables, save_relative_paths=True)  # The folder may be moved.
      saver.save(session, os.path.join(pathlib.Path(folder).resolve(), "model.ckpt"), global_step=step)


@dataclasses.dataclass(frozen=True)
class _Expected:
  """What a checkpoint may hold under some name, and where it goes (None: nowhere)."""

  shape: tuple[int, ...]
  variable: keras.Variable | None
  required: bool


def _expected(model: keras.Model, optimizer: Momentum | None) -> dict[str, _Expected]:
  variables = variable_map(model)
  expected = {name: _Expected(tuple(v.shape), v, True) for name, v in variables.items()}
  for name, variable in variables.items():
    if variable.trainable:
      slot = optimizer.accumulator(variable) if optimizer else None
      expected[f"{name}/Momentum"] = _Expected(tuple(variable.shape), slot, optimizer is not None)
  iterations = optimizer.iterations if optimizer else None
  expected[_STEP] = _Expected((), iterations, optimizer is not None)
  expected[_RATE] = _Expected((), None, False)
  return expected


def _read(prefix: str, expected: Mapping[str, _Expected], path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The checkpoint's values by the names of `expected`, if they fit it. Errors call the checkpoint `path`."""
  try:
    reader = tf.train.load_checkpoint(prefix)
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    problems = _problems(shapes, dtypes, expected)
    if not problems:
      values = {_short(name): np.asarray(reader.get_tensor(name)) for name in shapes}
  except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
    raise UserError(f"checkpoint {path} is damaged, or is not a checkpoint: {reason_of(error)}") from error
  if problems:
    raise UserError(f"checkpoint {path} does not fit the model. {'; '.join(problems)}")
  step = values.get(_STEP, 0)
  if not (step >= 0 and step == np.floor(step)):
    raise UserError(f"checkpoint {path}: {_STEP} must be a number of steps, got {step}")
  return values


def _short(name: str) -> str:
  return re.sub(r"^((Train|Model)/)+", "", name)


def _problems(
  shapes: Mapping[str, list[int]], dtypes: Mapping[str, tf.DType], expected: Mapping[str, _Expected]
) -> list[str]:
  """How a checkpoint's variables differ from those expected; empty if they do not."""
  counts = collections.Counter(map(_short, shapes))
  missing = [name for name, wanted in expected.items() if wanted.required and name not in counts]
  surplus = [name for name in shapes if _short(name) not in expected]
  repeated = [name for name in shapes if counts[_short(name)] > 1]
  misshapen = []
  for name in shapes:
    wanted = expected.get(_short(name))
    if wanted is not None and (tuple(shapes[name]) != wanted.shape or dtypes[name] != tf.float32):
      misshapen.append(f"{name} ({shapes[name]} {dtypes[name].name}, not {list(wanted.shape)} float32)")
  return [
    f"{problem}: {', '.join(sorted(names))}"
    for problem, names in (
      ("missing from the checkpoint", missing),
      ("not in the model", surplus),
      ("there under two names", repeated),
      ("of another shape or type", misshapen),
    )
    if names
  ]
