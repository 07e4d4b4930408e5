"""The reversible residual network (Gomez et al. 2017).

Each stage splits its channels into two streams, x1 and x2. Its first unit changes their shape and so
cannot be undone; the others form one reversible chain.
"""

import keras
import tensorflow as tf

from resnet.models.recompute import recompute
from resnet.models.residual import ResidualFunction, Scope, skip_path
from resnet.models.resnet_model import ResNet
from resnet.models.reversible import ReversibleChain


@keras.saving.register_keras_serializable("resnet")
class RevNet(ResNet):
  """Reversible residual network: images [N, H, W, C] -> logits [N, num_classes], both float32.

  With config.manual_gradients the backward pass stores one activation a stage, and the last few units'
  convolutions; without it, all activations, as ordinary backpropagation does. Outputs, gradients and
  moving statistics are the same.
  """

  def __init__(self, config, **kwargs):
    super().__init__(config, **kwargs)
    form = "unrolled" if self.config.chain == "auto" else self.config.chain
    self.chains = [
      ReversibleChain([(unit.f, unit.g) for unit in stage[1:]], self.config.manual_gradients, form)
      for stage in self.stages
    ]
    # The loop form hands nothing to the second run.
    for unit in self._keeping_units() if form == "unrolled" else []:
      unit.f.keep_outputs = unit.g.keep_outputs = True

  def _keeping_units(self):
    """The units whose convolutions' outputs are kept for the backward pass: they hardly add to its peak.

    That is at its end, when it rebuilds a unit of the first stage; what is kept for the last units is gone by
    then. A unit's activations have half the size in each stage of what they have in the one before, and the
    convolutions' outputs are half of them: so 2 ** stages of the last stage's units keep as much as one of the
    first stage holds.
    """
    return self.stages[-1][-(2 ** len(self.stages)) :]

  def _make_unit(self, **kwargs):
    return RevNetUnit(**kwargs)

  def _build_stages(self, shape):
    *size, channels = shape
    *size, channels = super()._build_stages((*size, channels // 2))
    for chain in self.chains:
      chain.build([(*size, channels)] * 2)
    return (*size, 2 * channels)

  def _run_stages(self, images, training):
    streams = self._split(self._run(self.stem, images, training))
    for (first, *_), chain in zip(self.stages, self.chains, strict=True):
      streams = chain(self._run(first, streams, training), training=training)
    return tf.concat(streams, axis=-1)

  def _split(self, x):
    # The streams are never of half precision: they could not be rebuilt.
    return tf.split(tf.cast(x, self.variable_dtype), 2, axis=-1)

  def _run(self, layer, inputs, training):
    """Runs a layer that cannot be undone."""
    if self.config.manual_gradients:
      return recompute(layer, inputs, training)
    return layer(inputs, training=training)

  def reconstruction_errors(self, images: tf.Tensor) -> tf.Tensor:
    """How well the activations are rebuilt, [stages]: norm of the error over the norm, of each chain's input.

    Runs in training mode, forward and back to the input. Assigns nothing.

    Args:
      images: [N, H, W, C] float32.
    """
    errors = []
    with keras.StatelessScope():  # Takes the updates of the moving statistics.
      streams = self._split(self.stem(images, training=True))
      for (first, *_), chain in zip(self.stages, self.chains, strict=True):
        inputs = first(streams, training=True)
        streams = chain(inputs, training=True)
        rebuilt = chain.inverse(streams, training=True)
        error = [y - x for x, y in zip(inputs, rebuilt, strict=True)]
        errors.append(tf.linalg.global_norm(error) / tf.linalg.global_norm(inputs))
    return tf.stack(errors)


class RevNetUnit(keras.layers.Layer):
  """y1 = skip(x1) + F(x2), y2 = skip(x2) + G(y1): a stage's first unit as it stands.

  In the other units the skip path is the identity, and F and G are all that their chain needs.
  Shapes are those of one stream, [N, H, W, C / 2].
  """

  def __init__(self, in_filters, filters, stride, bottleneck, preactivate, **kwargs):
    super().__init__(autocast=False, **kwargs)
    policy = self.dtype_policy.name
    self.f = ResidualFunction(filters // 2, stride, bottleneck, preactivate, name="f", dtype=policy)
    self.g = ResidualFunction(filters // 2, bottleneck=bottleneck, name="g", dtype=policy)
    self.skip1, self.skip2 = (
      Scope(skip_path(in_filters // 2, filters // 2, stride, bottleneck, policy), name=f"{stream}_bottleneck")
      for stream in ("x1", "x2")
    )

  def build(self, input_shape):
    self.f.build(input_shape)
    self.skip1.build(input_shape)
    self.skip2.build(input_shape)
    self.g.build(self.f.compute_output_shape(input_shape))

  def call(self, streams, training=False):
    x1, x2 = streams
    y1 = tf.cast(self.skip1(x1), x1.dtype) + tf.cast(self.f(x2, training=training), x1.dtype)
    y2 = tf.cast(self.skip2(x2), x2.dtype) + tf.cast(self.g(y1, training=training), x2.dtype)
    return y1, y2

  def compute_output_shape(self, input_shape):
    return self.f.compute_output_shape(input_shape)
