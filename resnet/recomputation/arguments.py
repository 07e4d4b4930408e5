"""What a layer is called with, by value, to be handed to the layers in it in every run."""

import inspect
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resnet.recomputation.custom_vjp import local
from resnet.recomputation.masks import with_mask
from resnet.recomputation.private_apis import keras_mask, surroundings


class Values:
  """A structure by value: its tensors and variables as they are now, with the Keras masks that they carry.

  Attributes:
    floats: the float tensors in it, for which gradients are wanted.
  """

  def __init__(self, structure: Any):
    self._structure = structure
    self._leaves = [by_value(leaf) for leaf in tf.nest.flatten(structure, expand_composites=True)]
    self._masks = [by_value(keras_mask(leaf)) for leaf in self._leaves]
    self.floats = [leaf for leaf in self._leaves if is_float(leaf)]

  def filled_in(self, floats: list[tf.Tensor]) -> Any:
    """The structure, with `floats` in place of its float tensors."""
    given = iter(floats)
    leaves = [next(given) if is_float(leaf) else leaf for leaf in self._leaves]
    leaves = [leaf if mask is None else with_mask(leaf, mask) for leaf, mask in zip(leaves, self._masks)]
    return tf.nest.pack_sequence_as(self._structure, leaves, expand_composites=True)


class Call(Values):
  """What a layer is called with, `training` and other arguments.

  Args:
    name: of what is called, for errors.
    training: for all layers.
    arguments: of a chain, by name: each goes to the layers whose `call` has an argument of the name.

  Attributes:
    surroundings: of layers that are called now, with this `training`.
    key: what the arguments are, but for the values of tensors.
  """

  def __init__(self, name: str, training: bool, arguments: Any):
    super().__init__(arguments)
    self.name, self.training = name, training
    self.surroundings = surroundings(training=training)
    shown = [(leaf.dtype, leaf.shape) if tf.is_tensor(leaf) else leaf for leaf in self._leaves]
    structure = tf.nest.map_structure(lambda _: ..., arguments)
    self.key = str((training, structure, shown, [mask is None for mask in self._masks]))

  def arguments_of(self, layer: keras.layers.Layer, floats: list[tf.Tensor]) -> dict[str, Any]:
    """Those of `filled_in` that the layer takes, and `training`."""
    names = call_arguments(layer)
    taken = {name: value for name, value in self.filled_in(floats).items() if name in names}
    return {"training": self.training, **taken}


def require_taken(name: str, arguments: dict[str, Any], taken: Collection[str]) -> None:
  """Raises ValueError if `name`, which takes these arguments, is called with others."""
  for argument in arguments.keys() - taken:
    raise ValueError(
      f"{name} was called with {argument!r}, which no layer in it takes; they take "
      f"{', '.join(map(repr, sorted(taken))) or 'no arguments'}"
    )


def by_value(leaf: Any) -> Any:
  """The value of a tensor or variable as it is now, carrying the same Keras mask; anything else as it is."""
  if not isinstance(leaf, tf.Tensor | tf.Variable | keras.Variable | np.ndarray):
    return leaf
  tensor = local(leaf)
  return tensor if tensor is leaf else with_mask(tensor, keras_mask(leaf))


def call_arguments(layer: keras.layers.Layer) -> set[str]:
  """The names of the arguments of a layer's `call`, without its inputs and `training`.

  A layer that hands arguments on, as a chain does, has an attribute `call_arguments` that says which.
  """
  if hasattr(layer, "call_arguments"):
    return layer.call_arguments
  _, *others = inspect.signature(layer.call).parameters.values()
  return {p.name for p in others if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"training"}


def is_float(leaf: Any) -> bool:
  """Whether it is a tensor that gradients go through."""
  return tf.is_tensor(leaf) and (leaf.dtype.is_floating or leaf.dtype.is_complex)
