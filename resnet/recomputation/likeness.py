"""Which layers are alike: they differ in the values of their variables alone."""

import re
from collections.abc import Sequence
from typing import Any

import keras

# Where configurations have names of layers.
_NAMED = ("name", "keras_history", "input_layers", "output_layers")


def likeness(layers: Sequence[keras.layers.Layer]) -> str:
  """The same for layers that compute the same of the same weights, states and inputs; different for others.

  What layers say of themselves by `get_config` counts, and not what is set after they are made.
  """
  return str([(_configuration(layer), _variables(layer)) for layer in layers])


def _configuration(layer: keras.layers.Layer) -> Any:
  """A layer's configuration without names, the shapes that it was built for, and Keras' own layers' seeds."""
  try:
    config = keras.saving.serialize_keras_object(layer)
  except NotImplementedError:  # It has arguments, and no `get_config`: it is like no other.
    return id(layer)
  names: dict[str, int] = {}  # of all layers within, by which a functional model connects them

  def find_names(config: Any) -> None:
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
      if key == "name" and isinstance(value, str):
        names.setdefault(value, len(names))
      elif isinstance(value, dict | list | tuple):
        find_names(value)

  def anonymous(config: Any, of_keras: bool = False, named: bool = False) -> Any:
    if isinstance(config, dict):
      of_keras = str(config["module"]).startswith("keras") if "module" in config else of_keras
      # Seeds of Keras' layers are values of states.
      left_out = ("build_config", "seed") if of_keras else ("build_config",)
      return {k: anonymous(v, of_keras, k in _NAMED) for k, v in config.items() if k not in left_out}
    if isinstance(config, list | tuple):
      return [anonymous(item, of_keras, named) for item in config]
    return names.get(config, config) if named and isinstance(config, str) else config

  find_names(config)
  return anonymous(config)


def _variables(layer: keras.layers.Layer) -> list[tuple]:
  """What a layer's variables are, in the order in which they were made."""
  return [
    (re.sub("[0-9]", "", variable.name), variable.trainable, variable.dtype, tuple(variable.shape))
    for variable in layer.variables
  ]
