"""Keras layers as functions without side effects."""

from typing import Any

import keras
import tensorflow as tf

Tensors = Any  # a tensor, or lists and tuples of them


class PureFunction:
  """A built layer as a function without side effects: (weights, state, inputs) -> (outputs, new state).

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
    self, weights: list[tf.Tensor], state: list[tf.Tensor], inputs: Tensors
  ) -> tuple[Tensors, list[tf.Tensor]]:
    state_variables = self._layer.non_trainable_variables
    variables = self._layer.trainable_variables + state_variables
    with keras.StatelessScope(zip(variables, weights + state, strict=True)) as scope:
      old = [scope.get_current_value(v) for v in state_variables]
      outputs = self._layer(inputs, training=self._training)
    new = [scope.get_current_value(v) for v in state_variables]
    self.changed |= {index for index in range(len(new)) if new[index] is not old[index]}
    return outputs, new

  def assign(self, state: list[tf.Tensor]) -> None:
    """Writes the new state that a call returned to the layer's variables."""
    for index in sorted(self.changed):
      self._layer.non_trainable_variables[index].assign(state[index])
