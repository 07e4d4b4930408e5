"""Checks of what a user hands to the engine's layers, so that mistakes are refused early."""

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet.reversible.gate import Tensors


def require_pairs(pairs: Any) -> None:
  """Raises ValueError unless `pairs` is a list of (F, G), Keras layers both."""
  if not isinstance(pairs, list | tuple) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in pairs):
    raise ValueError(f"pairs must be a list of (F, G), got {pairs!r}")
  for unit, pair in enumerate(pairs):
    for letter, function in zip("FG", pair, strict=True):
      if not isinstance(function, keras.layers.Layer):
        raise ValueError(
          f"{letter} of unit {unit} must be a Keras layer, got {function!r}; keras.layers.Lambda makes a "
          "layer of a function without variables"
        )


def require_streams(name: str, streams: Any) -> None:
  """Raises ValueError unless `streams` are two float tensors."""
  if not isinstance(streams, list | tuple) or len(streams) != 2:
    refuse_streams(name, getattr(streams, "shape", streams))
  for index, stream in enumerate(streams, start=1):
    if not tf.as_dtype(stream.dtype).is_floating:
      dtype = tf.as_dtype(stream.dtype).name
      raise ValueError(f"{name}: the streams must be float tensors, x{index} is {dtype}; cast it first")


def refuse_streams(name: str, shape: Any) -> None:
  """Raises ValueError for inputs that are not two streams. `shape` is one tensor's, or a list of shapes."""
  single = all(size is None or isinstance(size, int) for size in shape)
  got = f"a tensor of shape {tuple(shape)}" if single else f"{len(shape)} inputs"
  raise ValueError(f"{name} takes two streams, (x1, x2), got {got}; halve a tensor by tf.split(x, 2, axis=-1)")


def stream_dtype(streams: Sequence[tf.Tensor], variable_dtype: str) -> tf.DType:
  """The dtype in which streams can be rebuilt: that of the widest of streams, variables and float32."""
  dtypes = [tf.as_dtype(dtype) for dtype in ("float32", variable_dtype, *(stream.dtype for stream in streams))]
  return max(dtypes, key=lambda dtype: dtype.size)


def build_layer(layer: keras.layers.Layer, shape: Any, dtype: str) -> Tensors | None:
  """Builds a layer for inputs of a shape, or of a structure of shapes, unless it is built already.

  Returns:
    Its symbolic outputs, or None if a call needs more than the inputs.
  """
  _, *others = inspect.signature(layer.call).parameters.values()
  if any(p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in others):
    if not layer.built:
      layer.build(shape)
    return None
  return layer(keras.tree.map_shape_structure(lambda shape: keras.KerasTensor(shape, dtype), shape))
