"""For a layer's author: what the recomputation of a layer takes from its first run.

With `replayed`, an expensive part of a layer is computed in the first run only. With `keep_output`, the output
of a layer within is kept where the chain keeps outputs, see `Rebuild`.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from resnet.recomputation.custom_vjp import (
  Tensors,
  custom_vjp,
  mark_boundary,
  own_in_boundaries,
  unlinked,
  watched,
)
from resnet.recomputation.masks import with_mask
from resnet.recomputation.ordering import wait_for
from resnet.recomputation.private_apis import keras_mask
from resnet.recomputation.stateless import (
  ACTIVATIONS,
  STATISTICS,
  Evaluation,
  Saved,
  StatelessLayers,
  current,
  evaluating,
)


def replayed(
  layer: keras.layers.Layer, first: Callable, again: Callable, *inputs: tf.Tensor
) -> tuple[tf.Tensor, Tensors]:
  """Computes a part of a layer from what the first run kept of it, if this is the layer's recomputation.

  To be called in the `call` of a layer that may stand in a `ReversibleChain` or a `Recompute`, which run it
  once forward and once more in the backward pass.

  Args:
    layer: that calls this, named in errors.
    first: inputs -> (y, kept), in TensorFlow's differentiable operations. `kept` is held until the backward
      pass: a tensor or a structure of them, small beside an activation. State that the layer changes is best
      changed here.
    again: `(kept, *inputs)` -> (y, its gradient function), as `tf.custom_gradient` wants it. It may round
      otherwise than `first`.
    *inputs: tensors or variables that a gradient is wanted for.

  Where nothing may be kept (no recomputation follows, or the chain is a while_loop, or it is exact) `first` is
  computed in both runs.

  Returns:
    y and kept.

  Raises:
    ValueError: a function's recomputation makes other calls than its first run did.

  Example:
    >>> class Scaled(keras.layers.Layer):
    ...   def call(self, x):
    ...     y, scale = replayed(self, self._scaled, self._scaled_again, x)
    ...     return y
    ...
    ...   def _scaled(self, x):
    ...     scale = tf.linalg.norm(x)  # takes long, and is small
    ...     return x * scale, scale
    ...
    ...   def _scaled_again(self, scale, x):
    ...     def gradient(dy):
    ...       return dy * scale + tf.reduce_sum(dy * x) * x / scale
    ...
    ...     return x * scale, gradient
    >>> Recompute(Scaled())(np.ones([2, 3])).shape
    TensorShape([2, 3])
  """
  evaluation = current.get()
  if evaluation is None or STATISTICS not in evaluation.kinds:
    return first(*inputs)
  if evaluation.asked is None:
    y, kept = first(*inputs)
    evaluation.saved.append(Saved(layer.name, y.shape, (None, None), unlinked(kept)))
    return y, kept
  saved = evaluation.next(layer.name)
  y = custom_vjp(lambda given: again(saved.tensors, *given), [*inputs])
  if not y.shape.is_compatible_with(saved.shape):
    raise ValueError(
      f"layer {layer.name!r}: the recomputation gives {y.shape} by `replayed`, the first run gave {saved.shape}"
    )
  return y, saved.tensors


def keep_output(layer: keras.layers.Layer, x: tf.Tensor, training: bool = False) -> tf.Tensor:
  """`layer(x, training=training)`, whose output is kept for the backward pass where activations may be kept.

  To be called in the `call` of a layer around `layer`. In the recomputation `layer` then runs for its gradient
  alone, and not before the gradient of its output is there. In a graph, ops that nothing but the output needs
  are not run: a convolution that comes last in `layer` costs no second time.

  Args:
    layer: built, a layer of the one that calls this.
    x: a float tensor.
    training: handed to the layer.

  Returns:
    The layer's output, one tensor.

  Keras' masks that x and the output carry are carried in both runs.

  Raises:
    ValueError: a function's recomputation makes other calls than its first run did.

  Example:
    >>> class Block(keras.layers.Layer):
    ...   def build(self, input_shape):
    ...     self.convolution = keras.layers.Conv2D(4, 3, padding="same")
    ...     self.convolution.build(input_shape)
    ...
    ...   def call(self, x, training=False):
    ...     return keras.ops.relu(keep_output(self.convolution, x, training))
    >>> chain = ReversibleChain([(Block(), Block())], backward=Rebuild(keep="auto"))
    >>> chain([np.ones([1, 8, 8, 4])] * 2, training=True)[0].shape
    TensorShape([1, 8, 8, 4])
  """
  evaluation = current.get()
  if evaluation is None or ACTIVATIONS not in evaluation.kinds:
    return layer(x, training=training)
  kinds = [kind for kind in evaluation.kinds if kind != ACTIVATIONS]
  stateless, of_all = StatelessLayers([layer], layer.name, kinds), evaluation.weights
  weights = [of_all[id(variable)] for variable in layer.variables if id(variable) in of_all]
  if evaluation.asked is None:
    state = stateless.state()
    inner, mask = Evaluation(kinds, of_all), keras_mask(x)
    x = with_mask(own_in_boundaries(x), mask)
    with evaluating(inner):
      y = layer(x, training=training)
    mark_boundary([y], [x, *weights])
    tensors = unlinked((y, state, stateless.state()))
    evaluation.saved.append(Saved(layer.name, y.shape, (mask, keras_mask(y)), tensors, inner.saved))
    return y
  saved = evaluation.next(layer.name)
  y, state, new_state = saved.tensors
  for variable, value in zip(stateless.variables, new_state):
    variable.assign(value)  # For layers that share it. The variable itself does not change in a recomputation.

  def output(given: Tensors) -> tuple[tf.Tensor, Callable]:
    def pullback(dy: tf.Tensor) -> Tensors:
      late, late_state, inner = wait_for(dy, (given, state, saved.inner))  # Rule 6.
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        x, weights = late = watched(tape, late)
        with stateless.evaluation(weights, late_state, inner):
          again = layer(with_mask(x, saved.masks[0]), training=training)
      with stateless.scope(weights, late_state):
        return tape.gradient(again, late, dy)

    return tf.identity(y), pullback

  return with_mask(custom_vjp(output, (x, weights)), saved.masks[1])
