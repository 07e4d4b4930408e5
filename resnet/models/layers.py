"""The layers both kinds of network are made of. All tensors are [N, H, W, C]."""

import math

import keras
import tensorflow as tf

from resnet.recomputation.private_apis import is_compiled_by_xla
from resnet.reversible import replayed

BATCH_NORM_EPSILON = 1e-3
BATCH_NORM_DECAY = 0.99
# Not V3: fused with the following ReLU, it also keeps a mask of the ReLU, as large as the activation.
TRAINING_OP = tf.raw_ops.FusedBatchNormV2
# Not V2, which converters for inference do not know (TFLite).
INFERENCE_OP = tf.raw_ops.FusedBatchNormV3


def conv(filters: int, kernel_size: int, stride: int, name: str, dtype: str) -> keras.layers.Conv2D:
  """A convolution without bias, SAME padding, initialised for ReLU by its fan-out.

  Its kernel is drawn from a normal distribution of standard deviation sqrt(2 / (k * k * filters)),
  truncated at two standard deviations.
  """
  stddev = math.sqrt(2 / (kernel_size * kernel_size * filters))
  return Conv(
    filters,
    kernel_size,
    strides=stride,
    padding="same",
    use_bias=False,
    kernel_initializer=keras.initializers.TruncatedNormal(stddev=stddev),
    name=name,
    dtype=dtype,
  )


@keras.saving.register_keras_serializable("resnet")
class Conv(keras.layers.Conv2D):
  """Keras' convolution. If its kernel is one pixel and strides, it takes only the pixels that it needs.

  It does the same sums, and its gradients are those of a convolution of a quarter of the pixels (stride 2),
  which saves memory on a GPU and under XLA. Elsewhere, on a CPU, it would save none, and a step of RevNet-104
  took 5 % longer: there it is Keras' own.
  """

  def convolution_op(self, inputs, kernel):
    strides = self.kernel_size == (1, 1) and self.strides != (1, 1)
    if not strides or not (_on_gpu() or is_compiled_by_xla(tf.compat.v1.get_default_graph())):
      return super().convolution_op(inputs, kernel)
    down, across = self.strides
    return tf.nn.conv2d(inputs[:, ::down, ::across], kernel, 1, "VALID")


def _on_gpu() -> bool:
  return bool(tf.config.get_visible_devices("GPU"))


def dense(units: int, fan_in: int, name: str, dtype: str) -> keras.layers.Dense:
  """The classifier: kernel uniform in +-sqrt(3 / fan_in), bias zero."""
  limit = math.sqrt(3 / fan_in)
  initializer = keras.initializers.RandomUniform(-limit, limit)
  return keras.layers.Dense(units, kernel_initializer=initializer, name=name, dtype=dtype)


