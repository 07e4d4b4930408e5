"""The plain residual network, and the frame that the reversible one shares with it.

stem -> stages of units -> batch norm, ReLU -> global average pool -> classifier

Layers are named by the scopes of the original code: init, unit_{stage}_{unit}, unit_last, logit.
"""

import dataclasses
import itertools

import keras
import tensorflow as tf

from resnet.configs.config import Config
from resnet.configs.config_factory import config_from_fields
from resnet.models.layers import BatchNorm, Part, conv, dense
from resnet.models.residual import ResidualFunction, Scope, skip_path
from resnet.recomputation.private_apis import show_to_checkpoints


@keras.saving.register_keras_serializable("resnet")
class ResNet(keras.Model):
  """Pre-activation residual network (He et al. 2016): images [N, H, W, C] -> logits [N, num_classes].

  Args:
    config: a Config, or its fields as a dict (as `get_config` gives them).
    include_top: False leaves out average pool and classifier: images -> "final" of `features`.

  Call arguments:
    images: of the configuration's size, or of another that all strides divide.
    training: whether batch normalisation uses the batch's statistics, and moves its own.

  Source: He et al. 2016, "Identity Mappings in Deep Residual Networks".

  Raises:
    UserError: a field of the dict has an impossible value.

  Example:
    >>> ResNet(get_config("resnet-32"))(np.zeros([2, 32, 32, 3])).shape
    TensorShape([2, 10])
  """

  def __init__(self, config: Config | dict, include_top: bool = True, **kwargs):
    config = _config_of(config)
    super().__init__(**{"name": config.name, "dtype": config.dtype, **kwargs})
    self.config = config
    self.include_top = include_top
    self.stem = Stem(config, name="init", dtype=self.dtype_policy.name)
    self.stages = [self._make_stage(stage) for stage in range(len(config.num_residual_units))]
    show_to_checkpoints(self, **{f"unit_{stage}": units for stage, units in enumerate(self.stages, start=1)})
    self.final_bn = Scope(BatchNorm(name="final_bn", dtype=self.variable_dtype), name="unit_last")
    if include_top:
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
    if self.include_top:
      self.logit.build((shape[0], shape[-1]))
    for variable in self.variables:
      if variable.name == "kernel":  # Convolutions and the classifier: the penalty's gradient is wd * kernel.
        variable.regularizer = keras.regularizers.L2(self.config.wd / 2)

  def _build_stages(self, shape):
    for unit in itertools.chain(*self.stages):
      unit.build(shape)
      shape = unit.compute_output_shape(shape)
    return shape

  def call(self, images, training=False, features=False):
    outputs: dict[str, tf.Tensor] = {}
    x = self._run_stages(images, training, outputs if features else None)
    x = tf.cast(x, self.variable_dtype)
    x = tf.nn.relu(self.final_bn(x, training=training))
    if features:
      return {**outputs, "final": x}
    if not self.include_top:
      return x
    # Not reduce_mean, whose gradient divides a whole map.
    return self.logit(tf.reduce_sum(x, [1, 2]) / (x.shape[1] * x.shape[2]))

  def features(self, images, training=False) -> dict[str, tf.Tensor]:
    """The output of each stage by its name, for a backbone: eagerly, in graphs, and on a `keras.Input`.

    Args:
      images: [N, H, W, C] float32.
      training: as of a call.

    Returns:
      "stage_1", "stage_2", ...: [N, H', W', C'] what the stage's last unit gives, which the next stage takes
      (both streams of a RevNet, one after the other); "final": the last one after batch normalisation and ReLU,
      which the classifier averages. All are float32, or float64 with dtype float64.
    """
    if isinstance(images, keras.KerasTensor):
      return StageOutputs(self)(images, training=training)
    return self(images, training=training, features=True)

  @property
  def inputs(self):
    """Not there, since the network is no graph of layers; it can be part of one."""
    raise AttributeError(
      f"{self.name} has no inputs, since it is no functional model; make one by images = keras.Input([height, "
      "width, channels]) and keras.Model(images, network(images)), or of network.features(images)"
    )

  def _run_stages(self, images, training, outputs):
    """The stem and all stages: images -> the last stage's output [N, H', W', C'].

    Enters each stage's output in the dict `outputs`, if that is not None.
    """
    x = self.stem(images, training=training)
    for stage, units in enumerate(self.stages, start=1):
      for unit in units:
        x = unit(x, training=training)
      if outputs is not None:
        outputs[f"stage_{stage}"] = tf.cast(x, self.variable_dtype)
    return x

  def get_config(self):
    return {
      "config": dataclasses.asdict(self.config),
      "include_top": self.include_top,
      "name": self.name,
      "trainable": self.trainable,
      "frozen": [layer.name for layer in self.layers if not layer.trainable],
    }

  @classmethod
  def from_config(cls, config):
    frozen, trainable = config.pop("frozen", ()), config.pop("trainable", True)  # Not in files of version 0.1.
    model = cls(**config)
    model.trainable = trainable
    for layer in model.layers:
      layer.trainable = layer.name not in frozen
    return model


@keras.saving.register_keras_serializable("resnet")
class StageOutputs(keras.layers.Layer):
  """`network.features` as a layer of a functional model, whose layers must give as many tensors in every call.

  The model may have the network itself, too, or several of these of one network.
  """

  def __init__(self, network: ResNet, **kwargs):
    super().__init__(autocast=False, **kwargs)
    self.network = network

  def call(self, images, training=False):
    return self.network.features(images, training)

  def get_config(self):
    # By this Keras knows what is in a model twice. It notes it by itself, but here not on the first of them.
    network = {**keras.saving.serialize_keras_object(self.network), "shared_object_id": id(self.network)}
    return {**super().get_config(), "network": network}

  @classmethod
  def from_config(cls, config):
    return cls(keras.saving.deserialize_keras_object(config.pop("network")), **config)


def _config_of(config: Config | dict) -> Config:
  return config_from_fields(config) if isinstance(config, dict) else config


@keras.saving.register_keras_serializable("resnet")
class Stem(Part):
  """Convolution, batch norm, ReLU; with init_max_pool a 3x3 max pool of stride 2.

  Args:
    config: a Config, or its fields as a dict.
  """

  def __init__(self, config: Config | dict, **kwargs):
    super().__init__(**kwargs)
    self.config = config = _config_of(config)
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

  def get_config(self):
    return {**super().get_config(), "config": dataclasses.asdict(self.config)}


@keras.saving.register_keras_serializable("resnet")
class ResNetUnit(ResidualFunction):
  """y = skip(x) + F(x)."""

  def __init__(self, in_filters, filters, stride, bottleneck, preactivate, **kwargs):
    super().__init__(filters, stride, bottleneck, preactivate, **kwargs)
    self.in_filters = in_filters
    self.skip = skip_path(in_filters, filters, stride, bottleneck, self.dtype_policy.name)

  def build(self, input_shape):
    super().build(input_shape)
    self.skip.build(input_shape)

  def call(self, x, training=False):
    return self.skip(x) + super().call(x, training=training)

  def get_config(self):
    return {**super().get_config(), "in_filters": self.in_filters}
