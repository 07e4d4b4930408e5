"""The plain residual network, and the frame that the reversible one shares with it.

stem -> stages of units -> batch norm, ReLU -> global average pool -> classifier

Layers are named by the scopes of the original code: init, unit_{stage}_{unit}, unit_last, logit.
"""

import dataclasses
import itertools

import keras
import tensorflow as tf

from resnet.configs.config import Config
from resnet.models.layers import BatchNorm, conv, dense
from resnet.models.residual import ResidualFunction, Scope, skip_path
from resnet.reversible.private_apis import show_to_checkpoints


@keras.saving.register_keras_serializable("resnet")
class ResNet(keras.Model):
  """Pre-activation residual network (He et al. 2016): images [N, H, W, C] -> logits [N, num_classes].

  Args:
    config: a Config, or its fields as a dict (as `get_config` gives them).

  Source: He et al. 2016, "Identity Mappings in Deep Residual Networks".

  Raises:
    UserError: a field of the dict has an impossible value.

  Example:
    >>> ResNet(get_config("resnet-32"))(np.zeros([2, 32, 32, 3])).shape
    TensorShape([2, 10])
  """

  def __init__(self, config: Config | dict, **kwargs):
    config = Config(**config) if isinstance(config, dict) else config
    super().__init__(**{"name": config.name, "dtype": config.dtype, **kwargs})
    self.config = config
    self.stem = Stem(config, name="init", dtype=self.dtype_policy.name)
    self.stages = [self._make_stage(stage) for stage in range(len(config.num_residual_units))]
    show_to_checkpoints(self, **{f"unit_{stage}": units for stage, units in enumerate(self.stages, start=1)})
    self.final_bn = Scope(BatchNorm(name="final_bn", dtype=self.variable_dtype), name="unit_last")
    self.logit = dense(config.num_classes, config.unit_filters[-1], "logit", dtype=self.variable_dtype)

  def _make_stage(self, stage: int) -> list[keras.layers.Layer]:
    """The units of a stage (from 0)."""
    return [
      self._make_unit(
        in_filters=self.config.unit_filters[stage if unit == 0 else stage + 1],
        filters=self.config.unit_filters[stage + 1],
        stride=self.config.strides[stage] if unit == 0 else 1,
        bottleneck=self.config.use_bottleneck,
        # The stem ends in batch normalisation and ReLU already.
        preactivate=(stage, unit) != (0, 0),
        name=f"unit_{stage + 1}_{unit}",
        dtype=self.dtype_policy.name,
      )
      for unit in range(self.config.num_residual_units[stage])
    ]

  def _make_unit(self, **kwargs) -> keras.layers.Layer:
    return ResNetUnit(**kwargs)

  def build(self, input_shape):
    self.stem.build(input_shape)
    shape = self._build_stages(self.stem.compute_output_shape(input_shape))
    self.final_bn.build(shape)
    self.logit.build((shape[0], shape[-1]))
    for variable in self.trainable_variables:
      if variable.name == "kernel":  # Convolutions and the classifier: the penalty's gradient is wd * kernel.
        variable.regularizer = keras.regularizers.L2(self.config.wd / 2)

  def _build_stages(self, shape):
    for unit in itertools.chain(*self.stages):
      unit.build(shape)
      shape = unit.compute_output_shape(shape)
    return shape

  def call(self, images, training=False):
    x = self._run_stages(images, training)
    x = tf.cast(x, self.variable_dtype)
    x = tf.nn.relu(self.final_bn(x, training=training))
    # Not reduce_mean, whose gradient divides a whole map.
    return self.logit(tf.reduce_sum(x, [1, 2]) / (x.shape[1] * x.shape[2]))

  def _run_stages(self, images, training):
    """The stem and all stages: images -> the last stage's output [N, H', W', C']."""
    x = self.stem(images, training=training)
    for unit in itertools.chain(*self.stages):
      x = unit(x, training=training)
    return x

  def get_config(self):
    return {"config": dataclasses.asdict(self.config), "name": self.name}


class Stem(keras.layers.Layer):
  """Convolution, batch norm, ReLU; with init_max_pool a 3x3 max pool of stride 2."""

  def __init__(self, config: Config, **kwargs):
    super().__init__(**kwargs)
    self.conv = conv(
      config.filters[0], config.init_filter, config.init_stride, name="init_conv", dtype=self.dtype_policy.name
    )
    self.bn = BatchNorm(name="init_bn", dtype=self.dtype_policy.name)
    self.max_pool = config.init_max_pool

  def build(self, input_shape):
    self.conv.build(input_shape)
    self.bn.build(self.conv.compute_output_shape(input_shape))

  def call(self, images, training=False):
    x = self.bn(self.conv(images), training=training)
    if self.max_pool:  # Before the ReLU: the same numbers, also of the gradients, for a quarter of its work.
      x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    return tf.nn.relu(x)

  def compute_output_shape(self, input_shape):
    batch, height, width, channels = self.conv.compute_output_shape(input_shape)
    if self.max_pool:
      height, width = -(-height // 2), -(-width // 2)
    return (batch, height, width, channels)


class ResNetUnit(ResidualFunction):
  """y = skip(x) + F(x)."""

  def __init__(self, in_filters, filters, stride, bottleneck, preactivate, **kwargs):
    super().__init__(filters, stride, bottleneck, preactivate, **kwargs)
    self.skip = skip_path(in_filters, filters, stride, bottleneck, self.dtype_policy.name)

  def build(self, input_shape):
    super().build(input_shape)
    self.skip.build(input_shape)

  def call(self, x, training=False):
    return self.skip(x) + super().call(x, training=training)
