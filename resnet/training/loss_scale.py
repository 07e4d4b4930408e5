"""Loss scaling for gradients computed in float16, whose small values would be lost.

The backward pass starts from a scale instead of 1, and the gradients are divided by it afterwards. The scale is
halved, down to 1, when a gradient is not finite, and doubled after 2,000 steps of finite ones (Micikevicius et
al. 2018, "Mixed Precision Training"). Each replica has a scale of its own. A step that overflows on any replica
is skipped on all: it changes neither weights nor moving statistics. `keras.optimizers.LossScaleOptimizer` looks
at the gradients of the first replica alone.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

INITIAL_LOSS_SCALE = 2.0**15
STEPS_TO_DOUBLE = 2000
LEAST_LOSS_SCALE = 1.0


class LossScale(tf.Module):
  """The scale, and whether the step that it served is skipped. Make it under the strategy of the training.

  In a step: `scaled_gradients` with `now()`, `update`, and then `unless_skipped` for all that the step changes.
  """

  def __init__(self) -> None:
    super().__init__()
    local = {"trainable": False, "aggregation": "only_first_replica", "synchronization": "on_read"}
    self.value = keras.Variable(INITIAL_LOSS_SCALE, dtype="float32", name="loss_scale", **local)
    self.finite_steps = keras.Variable(0.0, dtype="float32", name="finite_steps", **local)
    # The share of replicas whose gradients overflow in this step: each assigns 0 or 1, the mean is kept.
    self._overflow = keras.Variable(0.0, trainable=False, dtype="float32", name="overflow", aggregation="mean")

  @property
  def saved(self) -> dict[str, keras.Variable]:
    """What a checkpoint keeps, by its name there."""
    return {"value": self.value, "finite_steps": self.finite_steps}

  def now(self) -> tf.Tensor:
    """The scale of the step to come, a scalar."""
    return tf.convert_to_tensor(self.value)

  def update(self, gradients: Sequence[tf.Tensor]) -> None:
    """Adapts the scale to a step's gradients, which have been divided by it."""
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    steps = tf.where(finite, self.finite_steps + 1, 0.0)
    doubles = tf.equal(steps, STEPS_TO_DOUBLE)
    self.finite_steps.assign(tf.where(doubles, 0.0, steps))
    scale = self.value * tf.where(doubles, 2.0, tf.where(finite, 1.0, 0.5))
    self.value.assign(tf.maximum(scale, LEAST_LOSS_SCALE))
    self._overflow.assign(tf.where(finite, 0.0, 1.0))

  def unless_skipped(self, new: Sequence[tf.Tensor], old: Sequence[tf.Tensor | float]) -> list[tf.Tensor]:
    """`new`, or `old` if the last step overflowed on any replica."""
    skipped = self._overflow > 0
    return [tf.where(skipped, before, after) for after, before in zip(new, old, strict=True)]

  def overflows_always(self) -> bool:
    """Whether the last step overflowed although its loss was not scaled up."""
    return bool(self.value.numpy() <= LEAST_LOSS_SCALE and self.finite_steps.numpy() == 0)


def scaled_gradients(
  tape: tf.GradientTape, loss: tf.Tensor, variables: Sequence[keras.Variable], scale: tf.Tensor | None
) -> list[tf.Tensor]:
  """The gradients of `loss`, by a backward pass that starts from `scale`; None: from 1."""
  gradients = tape.gradient(loss, variables, scale)
  return gradients if scale is None else [gradient / scale for gradient in gradients]
