"""The invertible layers of Glow (Kingma and Dhariwal 2018), which normalising flows are made of."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resnet.reversible.checks import stream_dtype
from resnet.reversible.invertible import Invertible, Streams, at_each_position, joined


@keras.saving.register_keras_serializable("resnet")
class InvertibleDense(Invertible):
  """y = x W at each position; x and y are the channels of both streams: an invertible 1x1 convolution.

  W, `kernel`, [C1 + C2, C1 + C2], is orthogonal at first. The log_det is the number of positions times
  `log|det W|`. The inverse is as precise as products are: on a GPU with TensorFloat-32, about three digits.

  Raises:
    ValueError: the number of channels is unknown.

  Source: Kingma and Dhariwal 2018, "Glow: Generative Flow with Invertible 1x1 Convolutions", section 3.2.

  Example:
    >>> streams, layer = [np.ones([5, 8, 8, 3]), np.ones([5, 8, 8, 4])], InvertibleDense()
    >>> np.allclose(layer.inverse(layer(streams))[0], streams[0])
    True
  """

  def build(self, input_shape: Any) -> None:
    super().build(input_shape)
    self.kernel = _weight(self, "kernel", "orthogonal", 2, input_shape)

  def call(self, streams: Streams) -> Streams:
    return joined(self._widened(streams), lambda x: tf.tensordot(x, tf.cast(self.kernel, x.dtype), 1))

  def inverse(self, streams: Streams) -> Streams:
    streams = self._widened(streams)
    inverse = tf.linalg.inv(tf.cast(self.kernel, tf.float64))  # In float32 as precise as solving, and faster.
    return joined(streams, lambda y: tf.tensordot(y, tf.cast(inverse, y.dtype), 1))

  def log_det(self, streams: Streams) -> tf.Tensor:
    x1, _ = self._widened(streams)
    _, r = tf.linalg.qr(tf.cast(self.kernel, x1.dtype))  # |det W| = |det R|. XLA has no tf.linalg.slogdet.
    return at_each_position(x1, tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(r)))))


@keras.saving.register_keras_serializable("resnet")
class ActNorm(Invertible):
  """y = (x + b) exp(s), with b and s for each channel of each stream.

  b, `bias`, and s, `log_scale`, [C1 + C2], are 0 until `adapt`. The log_det is the sum of s over channels and
  positions.

  Raises:
    ValueError: the number of channels is unknown.

  Source: Kingma and Dhariwal 2018, "Glow", section 3.1.

  Example:
    >>> streams, layer = np.random.RandomState(0).normal(3, 2, [2, 100, 4]), ActNorm()
    >>> layer.adapt(list(streams))
    >>> np.allclose(np.std(layer(list(streams))[0], axis=0), 1, atol=1e-5)
    True
  """

  def build(self, input_shape: Any) -> None:
    super().build(input_shape)
    self.bias = _weight(self, "bias", "zeros", 1, input_shape)
    self.log_scale = _weight(self, "log_scale", "zeros", 1, input_shape)

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
    return tf.add_n([at_each_position(x, tf.reduce_sum(s)) for x, _, s in self._terms(streams)])

  def _terms(self, streams: Streams) -> list[tuple[tf.Tensor, ...]]:
    """(stream, b, s) of each stream."""
    streams, channels = self._widened(streams), [x.shape[-1] for x in streams]
    terms = (tf.split(tf.cast(v, streams[0].dtype), channels) for v in (self.bias, self.log_scale))
    return list(zip(streams, *terms, strict=True))


def _weight(layer: Invertible, name: str, initializer: str, axes: int, shapes: Any) -> keras.Variable:
  """A variable whose axes, one or two, are the channels of both streams. Float32 at least, as streams are."""
  if None in (channels := [shape[-1] for shape in shapes]):
    raise ValueError(f"{layer.name} must know how many channels the streams have; got shapes {shapes}")
  dtype = stream_dtype([], layer.variable_dtype)
  shape = [sum(channels)] * axes
  return layer.add_weight(shape=shape, initializer=initializer, dtype=dtype, autocast=False, name=name)
