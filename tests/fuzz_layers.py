"""What the random networks of fuzz.py are made of, and `Plain`, with which they are compared."""

import functools
import inspect
import threading
import types
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers

import resnet.reversible as engine

BATCH, STEPS, WIDTH = 3, 4, 4


class Plain(layers.Layer):
  """y1 = x1 + F(x2), y2 = x2 + G(y1), and so on. A sum has a mask where both summands have one, as Keras' Add.

  Args:
    functions: F and G of unit 0, F of unit 1, and so on.
    couplings: a name for each function, and what it needs: the variable of a trained scale, a shortcut's layer.
    between: (name, layer) before the first function, and after each unit: an invertible layer, of which the
      variables are used; or ("", None).
  """

  def __init__(self, functions, couplings, between, grid_bits=None, log_det=False):
    super().__init__(autocast=False, dtype=keras.config.floatx())
    self.functions, self.couplings, self.between = functions, couplings, between
    self.grid_bits, self.log_det = grid_bits, log_det

  def call(self, inputs, training=False, mask=None, **arguments):
    streams = [self.rounded(tf.cast(x, self.variable_dtype)) for x in map(tf.convert_to_tensor, inputs)]
    masks, log_dets = list(mask or map(mask_of, inputs)), []
    for k, (function, (coupling, extra)) in enumerate(zip(self.functions, self.couplings)):
      if k == 0:
        streams, masks = self.moved(0, streams, masks, log_dets)
      to, of = k % 2, 1 - k % 2
      own = {name: arguments[name] for name in names_of(function) & set(arguments)}
      change = function(with_mask(streams[of], masks[of]), training=training, **own)
      x = with_mask(streams[to], masks[to])
      if coupling == "shortcut":
        short = extra(x)
        x = with_mask(tf.cast(short, x.dtype), mask_of(short))
      both = [mask_of(change) if coupling == "replace" else mask_of(x), mask_of(change)]
      masks[to] = None if any(one is None for one in both) else both[0] | both[1]
      y, log_det = couple(coupling, extra, x, self.rounded(tf.cast(change, x.dtype)))
      streams[to] = self.rounded(y) if coupling == "shortcut" else y
      log_dets.append(tf.reduce_sum(log_det * tf.ones_like(x), axis=list(range(1, x.shape.rank))))
      if k % 2:
        streams, masks = self.moved(k // 2 + 1, streams, masks, log_dets)
    return (*map(with_mask, streams, masks), *[tf.add_n(log_dets)] * self.log_det)

  def moved(self, place, streams, masks, log_dets):
    """Streams and masks after the invertible layer of a place, of which log_dets gets the determinant."""
    name, layer = self.between[place] if self.between else ("", None)
    if name == "swap":
      return streams[::-1], masks[::-1]
    x, widths = tf.concat(streams, -1), [stream.shape[-1] for stream in streams]
    if name == "reverse":
      x = x[..., ::-1]
    if name == "norm":
      bias, scale = (tf.cast(v, x.dtype) for v in (layer.bias, layer.log_scale))
      x, log_det = (x + bias) * tf.exp(scale), tf.reduce_sum(scale)
    if name == "mix":
      kernel = tf.cast(layer.kernel, x.dtype)
      x, log_det = x @ kernel, tf.math.log(tf.abs(tf.linalg.det(kernel)))
    if name in ("norm", "mix"):
      ones = tf.ones_like(streams[0][..., 0])
      log_dets.append(log_det * tf.reduce_sum(ones, axis=list(range(1, ones.shape.rank))))
    return tf.split(x, widths, axis=-1) if name else streams, masks

  def rounded(self, x):
    step = 2.0 ** -(self.grid_bits or 0)
    return x + tf.stop_gradient(tf.round(x / step) * step - x) if self.grid_bits is not None else x


def couple(coupling, extra, x, change):
  """(y, log|dy/dx|, which broadcasts to x)."""
  if coupling in AFFINE:
    s, t = tf.split(change, 2, axis=-1)
    s = tf.tanh(s) if coupling == "bounded" else s
    return x * tf.exp(s) + t, s
  if coupling == "replace":  # Recompute: no sum
    return change, tf.zeros_like(x)
  a = tf.cast(extra if coupling == "trained" else {"scaled": 0.8, "minus": -1.0}.get(coupling, 1.0), x.dtype)
  return a * x + change, tf.math.log(tf.abs(a))


def mask_of(x):
  return getattr(x, "_keras_mask", None)


def with_mask(x, mask):
  x = tf.identity(x)
  x._keras_mask = mask
  return x


def names_of(function) -> set[str]:
  return set(inspect.signature(function.call).parameters) & set(TENSORS)


# What F and G are made of.

# Whether layers within use the engine, or plain Keras; and the number of the run, for traces of their own.
USES = types.SimpleNamespace(engine=True, run=0)
OUTSIDE = types.SimpleNamespace(variable=None)  # What is no layer's own: a variable,
COMPUTED = threading.local()  # and a tensor computed from it, by each replica's thread.
TENSORS = {"time": ["time"], "extra": ["a", "b", "c"], "key": ["key"], "value": ["value"]}  # of the arguments


class Part(layers.Layer):
  """tanh(x W), [..., width]; with `how`, what the engine may refuse."""

  def __init__(self, width, how="", **kwargs):
    super().__init__(**kwargs)
    self.width, self.how = width, how

  def build(self, shape):
    self.w = self.add_weight(shape=(shape[-1], self.width), name="w")
    self.v = self.add_weight(shape=(WIDTH, self.width), name="v") if names_of(self) else None

  def inner(self, x):
    return tf.tanh(x @ tf.convert_to_tensor(self.w))

  @tf.function(autograph=False)
  def traced(self, x, run):
    return self.inner(x)

  def call(self, x):
    return UNUSUAL[self.how](self, x) if self.how else self.inner(x)


class Conditioned(Part):
  def call(self, x, time):
    return tf.tanh(x @ self.w + time @ self.v)


class Structured(Part):
  def call(self, x, extra):
    return tf.tanh(x @ self.w + (extra["a"] * extra["rest"][0] + extra["rest"][1]) @ self.v)


class Cross(Part):
  def call(self, x, key, value):
    return tf.nn.softmax(self.inner(x)[..., :WIDTH] @ tf.transpose(key, [0, 2, 1])) @ value @ self.v


class Attention(Part):
  """Self-attention. Keras finds the mask that the normalised x carries."""

  def build(self, shape):
    self.supports_masking = "masking" in self.how
    self.norm, self.attention = (
      layers.LayerNormalization(),
      layers.MultiHeadAttention(2, 2, output_shape=self.width),
    )
    self.norm.build(shape)
    self.attention.build(shape, shape)

  def call(self, x):
    h = self.norm(x)
    return self.attention(h, h)


class MaskArgument(Attention):
  def call(self, x, mask=None):
    h = self.norm(tf.identity(x))  # without the mask that x carries
    return self.attention(h, tf.identity(h), attention_mask=None if mask is None else mask[:, None, :])


class MakesMask(Part):
  def compute_mask(self, inputs, previous_mask):
    return keras.ops.any(inputs > 0.3, -1) | (keras.ops.arange(STEPS) == 0)


class Table(Part):
  """With a tensor of eager mode."""

  def build(self, shape):
    super().build(shape)
    with tf.init_scope():
      self.table = tf.linspace(0.5, 1.5, self.width)

  def call(self, x):
    return self.inner(x) * tf.cast(self.table, x.dtype)


class Counter(Part):
  def build(self, shape):
    super().build(shape)
    self.runs = self.add_weight(shape=(), initializer="zeros", trainable=False, name="runs")

  def call(self, x, training=False):
    if training:
      self.runs.assign(self.runs + 1)
    return self.inner(x) * (1 + self.runs / 10)


class KeepsOutput(Part):
  def build(self, shape):
    self.hidden = Stack([layers.Dense(5), layers.BatchNormalization(), layers.Dropout(0.3, seed=2)])
    self.hidden.build(shape)
    super().build((*shape[:-1], 5))

  def call(self, x, training=False):
    keep = engine.keep_output if USES.engine else lambda layer, x, training: layer(x, training=training)
    return self.inner(keep(self.hidden, x, training))


class Replayed(Part):
  def call(self, x):
    y, _ = engine.replayed(self, self.first, self.again, x) if USES.engine else self.first(x)
    return self.inner(y)

  def first(self, x):
    scale = tf.reduce_sum(x**2) / 9
    return x * scale, scale

  def again(self, scale, x):
    return x * scale, lambda dy: dy * scale + tf.reduce_sum(dy * x) * x * (2 / 9)


class Nested(Part):
  """A chain on the halves of tanh(x W)."""

  def build(self, shape):
    super().build(shape)
    pair = [layers.Dense(self.width // 2, "tanh") for _ in "FG"]
    self.chain, self.plain = engine.ReversibleChain([pair]), Plain(pair, [("additive", None)] * 2, [])
    self.chain.build([(*shape[:-1], self.width // 2)] * 2)

  def call(self, x, training=False):
    inner = self.chain if USES.engine else self.plain
    return tf.concat(inner(tf.split(self.inner(x), 2, axis=-1), training=training), axis=-1)


class Stack(layers.Layer):
  """Layers one after the other; by Recompute, or with masks, if `how` says so."""

  def __init__(self, parts, how="", **kwargs):
    super().__init__(**kwargs)
    self.parts, self.how, self.supports_masking = parts, how, "masking" in how
    self.recomputed = [engine.Recompute(part) for part in parts] if "again" in how else parts

  def build(self, shape):
    x = keras.KerasTensor(shape, self.variable_dtype)
    for part in self.recomputed:
      x = part(x)

  def call(self, x, training=False):
    for part in self.recomputed if USES.engine else self.parts:
      x = part(x, training=training)
    return x

  def get_config(self):
    parts = [keras.saving.serialize_keras_object(part) for part in self.parts]
    return {**super().get_config(), "parts": parts, "how": self.how}


def by_custom_gradient(layer, x):
  @tf.custom_gradient
  def clipped(x):
    y = layer.inner(x)

    def gradient(dy, variables=()):
      d = dy * (1 - y * y)
      d_w = tf.tensordot(x, d, [[*range(x.shape.rank - 1)]] * 2)
      return d @ tf.cast(tf.transpose(layer.w), d.dtype), [tf.cast(d_w, v.dtype) for v in variables]

    return y, gradient

  return clipped(x)


def with_loss(layer, x):
  layer.add_loss(tf.cast(tf.reduce_sum(x**2), layer.variable_dtype))
  return layer.inner(x)


def counting(layer, x):
  OUTSIDE.variable.assign_add(tf.ones_like(OUTSIDE.variable))
  return layer.inner(x)


UNUSUAL: dict[str, Callable] = {
  "tf.random": lambda layer, x: layer.inner(x + tf.random.uniform(tf.shape(x), dtype=x.dtype)),
  "assigns": counting,
  "reads tf.Variable": lambda layer, x: layer.inner(x) * tf.cast(OUTSIDE.variable, x.dtype),
  "reads keras.Variable": lambda layer, x: layer.inner(x) * tf.cast(OUTSIDE.variable, x.dtype),
  "outside tensor": lambda layer, x: layer.inner(x) * tf.cast(COMPUTED.tensor, x.dtype),
  "tf.recompute_grad": lambda layer, x: tf.recompute_grad(layer.inner)(x),
  "keras.remat": lambda layer, x: keras.remat(layer.inner)(x),
  "tf.custom_gradient": by_custom_gradient,
  "tf.function": lambda layer, x: layer.traced(x, USES.run),
  "add_loss": with_loss,
}
# Makers, by the width of the output. The first keep the width of their input.
SAME_WIDTH: dict[str, Callable] = {
  "tanh": lambda _: layers.Activation("tanh"),
  "norm": lambda _: layers.LayerNormalization(),
  "batch": lambda _: layers.BatchNormalization(),
  "dropout": lambda _: layers.Dropout(0.3, seed=5),
  "noise": lambda _: layers.GaussianNoise(0.2),
  "synchronized": lambda _: layers.BatchNormalization(synchronized=True),
}
ANY_SHAPE: dict[str, Callable] = {
  "dense": lambda width: layers.Dense(width, "tanh"),
  "part": Part,
  "table": Table,
  "counter": Counter,
  "keeps": KeepsOutput,
  "replayed": Replayed,
  "chain": Nested,
}
SEQUENCE: dict[str, Callable] = {  # for [N, T, C]
  "conv": lambda width: layers.Conv1D(width, 3, padding="same", activation="tanh"),
  "attention": Attention,
  "attention, masking": lambda width: Attention(width, "masking"),
  "attention by mask": lambda width: MaskArgument(width, "masking"),
  "makes mask": MakesMask,
}
RECURRENT: dict[str, Callable] = {  # slow to trace
  "LSTM": lambda width: layers.LSTM(width, return_sequences=True),
  "GRU": lambda width: layers.GRU(width, return_sequences=True),
  "bidirectional": lambda width: layers.Bidirectional(layers.GRU(width // 2, return_sequences=True)),
}
TAKING: dict[str, Callable] = {"time": Conditioned, "extra": Structured, "key, value": Cross}  # of the call
REFUSED: dict[str, Callable] = {how: functools.partial(Part, how=how) for how in UNUSUAL} | {
  "activity": lambda width: layers.Dense(width, activity_regularizer="l2")
}
MAKERS = SAME_WIDTH | ANY_SHAPE | SEQUENCE | RECURRENT | TAKING | REFUSED
STATEFUL = {"batch", "dropout", "noise", "counter", "keeps", "synchronized"}
KEEP_MASKS = {*SAME_WIDTH, *RECURRENT, "dense", "attention, masking", "attention by mask"}
AFFINE = ("affine", "bounded")
COUPLINGS: dict[str, Callable] = {
  "additive": engine.Additive,
  "minus": lambda: engine.Scaled(-1.0),
  "scaled": lambda: engine.Scaled(0.8),
  "trained": lambda: engine.Scaled(0.9, trained=True),
  "affine": engine.Affine,
  "bounded": lambda: engine.Affine(bound=1.0),
  "shortcut": lambda: engine.Shortcut(layers.Dense(WIDTH)),
  "replace": lambda: None,
}

EXACT: dict[str, Callable] = {
  "swap": lambda _: engine.Swap(),
  "reverse": lambda channels: engine.Permute(range(channels)[::-1]),
}
INVERTIBLE = EXACT | {"norm": lambda _: engine.ActNorm(), "mix": lambda _: engine.InvertibleDense()}
BACKWARD = {
  "Store": engine.Store(),
  "least": engine.Rebuild(),
  "auto": engine.Rebuild("auto"),
  "bytes": engine.Rebuild(1500),
  "all": engine.Rebuild("all"),
  "loop": engine.Rebuild(loop=True),
}
