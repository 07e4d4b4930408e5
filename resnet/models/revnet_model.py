"""The reversible residual network (Gomez et al. 2017).

The channels are split into two streams, x1 and x2. The units form one reversible chain. The first unit of a
stage may change the streams' shape and so cannot be undone: the streams before it are kept.
"""

import itertools
import math

import keras
import tensorflow as tf

from resnet.models.layers import Part
from resnet.models.residual import ResidualFunction, skip_path
from resnet.models.resnet_model import ResNet
from resnet.reversible import ActivationPlan, Additive, Rebuild, ReversibleChain, Shortcut, Store, recompute
from resnet.reversible.checks import require_streams


@keras.saving.register_keras_serializable("resnet")
class RevNet(ResNet):
  """Reversible residual network: images [N, H, W, C] -> logits [N, num_classes], both float32.

  With config.manual_gradients only one activation a stage, and what config.activation_memory allows, are stored
  for the backward pass. Without it all activations are, as in ordinary backpropagation. Outputs, gradients and
  moving statistics are the same.

  Args:
    config: a Config, or its fields as a dict.

  Source: Gomez et al. 2017, "The Reversible Residual Network", section 3.

  Raises:
    UserError: a field of the dict has an impossible value.

  Example:
    >>> RevNet(get_config("revnet-38"))(np.zeros([2, 32, 32, 3])).shape
    TensorShape([2, 10])
  """

  def __init__(self, config, include_top=True, **kwargs):
    super().__init__(config, include_top, **kwargs)
    self.chains = [FileLayout(units[1:]) for units in self.stages]
    units, config = list(itertools.chain(*self.stages)), self.config
    rebuild = Rebuild(config.keep, loop=config.chain == "while_loop")
    self.reversible_chain = ReversibleChain(
      [(unit.f, unit.g) for unit in units],
      coupling=[coupling for unit in units for coupling in unit.couplings()],
      backward=rebuild if config.manual_gradients else Store(),
      grid_bits=config.grid_bits or None,
    )

  @property
  def layers(self):
    """The stem, each unit once (the chain holds its functions, too), and what comes after them."""
    top = [self.logit] if self.include_top else []
    return [self.stem, *itertools.chain(*self.stages), self.final_bn, *top]

  def _make_unit(self, **kwargs):
    return RevNetUnit(**kwargs)

  def _build_stages(self, shape):
    *size, channels = shape
    first = streams = [(*size, channels // 2)] * 2
    for unit in itertools.chain(*self.stages):
      unit.build(streams)
      streams = unit.compute_output_shape(streams)
    self.reversible_chain.build(first)
    *size, channels = streams[0]
    return (*size, 2 * channels)

  def _run_stages(self, images, training, outputs):
    streams = self._split(self._run_stem(images, training))
    if outputs is None:
      return tf.concat(self.reversible_chain(streams, training=training), axis=-1)
    last_units = [units - 1 for units in itertools.accumulate(map(len, self.stages))]
    after_stages = self.reversible_chain.intermediates(streams, last_units, training=training)
    for stage, streams in enumerate(after_stages, start=1):
      outputs[f"stage_{stage}"] = tf.concat(streams, axis=-1)
    return outputs[f"stage_{len(self.stages)}"]

  def _split(self, x):
    # Streams are never in half precision, from which they could not be rebuilt.
    return tf.split(tf.cast(x, self.variable_dtype), 2, axis=-1)

  @property
  def _recomputes_stem(self):
    return self.config.manual_gradients and self.config.keep != "all"

  def _run_stem(self, images, training):
    if not self._recomputes_stem:
      return self.stem(images, training=training)
    return recompute(self.stem, images, training, keep=[] if self.config.grid_bits else ["statistics"])

  def activation_plan(self, images: int) -> ActivationPlan:
    """What is kept for the backward pass, and an estimate of the memory that activations take.

    Args:
      images: that go through the network at a time.
    """
    shape = (images, self.config.height, self.config.width, self.config.num_channel)
    *size, channels = self.stem.compute_output_shape(shape)
    plan = self.reversible_chain.plan([tf.TensorSpec([*size, channels // 2], self.variable_dtype)] * 2)
    of_images = 4 * math.prod(shape)  # bytes, held until the stem is recomputed
    # If the stem is stored: what its convolution gives, as it is and normalised.
    values = 0 if self._recomputes_stem else 2 * math.prod(self.stem.conv.compute_output_shape(shape))
    of_stem = values * tf.as_dtype(self.compute_dtype).size
    return plan._replace(bytes=plan.bytes + of_images + of_stem, least=plan.least + of_images)

  def reconstruction_errors(self, images: tf.Tensor) -> tf.Tensor:
    """How well the activations are rebuilt, [stages], see `ReversibleChain.reconstruction_errors`.

    Runs in training mode, forward and back to the input. Assigns nothing.

    Args:
      images: [N, H, W, C] float32.
    """
    with keras.StatelessScope():  # Discards the updates of the stem's moving statistics.
      streams = self._split(self.stem(images, training=True))
      return self.reversible_chain.reconstruction_errors(streams)


@keras.saving.register_keras_serializable("resnet")
class RevNetUnit(Part):
  """F and G of a unit, and how they change the streams: y1 = skip(x1) + F(x2), y2 = skip(x2) + G(y1).

  The skip paths are identities but in units that change the streams' shape, the first of most stages. In a
  RevNet the chains run F and G. A unit that is called by itself, with (x1, x2), stores its activations.

  Attributes:
    f, g: the functions.
  """

  def __init__(self, in_filters, filters, stride, bottleneck, preactivate, **kwargs):
    super().__init__(autocast=False, **kwargs)
    self.in_filters = in_filters
    self.filters = filters
    self.stride = stride
    self.bottleneck = bottleneck
    self.preactivate = preactivate
    policy = self.dtype_policy.name
    self.f = ResidualFunction(filters // 2, stride, bottleneck, preactivate, name="f", dtype=policy)
    self.g = ResidualFunction(filters // 2, bottleneck=bottleneck, name="g", dtype=policy)
    if stride == 1 and in_filters == filters:
      self.skip1, self.skip2 = Additive(), Additive()
    else:
      paths = [skip_path(in_filters // 2, filters // 2, stride, bottleneck, policy) for _ in range(2)]
      names = ("x1_bottleneck", "x2_bottleneck")
      self.skip1, self.skip2 = (Shortcut(path, name=name) for path, name in zip(paths, names, strict=True))

  def build(self, input_shape):
    x1, x2 = input_shape
    self.f.build(x2)
    y1 = self.f.compute_output_shape(x2)
    self.g.build(y1)
    self.skip1.build(x1)
    self.skip2.build(x2)

  def call(self, streams, training=False):
    require_streams(self.name, streams)
    x1, x2 = streams
    y1 = self.skip1.couple(x1, *self.skip1.parts(self.f(x2, training=training)))
    return y1, self.skip2.couple(x2, *self.skip2.parts(self.g(y1, training=training)))

  def couplings(self):
    """Of f and of g. Not an attribute, by which Keras' files would name them."""
    return [self.skip1, self.skip2]

  def compute_output_shape(self, input_shape):
    return [self.f.compute_output_shape(input_shape[1])] * 2

  def get_config(self):
    return {
      **super().get_config(),
      "in_filters": self.in_filters,
      "filters": self.filters,
      "stride": self.stride,
      "bottleneck": self.bottleneck,
      "preactivate": self.preactivate,
    }


class FileLayout(keras.layers.Layer):
  """Gives the functions of a stage's units but the first their place in Keras' files, that of version 0.1.

  Such a file names a layer by the way to it that comes first in the alphabet. It is never called.
  """

  def __init__(self, units, **kwargs):
    super().__init__(**kwargs)
    self.functions = [function for unit in units for function in (unit.f, unit.g)]


FileLayout.__name__ = "ReversibleChain"  # Keras' files number layers by class name.
