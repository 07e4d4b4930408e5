"""Layers of both streams that can be undone, and those that only move numbers; glow.py has others.

To add one, write a class like these: `call`, `inverse`, and unless it is exact `log_det`; `build` if it has
variables, `get_config` if it has arguments.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resnet.recomputation.private_apis import symbolic_outputs
from resnet.reversible.checks import require_pair, require_streams, stream_dtype

Streams = Sequence[tf.Tensor]


class Invertible(keras.layers.Layer):
  """`[y1, y2] = call([x1, x2])`, and `[x1, x2] = inverse([y1, y2])`.

  Streams are float tensors [N, ..., C1] and [N, ..., C2]: float32, or float64 where one of them or the
  variables are, whatever the dtype policy. Variables are made in `build`, by `add_weight(..., autocast=False)`.
  y1 gets the Keras mask of x1, and y2 that of x2; a layer that moves positions has its own `compute_mask`, or
  says `self.supports_masking = False`.

  Attributes:
    exact: whether the layer only moves numbers, or negates them, so that `inverse` undoes it to the last bit.
    invertible: True, as that of couplings that can be undone.

  Raises:
    NotImplementedError: a call of what the layer does not have.
    ValueError: the inputs are not two float tensors.

  Example:
    >>> @keras.saving.register_keras_serializable("mine")
    ... class Negated(Invertible):
    ...   exact = True
    ...
    ...   def call(self, streams):
    ...     return [-stream for stream in streams]
    ...
    ...   inverse = call
    >>> Negated()([np.ones([3, 4]), np.ones([3, 5])])[1].shape
    TensorShape([3, 5])
  """

  exact = False
  invertible = True

  def __init__(self, **kwargs: Any) -> None:
    super().__init__(autocast=False, **kwargs)
    self.dtype_policy = keras.DTypePolicy(self.variable_dtype)  # Variables are read as they are.
    self.supports_masking = True

  def build(self, input_shape: Any) -> None:
    """Makes the variables. `input_shape` has the shapes of both streams."""
    require_pair(self.name, input_shape)

  def call(self, streams: Streams) -> Streams:
    """The streams after the layer."""
    raise NotImplementedError(f"{type(self).__name__} has no call(streams)")

  def inverse(self, streams: Streams) -> Streams:
    """The streams before the layer, from those after it."""
    raise NotImplementedError(f"{type(self).__name__} has no inverse(streams)")

  def log_det(self, streams: Streams) -> tf.Tensor:
    """The logarithm of `|det dy/dx|` of each example, [N], for the streams before the layer; 0 if exact."""
    if not self.exact:
      raise NotImplementedError(f"{type(self).__name__} has no log_det(streams)")
    return at_each_position(self._widened(streams)[0], 0.0)

  def compute_output_spec(self, streams: Any, **kwargs: Any) -> Any:
    return symbolic_outputs(functools.partial(self.call, **kwargs), streams)

  def compute_output_shape(self, input_shape: Any) -> Any:
    dtype = stream_dtype([], self.variable_dtype)
    return [y.shape for y in self([keras.KerasTensor(shape, dtype) for shape in input_shape])]

  def _widened(self, streams: Streams) -> Streams:
    """The streams in the dtype of the widest of them, variables and float32. Builds the layer if need be."""
    require_streams(self.name, streams)
    if not self.built:  # Only `__call__` builds by itself.
      self.build([tuple(stream.shape) for stream in streams])
    return [tf.cast(stream, stream_dtype(streams, self.variable_dtype)) for stream in streams]


@keras.saving.register_keras_serializable("resnet")
class SpaceToDepth(Invertible):
  """Blocks of b x b pixels become pixels, in both streams: [N, H, W, C] -> [N, H / b, W / b, b b C].

  y[n, h, w, (b i + j) C + c] = x[n, b h + i, b w + j, c], i and j below b. It is exact, and gives no masks.

  Args:
    block: b.

  Raises:
    ValueError: block is not an integer from 2, or does not divide H and W of both streams.

  Source: Jacobsen et al. 2018, "i-RevNet: Deep Invertible Networks", section 3.

  Example:
    >>> [y.shape for y in SpaceToDepth()([np.ones([5, 8, 6, 3]), np.ones([5, 8, 6, 4])])]
    [TensorShape([5, 4, 3, 12]), TensorShape([5, 4, 3, 16])]
  """

  exact = True

  def __init__(self, block: int = 2, **kwargs: Any) -> None:
    super().__init__(**kwargs)
    if not isinstance(block, int) or block < 2:
      raise ValueError(f"block must be an integer from 2; got {block!r}")
    self.block = block
    self.supports_masking = False

  def call(self, streams: Streams) -> Streams:
    streams, b = self._widened(streams), self.block
    for x in streams:
      if len(x.shape) != 4 or any((size or 0) % b for size in x.shape[1:3]):
        raise ValueError(f"{self.name}: streams must be [N, H, W, C], {b} dividing H and W; got {x.shape}")
    return [tf.nn.space_to_depth(x, b) for x in streams]

  def inverse(self, streams: Streams) -> Streams:
    return [tf.nn.depth_to_space(y, self.block) for y in self._widened(streams)]

  def get_config(self) -> dict[str, Any]:
    return {**super().get_config(), "block": self.block}


@keras.saving.register_keras_serializable("resnet")
class Permute(Invertible):
  """y[..., k] = x[..., order[k]]; x and y are the channels of both streams, C1 + C2. It is exact.

  Args:
    order: each of 0 ... C1 + C2 - 1 once.

  Raises:
    ValueError: it is not.

  Source: Dinh et al. 2017, "Density estimation using Real NVP", and Kingma and Dhariwal 2018, section 3.2.

  Example:
    >>> Permute([2, 0, 1])([np.array([[10, 11.0]]), np.array([[12.0]])])[0].numpy()
    array([[12., 10.]])
  """

  exact = True

  def __init__(self, order: Sequence[int], **kwargs: Any) -> None:
    super().__init__(**kwargs)
    if not isinstance(order, Sequence | np.ndarray) or set(order) != set(range(len(order))):
      raise ValueError(f"order must have each of the channels' numbers, from 0, once; got {order!r}")
    self.order = [int(channel) for channel in order]

  def call(self, streams: Streams) -> Streams:
    x1, x2 = self._widened(streams)
    if x1.shape[-1] + x2.shape[-1] != len(self.order):
      raise ValueError(
        f"{self.name}: order is of {len(self.order)} channels, the streams have {x1.shape[-1]} + {x2.shape[-1]}"
      )
    return joined([x1, x2], lambda x: tf.gather(x, self.order, axis=-1))

  def inverse(self, streams: Streams) -> Streams:
    return joined(self._widened(streams), lambda y: tf.gather(y, np.argsort(self.order), axis=-1))

  def get_config(self) -> dict[str, Any]:
    return {**super().get_config(), "order": self.order}


@keras.saving.register_keras_serializable("resnet")
class Swap(Invertible):
  """y1 = x2, y2 = x1. It is exact.

  Source: Dinh et al. 2014, "NICE: Non-linear Independent Components Estimation", section 3.

  Example:
    >>> [y.shape for y in Swap()([np.ones([3, 4]), np.ones([3, 5])])]
    [TensorShape([3, 5]), TensorShape([3, 4])]
  """

  exact = True

  def call(self, streams: Streams) -> Streams:
    return self._widened(streams)[::-1]

  inverse = call

  def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
    return previous_mask[::-1]


def joined(streams: Streams, change: Callable[[tf.Tensor], tf.Tensor]) -> Streams:
  """What becomes of the channels of both streams, split where they were joined."""
  return tf.split(change(tf.concat(streams, axis=-1)), [x.shape[-1] for x in streams], axis=-1)


def at_each_position(x: tf.Tensor, value: float | tf.Tensor) -> tf.Tensor:
  """`value` times the positions of an example: [N]."""
  positions = tf.cast(tf.reduce_prod(tf.shape(x)[1:-1]), x.dtype)
  return tf.fill(tf.shape(x)[:1], positions * tf.cast(value, x.dtype))


def two_streams(name: str, given: Any, dtype: tf.DType) -> list[tf.Tensor]:
  """`given`, what the method `name` of a layer gave, if it is two streams; otherwise raises ValueError."""
  if not isinstance(given, list | tuple) or len(given) != 2:
    raise ValueError(f"{name} must give two streams, got {given!r}")
  return [tf.cast(stream, dtype) for stream in given]
