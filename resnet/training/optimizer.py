"""SGD with momentum, the way TensorFlow 1 counted it."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("resnet")
class Momentum(keras.optimizers.Optimizer):
  """accumulator = momentum * accumulator + gradient; weight -= learning_rate * accumulator.

  `keras.optimizers.SGD` folds the learning rate into its velocity, and so differs from this whenever
  the learning rate changes.

  Args:
    learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
    momentum: in [0, 1).
  """

  def __init__(self, learning_rate=0.1, momentum: float = 0.9, name="momentum", **kwargs):
    super().__init__(learning_rate, name=name, **kwargs)
    self.momentum = momentum

  def build(self, variables):
    if self.built:
      return
    super().build(variables)
    self.accumulators = [self.add_variable_from_reference(v, "accumulator") for v in variables]

  def accumulator(self, variable: keras.Variable) -> keras.Variable:
    """The accumulator of `variable`, one of those that the optimizer was built for."""
    return self.accumulators[self._get_variable_index(variable)]

  def update_step(self, gradient, variable, learning_rate):
    accumulator = self.accumulator(variable)
    tf.raw_ops.ResourceApplyMomentum(
      var=variable.handle,
      accum=accumulator.handle,
      lr=tf.cast(learning_rate, variable.dtype),
      grad=gradient,
      momentum=tf.cast(self.momentum, variable.dtype),
    )

  def get_config(self):
    return {**super().get_config(), "momentum": self.momentum}