@keras.saving.register_keras_serializable("resnet")
class BatchNorm(keras.layers.Layer):
  """Batch normalisation over [N, H, W] by TensorFlow's fused kernel.

  A training step is about a fifth faster than with Keras' own layer.

  With training=True it normalises by the batch's mean and (biased) variance and moves the moving
  statistics towards them: moving = 0.99 * moving + 0.01 * batch. Otherwise, and always while it is frozen
  (`trainable` is False), it normalises by the moving statistics and leaves them as they are. Under data
  parallelism each replica keeps its own moving statistics; outside the replicas, and in checkpoints, a moving
  statistic is their mean. When the backward pass runs the layer again, it reuses the batch's statistics of the
  first run.

  Source: Ioffe and Szegedy 2015, "Batch Normalization".
  """

  def build(self, input_shape):
    # The fused kernel takes float32 parameters whatever the precision of its input.
    like = {"shape": (input_shape[-1],), "dtype": self.variable_dtype, "autocast": False}
    self.gamma = self.add_weight(initializer="ones", name="gamma", **like)
    self.beta = self.add_weight(initializer="zeros", name="beta", **like)
    # Not by `add_weight`, which knows no synchronization.
    local = {"trainable": False, "aggregation": "mean", "synchronization": "on_read", **like}
    self.moving_mean = keras.Variable("zeros", name="moving_mean", **local)
    self.moving_variance = keras.Variable("ones", name="moving_variance", **local)

  def call(self, x, training=False):
    if not training or not self.trainable:
      return self._normalise(x, self.moving_mean.value, self.moving_variance.value)
    if x.dtype == tf.float64:
      mean, variance = tf.nn.moments(x, [0, 1, 2])
      self._move_statistics(mean, variance)
      return self._normalise(x, mean, variance)
    y, _ = replayed(self, self._normalise_by_batch, self._normalise_again, x, self.gamma, self.beta)
    return y

  def _move_statistics(self, mean, variance):
    for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
      moving.assign(BATCH_NORM_DECAY * moving + (1 - BATCH_NORM_DECAY) * batch)

  def _normalise(self, x, mean, variance):
    if x.dtype == tf.float64:  # The fused kernel has no float64, in which tests compare gradients.
      return tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, BATCH_NORM_EPSILON)
    return self._fused(INFERENCE_OP, x, mean, variance, training=False)[0]

  def _normalise_by_batch(self, x, *_):
    """(x normalised, (the batch's mean, its variance, what the gradient needs))."""
    none = tf.zeros([0])
    y, mean, unbiased, *reserve = self._fused(TRAINING_OP, x, none, none, training=True)
    # In Python if the shape is known: a network's graph has an eighth fewer ops without those for it.
    n = x.shape[:3].num_elements() or tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)
    variance = unbiased * ((n - 1) / n)
    self._move_statistics(mean, variance)
    return y, (mean, variance, reserve)

  def _normalise_again(self, statistics, x, gamma, beta):
    """(x normalised by the first run's statistics, the gradient function of the first run)."""
    mean, variance, reserve = statistics

    def gradient(dy):
      return tf.raw_ops.FusedBatchNormGradV2(
        y_backprop=dy,
        x=x,
        scale=gamma,
        reserve_space_1=reserve[0],
        reserve_space_2=reserve[1],
        epsilon=BATCH_NORM_EPSILON,
        is_training=True,
      )[:3]

    return self._fused(TRAINING_OP, x, mean, variance, training=False)[0], gradient

  def _fused(self, op, x, mean, variance, training):
    return op(
      x=x,
      scale=self.gamma,
      offset=self.beta,
      mean=mean,
      variance=variance,
      epsilon=BATCH_NORM_EPSILON,
      is_training=training,
    )

  def compute_output_shape(self, input_shape):
    return input_shape


class Part(keras.layers.Layer):
  """A layer of layers. If it was `trainable = False` when it was saved, what is loaded is frozen throughout."""

  @classmethod
  def from_config(cls, config):
    trainable = config.pop("trainable", True)
    part = cls(**config)
    part.trainable = trainable
    return part


@keras.saving.register_keras_serializable("resnet")
class PreactivatedConv(Part):
  """Batch normalisation, ReLU, convolution: one of a residual function's sub layers.

  Args:
    index: the number k of this layer, from 1. The layer is named "sub{k}", its parts "bn{k}" and "conv{k}".
    filters: output channels.
    kernel_size: of the convolution, pixels.
    stride: of the convolution.
    preactivate: False leaves out batch normalisation and ReLU.
  """

  def __init__(self, index, filters, kernel_size, stride=1, preactivate=True, **kwargs):
    super().__init__(name=kwargs.pop("name", f"sub{index}"), **kwargs)
    self.index = index
    self.filters = filters
    self.kernel_size = kernel_size
    self.stride = stride
    self.preactivate = preactivate
    self.bn = BatchNorm(name=f"bn{index}", dtype=self.dtype_policy.name) if preactivate else None
    self.conv = conv(filters, kernel_size, stride, name=f"conv{index}", dtype=self.dtype_policy.name)

  def build(self, input_shape):
    if self.bn:
      self.bn.build(input_shape)
    self.conv.build(input_shape)

  def call(self, x, training=False):
    if self.bn:
      x = tf.nn.relu(self.bn(x, training=training))
    return self.conv(x)

  def compute_output_shape(self, input_shape):
    return self.conv.compute_output_shape(input_shape)

  def get_config(self):
    return {
      **super().get_config(),
      "index": self.index,
      "filters": self.filters,
      "kernel_size": self.kernel_size,
      "stride": self.stride,
      "preactivate": self.preactivate,
    }
