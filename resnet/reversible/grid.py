"""Numbers on a grid, whose sums and differences are exact."""

import tensorflow as tf


def on_grid(x: tf.Tensor, bits: int | None) -> tf.Tensor:
  """x rounded to multiples of 2 ** -bits; x itself if bits is None. The gradient is that of the identity."""
  if bits is None:
    return x

  @tf.custom_gradient
  def rounded(x):
    step = tf.constant(2.0**-bits, x.dtype)  # A power of two: multiplication and division are exact.
    return tf.round(x / step) * step, lambda dy: dy

  return rounded(x)
