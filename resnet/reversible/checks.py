"""What a user may hand to the layers of the engine, refused early where it would go wrong."""

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
    what = f"a tensor of shape {tuple(streams.shape)}" if hasattr(streams, "shape") else repr(streams)
    raise ValueError(
      f"{name} takes two streams, (x1, x2), got {what}; tf.split(x, 2, axis=-1) halves the channels"
    )
  for index, stream in enumerate(streams, start=1):
    if not tf.as_dtype(stream.dtype).is_floating:
      dtype = tf.as_dtype(stream.dtype).name
      raise ValueError(f"{name}: the streams must be float tensors, x{index} is {dtype}; cast it first")


def stream_dtype(streams: Sequence[tf.Tensor], variable_dtype: str) -> tf.DType:
  """The dtype in which streams can be rebuilt: that of the widest of streams, variables and float32."""
  dtypes = [tf.as_dtype(dtype) for dtype in ("float32", variable_dtype, *(stream.dtype for stream in streams))]
  return max(dtypes, key=lambda dtype: dtype.size)


def build_layer(layer: keras.layers.Layer, shape: Sequence[int | None], dtype: str) -> Tensors | None:
  """Builds a layer for inputs of a shape, unless it is built. Returns its symbolic outputs, None if unknown."""
  _, *others = inspect.signature(layer.call).parameters.values()
  if any(p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in others):
    if not layer.built:  # A call needs more than the inputs.
      layer.build(shape)
    return None
  return layer(keras.KerasTensor(shape, dtype))
