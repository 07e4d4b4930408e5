"""Checks of what a user hands to the engine's layers, so that mistakes are refused early."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet.reversible.custom_vjp import Tensors
from resnet.reversible.private_apis import keras_mask, set_keras_mask


def require_units(units: Any, invertible: type) -> None:
  """Raises ValueError unless `units` is a list of (F, G), Keras layers both, and of `invertible` layers."""
  if not isinstance(units, list | tuple) or not units:
    raise ValueError(f"units must be a list of (F, G), one at least; got {units!r}")
  for number, unit in enumerate(units):
    if isinstance(unit, invertible):
      continue
    if not isinstance(unit, list | tuple) or len(unit) != 2:
      raise ValueError(f"units must be a list of (F, G) and of Invertible layers; unit {number} is {unit!r}")
    for letter, function in zip("FG", unit, strict=True):
      if not isinstance(function, keras.layers.Layer):
        raise ValueError(
          f"{letter} of unit {number} must be a Keras layer, got {function!r}; keras.layers.Lambda makes a "
          "layer of a function without variables"
        )


def require_streams(name: str, streams: Any) -> None:
  """Raises ValueError unless `streams` are two float tensors."""
  if not isinstance(streams, list | tuple) or len(streams) != 2:
    refuse_streams(name, getattr(streams, "shape", streams))
  for index, stream in enumerate(streams, start=1):
    if not hasattr(stream, "dtype") or not hasattr(stream, "shape"):
      raise ValueError(f"{name}: the streams must be float tensors, x{index} is {stream!r}")
    if tf.TensorShape(stream.shape).rank is None:
      raise ValueError(
        f"{name}: the number of axes of x{index} must be known; set its shape by tf.ensure_shape"
      )
    if not tf.as_dtype(stream.dtype).is_floating:
      dtype = tf.as_dtype(stream.dtype).name
      raise ValueError(f"{name}: the streams must be float tensors, x{index} is {dtype}; cast it first")


def require_masks(name: str, mask: Any) -> Sequence[Any] | None:
  """`mask`, if it is None or two, one for each stream, which may be None; otherwise raises ValueError."""
  if mask is None or (isinstance(mask, list | tuple) and len(mask) == 2):
    return mask
  got = f"a tensor of shape {tuple(mask.shape)}" if hasattr(mask, "shape") else repr(mask)
  raise ValueError(
    f"{name}: mask must be a pair, the mask of x1 and that of x2, either of which may be None; got {got}"
  )


def refuse_streams(name: str, shape: Any) -> None:
  """Raises ValueError for inputs that are not two streams. `shape` is one tensor's, or a list of shapes."""
  sizes = list(shape) if isinstance(shape, list | tuple | tf.TensorShape) else None
  single = sizes is not None and all(size is None or isinstance(size, int) for size in sizes)
  got = (
    repr(shape) if sizes is None else f"a tensor of shape {tuple(sizes)}" if single else f"{len(sizes)} inputs"
  )
  raise ValueError(f"{name} takes two streams, (x1, x2), got {got}; halve a tensor by tf.split(x, 2, axis=-1)")


def stream_dtype(streams: Sequence[tf.Tensor], variable_dtype: str) -> tf.DType:
  """The dtype in which streams can be rebuilt: that of the widest of streams, variables and float32."""
  dtypes = [tf.as_dtype(dtype) for dtype in ("float32", variable_dtype, *(stream.dtype for stream in streams))]
  return max(dtypes, key=lambda dtype: dtype.size)


def require_parts(name: str, coupling: keras.layers.Layer, parts: Sequence[Any]) -> None:
  """Raises ValueError unless what a coupling makes of a function's output are float tensors."""
  for part in parts:
    if not isinstance(part, tf.Tensor | keras.KerasTensor):
      raise ValueError(
        f"{name} gives {part!r}, where its coupling {type(coupling).__name__} takes one float tensor"
      )
    if not tf.as_dtype(part.dtype).is_floating:
      raise ValueError(f"{name} gives {part.dtype} numbers, which cannot change a stream; cast them to float")


def require_shapes(name: str, parts: Sequence[Any], shape: Any) -> None:
  """Raises ValueError unless what a function gives has the shape of a stream, as far as both are known."""
  for part in parts:
    if not tf.TensorShape(part.shape).is_compatible_with(shape):
      raise ValueError(
        f"{name} gives shape {tuple(part.shape)} to a stream of shape {tuple(shape)}; F maps x2 to the shape "
        "of x1, G maps y1 to that of x2"
      )


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


def _required(function: Callable) -> int:
  """How many arguments a function needs."""
  parameters = inspect.signature(function).parameters.values()
  named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY, p.KEYWORD_ONLY)]
  return sum(p.default is p.empty for p in named)
