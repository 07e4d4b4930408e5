"""Building layers from shapes and calls, without running them."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from resnet.recomputation.custom_vjp import Tensors
from resnet.recomputation.private_apis import keras_mask, set_keras_mask


def build_layer(layer: keras.layers.Layer, shape: Any, dtype: str) -> Tensors | None:
  """Builds a layer for inputs of a shape, or of a structure of shapes, unless it is built already.

  Returns:
    Its symbolic outputs, or None if a call needs more than the inputs. If its `build` does, too, the layer is
    left to `build_by_call`.
  """
  if _required(layer.call) > 1:
    if not layer.built and _required(layer.build) == 1:
      layer.build(shape)
    return None
  return layer(keras.tree.map_shape_structure(lambda shape: keras.KerasTensor(shape, dtype), shape))


def build_by_call(layer: keras.layers.Layer, inputs: Tensors, arguments: dict[str, Any]) -> Tensors:
  """Builds a layer for these inputs and arguments unless it is built already. Returns its symbolic outputs."""

  def symbolic(leaf: Any, masked: bool = True) -> Any:
    if not isinstance(leaf, tf.Variable | keras.Variable | tf.Tensor | keras.KerasTensor):
      return leaf
    like = keras.KerasTensor(leaf.shape, keras.backend.standardize_dtype(leaf.dtype))
    if masked and keras_mask(leaf) is not None:
      set_keras_mask(like, symbolic(keras_mask(leaf)))
    return like

  (inputs,), arguments = keras.tree.map_structure(symbolic, ([inputs], arguments))
  return keras.tree.map_structure(lambda leaf: symbolic(leaf, masked=False), layer(inputs, **arguments))


def require_layer(name: str, layer: Any) -> None:
  """Raises ValueError unless `layer`, called `name` in the error, is a Keras layer."""
  if not isinstance(layer, keras.layers.Layer):
    raise ValueError(f"{name} must be a Keras layer, got {layer!r}; for a function, use keras.layers.Lambda")


def _required(function: Callable) -> int:
  """How many arguments a function needs."""
  parameters = inspect.signature(function).parameters.values()
  named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY, p.KEYWORD_ONLY)]
  return sum(p.default is p.empty for p in named)
