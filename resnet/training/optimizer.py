"""SGD with momentum, as TensorFlow 1 defines it."""

import keras
import tensorflow as tf

from resnet.configs.config import Config
from resnet.training.loss_scale import LossScale
from resnet.training.lr_schedule import learning_rate_schedule


@keras.saving.register_keras_serializable("resnet")
class Momentum(keras.optimizers.Optimizer):
  """accumulator = momentum * accumulator + gradient; weight -= learning_rate * accumulator.

  `keras.optimizers.SGD` folds the learning rate into its velocity, and so differs from this whenever
  the learning rate changes.

  Args:
    learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
    momentum: in [0, 1).
    scales_loss: for gradients computed in float16: has a `loss_scale`, see loss_scale.py. The caller scales the
      gradients by it, and divides them by it again before `apply`, which adapts it. A step that is skipped is
      counted.

  Example:
    >>> model = get_model(get_config("revnet-38"))
    >>> model.compile(Momentum(0.1, momentum=0.9), "sparse_categorical_crossentropy")
  """

  def __init__(
    self, learning_rate=0.1, momentum: float = 0.9, scales_loss: bool = False, name="momentum", **kwargs
  ):
    super().__init__(learning_rate, name=name, **kwargs)
    self.momentum = momentum
    self.scales_loss = scales_loss
    self.loss_scale: LossScale | None = None

  def build(self, variables):
    if self.built:
      return
    super().build(variables)
    self.accumulators = [self.add_variable_from_reference(v, "accumulator") for v in variables]
    if self.scales_loss:
      self.loss_scale = LossScale()

  def accumulator(self, variable: keras.Variable) -> keras.Variable:
    """The accumulator of `variable`, for which the optimizer must have been built."""
    return self.accumulators[self._get_variable_index(variable)]  # Private to Keras: see requirements.txt.

  def apply(self, grads, trainable_variables=None):
    if self.loss_scale:
      self.loss_scale.update(grads)
    super().apply(grads, trainable_variables)

  def update_step(self, gradient, variable, learning_rate):
    rate, momentum = (tf.cast(value, variable.dtype) for value in (learning_rate, self.momentum))
    if self.loss_scale:  # 1 * accumulator + 0, weight - 0 * accumulator: nothing changes.
      gradient, rate, momentum = self.loss_scale.unless_skipped([gradient, rate, momentum], [0.0, 0.0, 1.0])
    tf.raw_ops.ResourceApplyMomentum(
      var=variable.handle,
      accum=self.accumulator(variable).handle,
      lr=rate,
      grad=gradient,
      momentum=momentum,
    )

  def get_config(self):
    return {**super().get_config(), "momentum": self.momentum, "scales_loss": self.scales_loss}


def make_optimizer(config: Config, model: keras.Model) -> Momentum:
  """The optimizer of a configuration, built for its model."""
  schedule = learning_rate_schedule(config)
  optimizer = Momentum(schedule, config.momentum, scales_loss=config.dtype == "mixed_float16")
  optimizer.build(model.trainable_variables)
  return optimizer
