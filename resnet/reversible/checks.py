"""Checks of what a user hands to the engine's layers, so that mistakes are refused early."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet.recomputation.building import require_layer


def require_units(units: Any, invertible: type) -> None:
  """Raises ValueError unless `units` is a list of (F, G), Keras layers both, and of `invertible` layers."""
  if not isinstance(units, list | tuple) or not units:
    raise ValueError(f"units must be a list of (F, G), one at least; got {units!r}")
  for number, unit in enumerate(units):
    if isinstance(unit, invertible):
      continue
    if not isinstance(unit, list | tuple) or len(unit) != 2:
      raise ValueError(f"units must be a list of (F, G) and of Invertible layers; unit {number} is {unit!r}")
    for name, layer in zip("FG", unit, strict=True):
      require_layer(f"{name} of unit {number}", layer)


def require_streams(name: str, streams: Any) -> None:
  """Raises ValueError unless `streams` are two float tensors."""
  if not isinstance(streams, list | tuple) or len(streams) != 2:
    require_pair(name, getattr(streams, "shape", streams))
  for index, stream in enumerate(streams, start=1):
    if not hasattr(stream, "dtype") or not hasattr(stream, "shape"):
      raise ValueError(f"{name}: the streams must be float tensors, x{index} is {stream!r}")
    if tf.TensorShape(stream.shape).rank is None:
      raise ValueError(f"{name}: the number of axes of x{index} must be known; set it by tf.ensure_shape")
    if not tf.as_dtype(stream.dtype).is_floating:
      dtype = tf.as_dtype(stream.dtype).name
      raise ValueError(f"{name}: the streams must be float tensors, x{index} is {dtype}; cast it first")


def require_masks(name: str, mask: Any) -> Sequence[Any] | None:
  """`mask`, if it is None or two, one for each stream, which may be None; otherwise raises ValueError."""
  if mask is None or (isinstance(mask, list | tuple) and len(mask) == 2):
    return mask
  got = f"a tensor of shape {tuple(mask.shape)}" if hasattr(mask, "shape") else repr(mask)
  raise ValueError(f"{name}: mask must be a pair, the mask of x1 and that of x2, or None for either; got {got}")


def require_pair(name: str, shapes: Any) -> list:
  """`shapes`, if they are those of two streams, and not of one tensor, say; otherwise raises ValueError."""
  is_list = isinstance(shapes, list | tuple | tf.TensorShape)
  sizes = list(shapes) if is_list else []
  if len(sizes) == 2 and all(isinstance(size, list | tuple | tf.TensorShape) for size in sizes):
    return sizes
  single = all(size is None or isinstance(size, int) for size in sizes)
  got = f"{len(sizes)} inputs" if not single else f"a tensor of shape {(*sizes,)}" if is_list else repr(shapes)
  raise ValueError(f"{name} takes two streams, (x1, x2), got {got}; halve a tensor by tf.split(x, 2, axis=-1)")


def stream_dtype(streams: Sequence[tf.Tensor], variable_dtype: str) -> str:
  """The dtype in which streams can be rebuilt: that of the widest of streams, variables and float32."""
  return keras.backend.result_type("float32", variable_dtype, *(stream.dtype for stream in streams))


def require_parts(name: str, coupling: keras.layers.Layer, parts: Sequence[Any]) -> None:
  """Raises ValueError unless what a coupling makes of a function's output are float tensors."""
  for part in parts:
    if not isinstance(part, tf.Tensor | keras.KerasTensor) or not tf.as_dtype(part.dtype).is_floating:
      raise ValueError(
        f"{name} gives {part!r}, where its coupling {type(coupling).__name__} takes one float tensor, and no "
        "whole numbers"
      )


def require_shapes(name: str, parts: Sequence[Any], shape: Any) -> None:
  """Raises ValueError unless what a function gives has the shape of a stream, as far as both are known."""
  for part in parts:
    if not tf.TensorShape(part.shape).is_compatible_with(shape):
      raise ValueError(
        f"{name} gives shape {tuple(part.shape)} to a stream of shape {tuple(shape)}; F maps x2 to the shape "
        "of x1, G maps y1 to that of x2"
      )
