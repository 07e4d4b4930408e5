"""Couplings: how the output of a function changes a stream, and how that change is undone.

Each coupling stands with its equations. To add one, write a class like these: with `couple` and `uncouple`,
whose gradients TensorFlow finds, and if it has variables, `build` and `get_config` as in any Keras layer.
"""

import numbers
from typing import Any

import keras
import tensorflow as tf

from resnet.recomputation.building import build_layer, require_layer
from resnet.recomputation.custom_vjp import Tensors


class Coupling(keras.layers.Layer):
  """`y = couple(x, *parts(change))`, and `x = uncouple(y, *parts(change))`.

  `change` is the output of F or G; x and y are the stream before and after the change. In a chain every
  function has a coupling of its own, made from `get_config`. Variables are made in `build(input_shape)`, for
  the shape of the stream, by `add_weight(..., autocast=False)`.

  Attributes:
    exact: whether `couple` only adds to the stream or negates it, so that `uncouple` undoes it to the last bit
      for numbers on a grid.
    invertible: False if there is no `uncouple`. Chains then keep x for the backward pass.

  Raises:
    NotImplementedError: a chain calls what the coupling does not have.

  Example:
    >>> @keras.saving.register_keras_serializable("mine")
    ... class Subtracted(Coupling):
    ...   exact = True
    ...
    ...   def couple(self, x, change):
    ...     return x - change
    ...
    ...   def uncouple(self, y, change):
    ...     return y + change
    >>> chain = ReversibleChain([(keras.layers.Dense(4), keras.layers.Dense(4))], coupling=Subtracted())
    >>> chain([np.ones([3, 4])] * 2)[0].shape
    TensorShape([3, 4])
  """

  exact = False
  invertible = True

  def changed_shape(self, shape: tuple) -> tuple:
    """The shape of y, and of each of the parts, for x of a shape."""
    return shape

  def parts(self, change: Tensors) -> tuple[tf.Tensor, ...]:
    """The output of F or G, as tensors of the stream's shape."""
    return (change,)

  def couple(self, x: tf.Tensor, *parts: tf.Tensor) -> tf.Tensor:
    """The stream after the change, of the shape of x."""
    raise NotImplementedError(f"{type(self).__name__} has no couple(x, *parts)")

  def uncouple(self, y: tf.Tensor, *parts: tf.Tensor) -> tf.Tensor:
    """The stream before the change, of the shape of y."""
    raise NotImplementedError(f"{type(self).__name__} has no uncouple(y, *parts)")

  def log_det(self, x: tf.Tensor, *parts: tf.Tensor) -> tf.Tensor:
    """The logarithm of `|det dy/dx|` of each example, [N]. Only chains with log_det need it."""
    raise NotImplementedError(f"{type(self).__name__} has no log_det(x, *parts)")


