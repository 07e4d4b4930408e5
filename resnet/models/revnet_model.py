"""The reversible residual network (Gomez et al. 2017).

Each stage splits its channels into two streams, x1 and x2. Its first unit changes their shape and so
cannot be undone; the others form one reversible chain.
"""

import itertools

import keras
import tensorflow as tf

from resnet.models.residual import ResidualFunction, Scope, skip_path
from resnet.models.resnet_model import ResNet
from resnet.models.storage import kept_and_stored
from resnet.reversible import ReversibleChain, recompute


@keras.saving.register_keras_serializable("resnet")
class RevNet(ResNet):
  """Reversible residual network: images [N, H, W, C] -> logits [N, num_classes], both float32.

  With config.manual_gradients only one activation a stage, and what config.kept_units says, are stored for the
  backward pass. Without it all activations are, as in ordinary backpropagation. Outputs, gradients and moving
  statistics are the same.
  """

  def __init__(self, config, **kwargs):
    super().__init__(config, **kwargs)
    self._kept_and_stored = kept_and_stored(self.config)  # of each stage
    self.chains = [
      ReversibleChain(
        [(unit.f, unit.g) for unit in units],
        self.config.manual_gradients,
        "unrolled" if self.config.chain == "auto" else self.config.chain,
        grid_bits=self.config.grid_bits or None,
        kept_units=min(kept, len(units)),
        stored_units=min(stored, len(units)),
      )
      for (_, *units), (kept, stored) in zip(self.stages, self._kept_and_stored, strict=True)
    ]

  @property
  def layers(self):
    """The stem, each unit once (the chains hold its functions, too), and the classifier."""
    return [self.stem, *itertools.chain(*self.stages), self.final_bn, self.logit]

  def _make_unit(self, first, **kwargs):
    return RevNetUnit(**kwargs) if first else FunctionPair(**kwargs)

  def _build_stages(self, shape):
    *size, channels = shape
    streams = [(*size, channels // 2)] * 2
    for (first, *units), chain in zip(self.stages, self.chains, strict=True):
      first.build(streams)
      streams = first.compute_output_shape(streams)
      for unit in units:
        unit.build(streams)
      chain.build(streams)
    *size, channels = streams[0]
    return (*size, 2 * channels)

  def _run_stages(self, images, training):
    _, stored = self._kept_and_stored[0]
    streams = self._split(self._run(self.stem, images, training, False, stored == len(self.stages[0])))
    for units, chain, (kept, stored) in zip(self.stages, self.chains, self._kept_and_stored, strict=True):
      streams = self._run(units[0], streams, training, kept == len(units), stored == len(units))
      streams = chain(streams, training=training)
    return tf.concat(streams, axis=-1)

  def _split(self, x):
    # Streams are never in half precision, from which they could not be rebuilt.
    return tf.split(tf.cast(x, self.variable_dtype), 2, axis=-1)

  def _run(self, layer, inputs, training, keeps, stores):
    """Runs a layer that cannot be undone."""
    if not self.config.manual_gradients:
      return layer(inputs, training=training)
    keep = {"statistics": not self.config.grid_bits, "activations": keeps}
    kinds = ["everything"] if stores else [kind for kind, kept in keep.items() if kept]
    return recompute(layer, inputs, training, keep=kinds)

  def reconstruction_errors(self, images: tf.Tensor) -> tf.Tensor:
    """How well the activations are rebuilt, [stages]: the `reconstruction_error` of each chain.

    Runs in training mode, forward and back to the input. Assigns nothing.

    Args:
      images: [N, H, W, C] float32.
    """
    errors = []
    with keras.StatelessScope():  # Discards the updates of the moving statistics.
      streams = self._split(self.stem(images, training=True))
      for (first, *_), chain in zip(self.stages, self.chains, strict=True):
        streams = first(streams, training=True)
        errors.append(chain.reconstruction_error(streams))
        streams = chain(streams, training=True)
    return tf.stack(errors)


class FunctionPair(keras.layers.Layer):
  """F and G of a unit, under the unit's name: all that a chain needs. Shapes are those of the two streams."""

  def __init__(self, in_filters, filters, stride, bottleneck, preactivate, **kwargs):
    super().__init__(autocast=False, **kwargs)
    policy = self.dtype_policy.name
    self.f = ResidualFunction(filters // 2, stride, bottleneck, preactivate, name="f", dtype=policy)
    self.g = ResidualFunction(filters // 2, bottleneck=bottleneck, name="g", dtype=policy)

  def build(self, input_shape):
    self.f.build(input_shape[1])
    self.g.build(self.f.compute_output_shape(input_shape[1]))

  def compute_output_shape(self, input_shape):
    return [self.f.compute_output_shape(input_shape[1])] * 2


FunctionPair.__name__ = "RevNetUnit"  # Keras' files number layers by class name: both classes count as one.


class RevNetUnit(FunctionPair):
  """A stage's first unit, which changes the shape: y1 = skip(x1) + F(x2), y2 = skip(x2) + G(y1)."""

  def __init__(self, in_filters, filters, stride, bottleneck, preactivate, **kwargs):
    super().__init__(in_filters, filters, stride, bottleneck, preactivate, **kwargs)
    policy = self.dtype_policy.name
    self.skip1, self.skip2 = (
      Scope(skip_path(in_filters // 2, filters // 2, stride, bottleneck, policy), name=f"{stream}_bottleneck")
      for stream in ("x1", "x2")
    )

  def build(self, input_shape):
    super().build(input_shape)
    self.skip1.build(input_shape[0])
    self.skip2.build(input_shape[1])

  def call(self, streams, training=False):
    x1, x2 = streams
    y1 = tf.cast(self.skip1(x1), x1.dtype) + tf.cast(self.f(x2, training=training), x1.dtype)
    y2 = tf.cast(self.skip2(x2), x2.dtype) + tf.cast(self.g(y1, training=training), x2.dtype)
    return y1, y2
