"""Layers of both streams that can be undone. They stand between the units of a chain.

To add one, write a class like these: `call`, `inverse`, and unless it is exact `log_det`; `build` if it has
variables, `get_config` if it has arguments.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resnet.reversible.checks import refuse_streams, require_streams, stream_dtype

Streams = Sequence[tf.Tensor]


class Invertible(keras.layers.Layer):
  """`[y1, y2] = call([x1, x2])`, and `[x1, x2] = inverse([y1, y2])`.

  Streams are float tensors [N, ..., C1] and [N, ..., C2]: float32, or float64 where one of them or the variables
  are, whatever the dtype policy. Variables are made in `build`, by `add_weight(..., autocast=False)`. y1 gets the
  Keras mask of x1, y2 that of x2; a layer that moves them has `compute_mask`, or says `supports_masking = False`.

  Attributes:
    exact: whether the layer only moves numbers, or negates them, so that `inverse` undoes it to the last bit.

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

  def __init__(self, **kwargs: Any) -> None:
    super().__init__(autocast=False, **kwargs)
    self.supports_masking = True

  def build(self, input_shape: Any) -> None:
    """Makes the variables. `input_shape` has the shapes of both streams."""
    if len(input_shape) != 2 or not all(isinstance(shape, list | tuple) for shape in input_shape):
      refuse_streams(self.name, input_shape)

  def call(self, streams: Streams) -> Streams:
    """The streams after the layer."""
    raise NotImplementedError(f"{type(self).__name__} has no call(streams)")

  def inverse(self, streams: Streams) -> Streams:
    """The streams before the layer, from those after it."""
    raise NotImplementedError(f"{type(self).__name__} has no inverse(streams)")

  def log_det(self, streams: Streams) -> tf.Tensor:
    """The logarithm of `|det dy/dx|` of each example, [N], from the streams before the layer. Of exact ones 0."""
    if not self.exact:
      raise NotImplementedError(f"{type(self).__name__} has no log_det(streams)")
    return _at_each_position(self._widened(streams)[0], 0.0)

  def compute_output_spec(self, streams: Any) -> Any:
    return keras.Operation.compute_output_spec(self, streams)  # By `call`, which knows dtypes as well.

  def compute_output_shape(self, input_shape: Any) -> Any:
    return [y.shape for y in self([keras.KerasTensor(shape) for shape in input_shape])]

  def _widened(self, streams: Streams) -> Streams:
    """The streams in the dtype of the widest of them, variables and float32. Builds the layer if need be."""
    require_streams(self.name, streams)
    if not self.built:  # Only `__call__` builds by itself.
      self.build([tuple(stream.shape) for stream in streams])
    return [tf.cast(stream, stream_dtype(streams, self.variable_dtype)) for stream in streams]

  def _weight(self, name: str, initializer: str, axes: int, shapes: Any) -> keras.Variable:
    """A variable whose axes, one or two, are the channels of both streams."""
    if None in (channels := [shape[-1] for shape in shapes]):
      raise ValueError(f"{self.name} must know how many channels the streams have; got shapes {shapes}")
    dtype = stream_dtype([], self.variable_dtype).name
    return self.add_weight([sum(channels)] * axes, initializer, dtype, name=name, autocast=False)


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
    for x in streams:
      if len(x.shape) != 4 or any((size or 0) % self.block for size in x.shape[1:3]):
        raise ValueError(f"streams must be [N, H, W, C], H and W multiples of {self.block}; got {x.shape}")
    return [tf.nn.space_to_depth(x, self.block) for x in self._widened(streams)]

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
    if set(order) != set(range(len(order))):
      raise ValueError(f"order must have each of 0 ... {len(order) - 1} once; got {order!r}")
    self.order = [int(channel) for channel in order]

  def call(self, streams: Streams) -> Streams:
    if (channels := sum(x.shape[-1] for x in streams)) != len(self.order):
      raise ValueError(f"order has {len(self.order)} channels, both streams have {channels}")
    return _joined(self._widened(streams), lambda x: tf.gather(x, self.order, axis=-1))

  def inverse(self, streams: Streams) -> Streams:
    return _joined(self._widened(streams), lambda y: tf.gather(y, np.argsort(self.order), axis=-1))

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