@keras.saving.register_keras_serializable("resnet")
class Additive(Coupling):
  """y = x + F, x = y - F: the coupling of NICE (Dinh et al. 2014) and of RevNet (Gomez et al. 2017).

  Example:
    >>> chain = ReversibleChain([(keras.layers.Dense(4), keras.layers.Dense(4))], coupling=Additive())
    >>> y1, y2 = chain([np.ones([3, 4])] * 2)
    >>> y1.shape
    TensorShape([3, 4])
  """

  exact = True

  def couple(self, x: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
    return x + change

  def uncouple(self, y: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
    return y - change

  def log_det(self, x: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
    return _sum_of_each(tf.zeros_like(x))


@keras.saving.register_keras_serializable("resnet")
class Scaled(Coupling):
  """y = a x + F, x = (y - F) / a, with a number a other than 0.

  a = -1 in both couplings is leapfrog, x2 being the newer of two states in time: with
  F(x) = 2 x + h^2 f(x), y1 = 2 x2 - x1 + h^2 f(x2) (Chang et al. 2018, "Reversible Architectures for
  Arbitrarily Deep Residual Neural Networks"). 0 < a < 1 in the first coupling, with G the identity, is a
  momentum residual network, whose velocity is x1 (Sander et al. 2021). The inverse multiplies rounding errors
  by 1 / a in each unit: keep `|a|` near 1 in deep chains, and look at `reconstruction_error`.

  Args:
    scale: a, or its initial value if it is trained.
    trained: whether a is a weight, a scalar for each function of the chain.

  Raises:
    ValueError: scale is no number, or 0.

  Example:
    >>> functions = [(keras.layers.Dense(4), keras.layers.Dense(4)) for _ in range(3)]
    >>> leapfrog = ReversibleChain(functions, coupling=Scaled(-1.0))
    >>> leapfrog([np.ones([3, 4])] * 2)[1].shape
    TensorShape([3, 4])
  """

  def __init__(self, scale: float, trained: bool = False, **kwargs: Any) -> None:
    super().__init__(**kwargs)
    self.scale, self.trained = scale, trained
    if not (isinstance(scale, numbers.Real) and scale):
      raise ValueError(f"scale must be a number other than 0, or the coupling has no inverse; got {scale!r}")
    self.exact = abs(scale) == 1 and not trained

  def build(self, input_shape: Any) -> None:
    if self.trained:
      start = keras.initializers.Constant(self.scale)
      self.a = self.add_weight(shape=(), initializer=start, name="scale", autocast=False)

  def _a(self, x: tf.Tensor) -> tf.Tensor:
    return tf.cast(self.a if self.trained else self.scale, x.dtype)

  def couple(self, x: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
    return self._a(x) * x + change

  def uncouple(self, y: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
    return (y - change) / self._a(y)

  def log_det(self, x: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
    return _sum_of_each(tf.fill(tf.shape(x), tf.math.log(tf.abs(self._a(x)))))

  def get_config(self) -> dict[str, Any]:
    return {**super().get_config(), "scale": self.scale, "trained": self.trained}


@keras.saving.register_keras_serializable("resnet")
class Shortcut(Coupling):
  """y = layer(x) + F: a residual unit that changes the stream's shape, as ResNets have between stages.

  It has no inverse, so its stream is kept.

  Args:
    layer: a Keras layer that brings x to the shape of F: pooling, a convolution with a stride.

  Raises:
    ValueError: layer is no Keras layer; in the chain, if its output has not the shape of F's.

  Source: He et al. 2016, "Deep Residual Learning for Image Recognition", equation 2.

  Example:
    >>> Dense = keras.layers.Dense
    >>> wider = ReversibleChain([(Dense(8), Dense(8))], coupling=(Shortcut(Dense(8)), Shortcut(Dense(8))))
    >>> wider([np.ones([3, 4])] * 2)[0].shape
    TensorShape([3, 8])
  """

  invertible = False

  def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
    super().__init__(**kwargs)
    require_layer("layer", layer)
    self.layer = layer

  def build(self, input_shape: Any) -> None:
    build_layer(self.layer, input_shape, self.variable_dtype)

  def changed_shape(self, shape: tuple) -> tuple:
    return self.layer.compute_output_shape(shape)

  def couple(self, x: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
    return tf.cast(self.layer(x), x.dtype) + change

  def get_config(self) -> dict[str, Any]:
    return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

  @classmethod
  def from_config(cls, config: dict[str, Any]) -> "Shortcut":
    return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


@keras.saving.register_keras_serializable("resnet")
class Affine(Coupling):
  """y = x exp(s) + t, x = (y - t) exp(-s), with F giving (s, t): the coupling of RealNVP (Dinh et al. 2017).

  F gives s and t as a pair of tensors of the stream's shape, or as one tensor whose last axis is twice as
  long, s before t.

  Args:
    bound: if given, s is replaced by bound * tanh(s / bound), which stays within +-bound.

  Raises:
    ValueError: bound is no positive number.

  Example:
    >>> flow = ReversibleChain(
    ...   [(keras.layers.Dense(8), keras.layers.Dense(8))], coupling=Affine(bound=2.0), log_det=True
    ... )
    >>> y1, y2, log_det = flow([np.ones([3, 4])] * 2)
    >>> log_det.shape
    TensorShape([3])
  """

  def __init__(self, bound: float | None = None, **kwargs: Any) -> None:
    super().__init__(**kwargs)
    if bound is not None and not (isinstance(bound, numbers.Real) and bound > 0):
      raise ValueError(f"bound must be positive, or None for an s without bounds; got {bound!r}")
    self.bound = bound

  def parts(self, change: Tensors) -> tuple[tf.Tensor, ...]:
    if not isinstance(change, list | tuple):
      width = change.shape[-1]
      change = tf.split(change, [width // 2, width - width // 2], axis=-1)
    s, t = change
    return (s if self.bound is None else self.bound * tf.tanh(s / self.bound)), t

  def couple(self, x: tf.Tensor, s: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    return x * tf.exp(s) + t

  def uncouple(self, y: tf.Tensor, s: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    return (y - t) * tf.exp(-s)

  def log_det(self, x: tf.Tensor, s: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    return _sum_of_each(s)

  def get_config(self) -> dict[str, Any]:
    return {**super().get_config(), "bound": self.bound}


def couplings_of(coupling: Any, count: int) -> list[Coupling]:
  """The couplings of a chain's functions, from what a user gave for them, see `ReversibleChain`.

  Raises:
    ValueError: it is none of these.
  """
  given = Additive() if coupling is None else coupling
  given = (given, given) if isinstance(given, Coupling) else given
  fits = isinstance(given, tuple | list) and len(given) == (2 if isinstance(given, tuple) else count)
  if not fits or not all(isinstance(one, Coupling) for one in given):
    raise ValueError(
      "coupling must be a Coupling, or a tuple of two, for the Fs and for the Gs, or a list of one for each of "
      f"the {count} functions; got {coupling!r}"
    )
  if isinstance(given, list):
    return given
  return [
    type(given[k % 2]).from_config({**given[k % 2].get_config(), "name": f"coupling_{k}"}) for k in range(count)
  ]


def _sum_of_each(x: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(x, axis=list(range(1, x.shape.rank)))
