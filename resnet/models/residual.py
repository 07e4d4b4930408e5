"""Residual functions (basic and bottleneck) and the skip path around them. All tensors are [N, H, W, C].

Source: He et al. 2016, "Identity Mappings in Deep Residual Networks" (pre-activation units).
"""

import keras
import tensorflow as tf

from resnet.configs.config import BOTTLENECK_FACTOR
from resnet.models.layers import Part, PreactivatedConv, conv
from resnet.recomputation.private_apis import show_to_checkpoints
from resnet.reversible import keep_output


@keras.saving.register_keras_serializable("resnet")
class ResidualFunction(Part):
  """The function that a residual unit adds to its skip path.

  Where activations may be kept, no convolution but the last is computed again in the backward pass.

  Args:
    filters: output channels.
    stride: of its first convolution.
    bottleneck: 1x1, 3x3 and 1x1 convolutions, the first two with a quarter of the filters, instead of two 3x3.
    preactivate: False leaves out batch normalisation and ReLU before the first convolution.
  """

  def __init__(self, filters, stride=1, bottleneck=False, preactivate=True, **kwargs):
    super().__init__(**kwargs)
    self.filters = filters
    self.stride = stride
    self.bottleneck = bottleneck
    self.preactivate = preactivate
    narrow = filters // BOTTLENECK_FACTOR
    shapes = [(narrow, 1), (narrow, 3), (filters, 1)] if bottleneck else [(filters, 3), (filters, 3)]
    self.subs = [
      PreactivatedConv(k, width, size, *((stride, preactivate) if k == 1 else ()), dtype=self.dtype_policy.name)
      for k, (width, size) in enumerate(shapes, start=1)
    ]
    show_to_checkpoints(self, sub=self.subs)

  def build(self, input_shape):
    for sub in self.subs:
      sub.build(input_shape)
      input_shape = sub.compute_output_shape(input_shape)

  def call(self, x, training=False):
    for sub in self.subs[:-1]:
      x = keep_output(sub, x, training)
    return self.subs[-1](x, training=training)  # Needed again only to rebuild a stream.

  def compute_output_shape(self, input_shape):
    for sub in self.subs:
      input_shape = sub.compute_output_shape(input_shape)
    return input_shape

  def get_config(self):
    return {
      **super().get_config(),
      "filters": self.filters,
      "stride": self.stride,
      "bottleneck": self.bottleneck,
      "preactivate": self.preactivate,
    }


@keras.saving.register_keras_serializable("resnet")
class Downsample(keras.layers.Layer):
  """The skip path without parameters: average pool by the stride, zero channels padded on both sides.

  Its output has the dtype of its input.
  """

  def __init__(self, filters, stride, **kwargs):
    super().__init__(autocast=False, **kwargs)
    self.filters = filters
    self.stride = stride

  def call(self, x):
    if self.stride > 1:
      x = tf.nn.avg_pool2d(x, self.stride, self.stride, "VALID")
    padding = (self.filters - x.shape[-1]) // 2
    return tf.pad(x, [[0, 0], [0, 0], [0, 0], [padding, padding]]) if padding else x

  def compute_output_shape(self, input_shape):
    batch, height, width, _ = input_shape
    return (batch, height // self.stride, width // self.stride, self.filters)

  def get_config(self):
    return {**super().get_config(), "filters": self.filters, "stride": self.stride}


def skip_path(in_filters: int, filters: int, stride: int, bottleneck: bool, dtype: str) -> keras.layers.Layer:
  """The layer of a unit's skip path, which brings the unit's input to the shape of its output.

  A bottleneck unit whose shape changes projects by a 1x1 convolution named "project"; a basic one
  pools and pads.
  """
  if bottleneck and (stride > 1 or in_filters != filters):
    return conv(filters, 1, stride, name="project", dtype=dtype)
  return Downsample(filters, stride)


@keras.saving.register_keras_serializable("resnet")
class Scope(Part):
  """`layer` under a name scope of its own: its variables are called {name}/{layer.name}/..."""

  def __init__(self, layer, **kwargs):
    super().__init__(autocast=False, **kwargs)
    self.layer = layer

  def build(self, input_shape):
    if not self.layer.built:  # Keras builds it when it loads it.
      self.layer.build(input_shape)

  def call(self, x, training=False):
    return self.layer(x, training=training)

  def compute_output_shape(self, input_shape):
    return self.layer.compute_output_shape(input_shape)

  def get_config(self):
    return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

  @classmethod
  def from_config(cls, config):
    return super().from_config({**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})
