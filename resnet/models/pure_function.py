"""Keras layers as functions without side effects, which may be run a second time."""

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf

Tensors = Any  # a tensor, or lists and tuples of them

# What the layers of the function that now runs keep, and what they kept if this is its second run.
_running: ContextVar[tuple[list[Tensors], Iterator[Tensors] | None] | None] = ContextVar(
  "running", default=None
)


def keep(tensors: Tensors) -> None:
  """Keeps `tensors` for the second run of a layer, in the backward pass; does nothing if there is none.

  To be called in the `call` of a layer, on values that take long to compute and are small, since they are
  held until the backward pass: the statistics of a batch, or the output of a convolution where maps are small.
  """
  if running := _running.get():
    running[0].append(tensors)


def kept() -> Tensors | None:
  """In a layer's second run what the first run kept, in the same order; otherwise None: compute it.

  No gradient flows through it: where one should, the layer has to give it by `tf.custom_gradient`. A chain
  of form "while_loop" hands nothing over.
  """
  running = _running.get()
  return next(running[1]) if running and running[1] else None


class PureFunction:
  """A built layer as a function without side effects.

  (weights, state, inputs) -> (outputs, new state, what the layers in it kept for a second run). A call with
  what the first run kept is the second one.

  Args:
    layer: the layer.
    training: handed to the layer.
  """

  def __init__(self, layer: keras.layers.Layer, training: bool):
    self._layer = layer
    self._training = training
    self.changed: set[int] = set()  # The indices of the state that calls have changed.

  def weights(self) -> list[tf.Tensor]:
    """The layer's trainable variables, read."""
    return [tf.convert_to_tensor(v.value) for v in self._layer.trainable_variables]

  def state(self) -> list[tf.Tensor]:
    """The layer's other variables, read: the variables themselves would change under the second run."""
    return [tf.convert_to_tensor(v.value) for v in self._layer.non_trainable_variables]

  def __call__(
    self,
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    inputs: Tensors,
    kept_before: list[Tensors] | None = None,
  ) -> tuple[Tensors, list[tf.Tensor], list[Tensors]]:
    state_variables = self._layer.non_trainable_variables
    variables = self._layer.trainable_variables + state_variables
    kept_now: list[Tensors] = []
    before_this = _running.set((kept_now, None if kept_before is None else iter(kept_before)))
    try:
      with keras.StatelessScope(zip(variables, weights + state, strict=True)) as scope:
        old = [scope.get_current_value(v) for v in state_variables]
        outputs = self._layer(inputs, training=self._training)
    finally:
      _running.reset(before_this)
    new = [scope.get_current_value(v) for v in state_variables]
    self.changed |= {index for index in range(len(new)) if new[index] is not old[index]}
    return outputs, new, kept_now

  def assign(self, state: list[tf.Tensor]) -> None:
    """Writes the new state that a call returned to the layer's variables."""
    for index in sorted(self.changed):
      self._layer.non_trainable_variables[index].assign(state[index])