@keras.saving.register_keras_serializable("resnet")
class InvertibleDense(Invertible):
  """y = x W at each position; x and y are the channels of both streams: an invertible 1x1 convolution.

  W, `kernel`, [C1 + C2, C1 + C2], is orthogonal at first. The log_det is the number of positions times
  `log|det W|`. The inverse is as precise as products are: on a GPU with TensorFloat-32, about three digits.

  Source: Kingma and Dhariwal 2018, "Glow: Generative Flow with Invertible 1x1 Convolutions", section 3.2.

  Example:
    >>> streams, layer = [np.ones([5, 8, 8, 3]), np.ones([5, 8, 8, 4])], InvertibleDense()
    >>> np.allclose(layer.inverse(layer(streams))[0], streams[0])
    True
  """

  def build(self, input_shape: Any) -> None:
    super().build(input_shape)
    self.kernel = self._weight("kernel", "orthogonal", 2, input_shape)

  def call(self, streams: Streams) -> Streams:
    return _joined(self._widened(streams), lambda x: tf.tensordot(x, tf.cast(self.kernel, x.dtype), 1))

  def inverse(self, streams: Streams) -> Streams:
    streams = self._widened(streams)
    inverse = tf.linalg.inv(tf.cast(self.kernel, tf.float64))  # In float32 as precise as solving, and faster.
    return _joined(streams, lambda y: tf.tensordot(y, tf.cast(inverse, y.dtype), 1))

  def log_det(self, streams: Streams) -> tf.Tensor:
    x1, _ = self._widened(streams)
    _, r = tf.linalg.qr(tf.cast(self.kernel, x1.dtype))  # |det W| = |det R|. XLA has no tf.linalg.slogdet.
    return _at_each_position(x1, tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(r)))))


@keras.saving.register_keras_serializable("resnet")
class ActNorm(Invertible):
  """y = (x + b) exp(s), with b and s for each channel of each stream.

  b, `bias`, and s, `log_scale`, [C1 + C2], are 0 until `adapt`. The log_det is the sum of s over channels and
  positions.

  Source: Kingma and Dhariwal 2018, "Glow", section 3.1.

  Example:
    >>> streams, layer = np.random.RandomState(0).normal(3, 2, [2, 100, 4]), ActNorm()
    >>> layer.adapt(list(streams))
    >>> np.allclose(np.std(layer(list(streams))[0], axis=0), 1, atol=1e-5)
    True
  """

  def build(self, input_shape: Any) -> None:
    super().build(input_shape)
    self.bias, self.log_scale = (self._weight(k, "zeros", 1, input_shape) for k in ("bias", "log_scale"))

  def adapt(self, streams: Streams) -> None:
    """Sets b and s so that these streams come out with mean 0 and variance 1. Of constant channels, s is 0."""
    flat = [np.reshape(x, [-1, x.shape[-1]]).astype("float64") for x in self._widened(streams)]
    deviation = np.concatenate([np.where(np.ptp(x, axis=0) > 0, np.std(x, axis=0), 1) for x in flat])
    self.bias.assign(-np.concatenate([np.mean(x, axis=0) for x in flat]))
    self.log_scale.assign(-np.log(deviation))

  def call(self, streams: Streams) -> Streams:
    return [(x + b) * tf.exp(s) for x, b, s in self._terms(streams)]

  def inverse(self, streams: Streams) -> Streams:
    return [y * tf.exp(-s) - b for y, b, s in self._terms(streams)]

  def log_det(self, streams: Streams) -> tf.Tensor:
    return tf.add_n([_at_each_position(x, tf.reduce_sum(s)) for x, _, s in self._terms(streams)])

  def _terms(self, streams: Streams) -> list[tuple[tf.Tensor, ...]]:
    """(stream, b, s) of each stream."""
    streams, channels = self._widened(streams), [x.shape[-1] for x in streams]
    terms = (tf.split(tf.cast(v, streams[0].dtype), channels) for v in (self.bias, self.log_scale))
    return list(zip(streams, *terms, strict=True))


def _joined(streams: Streams, change: Callable[[tf.Tensor], tf.Tensor]) -> Streams:
  """What becomes of the channels of both streams, split where they were joined."""
  return tf.split(change(tf.concat(streams, axis=-1)), [x.shape[-1] for x in streams], axis=-1)


def _at_each_position(x: tf.Tensor, value: float | tf.Tensor) -> tf.Tensor:
  """`value` times the positions of an example: [N]."""
  positions = tf.cast(tf.reduce_prod(tf.shape(x)[1:-1]), x.dtype)
  return tf.fill(tf.shape(x)[:1], positions * tf.cast(value, x.dtype))
