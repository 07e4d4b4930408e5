"""SGD with momentum, as TensorFlow 1 defines it."""

import keras
import tensorflow as tf

from resnet.configs.config import Config
from resnet.training.lr_schedule import learning_rate_schedule

INITIAL_LOSS_SCALE = 2.0**15
STEPS_TO_DOUBLE = 2000
LEAST_LOSS_SCALE = 1.0


@keras.saving.register_keras_serializable("resnet")
class Momentum(keras.optimizers.Optimizer):
  """accumulator = momentum * accumulator + gradient; weight -= learning_rate * accumulator.

  `keras.optimizers.SGD` folds the learning rate into its velocity, and so differs from this whenever
  the learning rate changes.

  Args:
    learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
    momentum: in [0, 1).
    scales_loss: for gradients computed in float16, whose small values would be lost. The caller starts the
      backward pass from `loss_scale`, and divides the gradients by it before `apply`. The scale is halved (down
      to 1) when a gradient is not finite, and doubled after 2,000 steps of finite ones (Micikevicius et al.
      2018, "Mixed Precision Training"). Each replica has a scale of its own. A step that overflows on any
      replica is counted, but skipped: it changes no weight, and `skipped()` is true after it.
      `keras.optimizers.LossScaleOptimizer` looks at the gradients of the first replica alone.

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
    self.loss_scale: keras.Variable | None = None

  def build(self, variables):
    if self.built:
      return
    super().build(variables)
    self.accumulators = [self.add_variable_from_reference(v, "accumulator") for v in variables]
    if self.scales_loss:
      local = {"trainable": False, "aggregation": "only_first_replica", "synchronization": "on_read"}
      self.loss_scale = keras.Variable(INITIAL_LOSS_SCALE, dtype="float32", name="loss_scale", **local)
      self.finite_steps = keras.Variable(0.0, dtype="float32", name="finite_steps", **local)
      # The share of replicas whose gradients overflow in this step: each assigns 0 or 1, the mean is kept.
      self._overflow = keras.Variable(
        0.0, trainable=False, dtype="float32", name="overflow", aggregation="mean"
      )

  def accumulator(self, variable: keras.Variable) -> keras.Variable:
    """The accumulator of `variable`, for which the optimizer must have been built."""
    return self.accumulators[self._get_variable_index(variable)]  # Private to Keras: see requirements.txt.

  def apply(self, grads, trainable_variables=None):
    if self.scales_loss:
      self._adapt_loss_scale(grads)
    super().apply(grads, trainable_variables)

  def _adapt_loss_scale(self, gradients):
    assert self.loss_scale is not None
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    steps = tf.where(finite, self.finite_steps + 1, 0.0)
    doubles = tf.equal(steps, STEPS_TO_DOUBLE)
    self.finite_steps.assign(tf.where(doubles, 0.0, steps))
    scale = self.loss_scale * tf.where(doubles, 2.0, tf.where(finite, 1.0, 0.5))
    self.loss_scale.assign(tf.maximum(scale, LEAST_LOSS_SCALE))
    self._overflow.assign(tf.where(finite, 0.0, 1.0))

  def skipped(self) -> tf.Tensor:
    """Whether the last step overflowed on any replica: a scalar bool."""
    return self._overflow > 0

  def overflows_always(self) -> bool:
    """Whether the last step overflowed although its loss was not scaled up."""
    if self.loss_scale is None:
      return False
    return bool(self.loss_scale.numpy() <= LEAST_LOSS_SCALE and self.finite_steps.numpy() == 0)

  def update_step(self, gradient, variable, learning_rate):
    rate, momentum = (tf.cast(value, variable.dtype) for value in (learning_rate, self.momentum))
    if self.scales_loss:  # 1 * accumulator + 0, weight - 0 * accumulator: nothing changes.
      skipped = self.skipped()
      gradient, rate = tf.where(skipped, 0.0, gradient), tf.where(skipped, 0.0, rate)
      momentum = tf.where(skipped, 1.0, momentum)
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
