"""Random uses of the reversible engine, each compared with plain Keras on the same layers and weights.

    PYTHONPATH=.:tests python tests/fuzz.py --count 2000 --seed 0 --processes 2
    PYTHONPATH=.:tests python tests/fuzz.py --only 17

Each seed draws a configuration: functions, couplings, layers between units, the way back, masks, arguments of
the call, control flow around the call, the tape, how it is executed. The engine and `Plain`, which shares no
code with it, run the same program. What they give must be equal, or the engine refuses by one error of its own,
for what `refusable` lists and for nothing else. Where plain Keras cannot run the program, the seed draws anew.
"""

import argparse
import collections
import contextlib
import dataclasses
import faulthandler
import functools
import inspect
import itertools
import multiprocessing
import multiprocessing.pool
import os
import random
import re
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from chains import keeping
from keras import layers

import resnet.reversible as engine

BATCH, STEPS, WIDTH = 3, 4, 4
PER_PROCESS = 100  # configurations: TensorFlow's memory grows with each.
LONGEST = 180  # seconds that a configuration may take
# By dtype: of a difference's norm, relative to the norm of what is expected, and to that of all gradients, for
# those that are 0 but for rounding. A gradient that is lost or doubled differs by 1, by another dropout mask by
# about 0.5.
TOLERANCES = {"float64": (1e-9, 1e-11), "float32": (1e-3, 1e-4), "mixed_bfloat16": (0.1, 0.02)}

# The oracle.


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

# Configurations.


@dataclasses.dataclass(frozen=True)
class Config:
  """One random use. What is as here is not printed."""

  functions: tuple[str, str] = ("dense", "dense")  # F and G: names of MAKERS, joined by " > "
  unlike: str = ""  # F of the last unit, if it is another
  wrap: str = "Sequential"  # what holds functions of several parts
  share: str = ""  # FG: one layer is F and G of a unit; units: one F
  freeze: str = ""  # before or after the chain is made the Fs, one variable, all
  units: int = 2
  chains: int = 1  # among which the units are divided
  layer: str = "chain"  # or Recompute, recompute of each function
  keep: tuple[str, ...] = ("statistics",)  # of Recompute
  couplings: tuple[str, ...] = ("additive",)
  coupling_as: str = "default"  # one, pair, list
  log_det: bool = False
  between: tuple[str, ...] = ()  # names of INVERTIBLE, before the first unit and after each; "" is none
  backward: str = "least"
  kept: tuple[int, ...] = ()  # instead: how many units keep streams, outputs, everything
  grid_bits: int | None = None
  training: bool = True
  sequence: bool = False  # streams [N, T, C]
  dtype: str = "float64"
  masks: tuple[int, ...] = ()  # of the streams: 0 none, else which
  mask_as: str = "carried"
  streams: str = "tensors"  # or variables; arguments of the call, too
  alias: tuple[str, ...] = ()  # two inputs that are one tensor
  uses: str = "both"  # of the outputs
  control: str = ""  # control flow around the call
  tape: str = "one"
  execution: str = "eager"
  batch: str = "known"
  steps: int = 1  # Weights change in between.

  def __str__(self):
    shown = [f for f in dataclasses.fields(self) if f.name == "functions" or getattr(self, f.name) != f.default]
    return ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in shown)

  @property
  def parts(self) -> set[str]:
    return set(" > ".join([*self.functions, self.unlike or self.functions[0]]).split(" > "))

  @property
  def fits(self) -> bool:
    return "fit" in self.execution

  @property
  def tensor_names(self) -> list[str]:
    takes = [name for part in sorted(self.parts & set(TAKING)) for name in part.split(", ")]
    return ["x1", "x2", *[tensor for name in takes for tensor in TENSORS[name]]]

  @property
  def coupling_names(self) -> list[str]:
    return [self.couplings[k % len(self.couplings)] for k in range(2 * self.units)]


# What the engine may refuse, by its documentation, and what the error then says.
WORDS = {
  "tf.random": "random",
  "assigns": "variable",
  "reads tf.Variable": "variable",
  "reads keras.Variable": "variable",
  "outside tensor": "outside",
  "tf.recompute_grad": "recompute_grad",
  "keras.remat": "keras.remat",
  "tf.custom_gradient": "custom_gradient",
  "add_loss": "loss",
  "activity": "loss",
  "loop: shared state": "loop=True",
  "loop: masks that change": "loop=True",
  "loop: synchronised": "loop=True",
  "second order": "gradients of gradients",
  "forward mode": "forward",
}


def refusable(config: Config) -> list[str]:
  """For which of these a configuration may be refused."""
  loop, parts = config.backward == "loop", config.parts
  masks = bool(config.masks) or "makes mask" in parts
  again = config.wrap == "Stack, again"  # Each part is in a Recompute of its own.
  rebuilds = config.backward != "Store" or "chain" in parts or again
  holds = {
    "loop: shared state": loop and config.share and parts & STATEFUL,
    "loop: masks that change": loop and masks and (config.masks != (1, 1) or not parts <= KEEP_MASKS),
    "loop: synchronised": loop and "synchronized" in parts,
    "second order": config.tape == "second" and rebuilds,
    "forward mode": config.tape == "forward" and rebuilds,
  }
  return [reason for reason in WORDS if reason in parts or holds.get(reason)]


def draw_couplings(rng: random.Random, units: int, alike: bool) -> tuple[tuple[str, ...], str]:
  """(couplings, how they are given). `alike`: the outputs of all functions have one width."""
  sums = ["additive", "additive", "minus", "scaled", "trained", "trained"]
  names = sums if alike else [*sums, *AFFINE]
  kind = rng.choices(["default", "one", "pair", "list", "shortcut"], [35, 30, 12, 12, 11])[0]
  if kind == "one":
    return (rng.choice([*sums, *AFFINE]),), kind
  if kind == "shortcut" and not alike:
    return ("shortcut", "shortcut", *rng.choices(sums, k=2) * (units - 1)), "list"
  if kind in ("pair", "list"):
    return tuple(rng.choices(names, k=2 if kind == "pair" else 2 * units)), kind
  return ("additive",), "default"


def draw_function(rng: random.Random, special: float, sequence: bool) -> str:
  if rng.random() < special:
    taking = [name for name in TAKING if sequence or name != "key, value"]
    return rng.choice(rng.choice([taking, list(REFUSED)]))
  kinds = [SAME_WIDTH, ANY_SHAPE, *[SEQUENCE, SEQUENCE, RECURRENT] * sequence]
  weights = [6, 6, *[3, 3, 1] * sequence]
  drawn = rng.choices(kinds, weights, k=rng.choice([1, 1, 1, 2, 2, 3]))
  return " > ".join(rng.choice(list(some)) for some in drawn)


def draw(seed: int, attempt: int = 0) -> Config:
  """The configuration of a seed."""
  rng = random.Random(f"{seed} {attempt}")

  def maybe(probability, *values, default: Any = ""):
    return rng.choice(values) if rng.random() < probability else default

  sequence = rng.random() < 0.4
  kinds = ["eager", "graph", "XLA", "fit", "mirrored", "mirrored fit"]
  execution = rng.choices(kinds, [57, 24, 4, 5, 8, 2])[0]
  fits = "fit" in execution
  chain = rng.random() < 0.8
  units = rng.choice([1, 1, 2, 2, 3, 4] if execution == "eager" else [1, 1, 2, 3])
  share = maybe(0.15, "FG", "units")
  couplings, coupling_as = draw_couplings(rng, units, bool(share)) if chain else (("replace",), "default")
  shortcut = "shortcut" in couplings
  chains = maybe(0.1, 2, default=1) if chain and units > 1 and coupling_as != "list" else 1
  loop = chain and chains == 1 and rng.random() < 0.25
  moves = chain and chains == 1 and rng.random() < 0.25
  between = tuple(maybe(0.5, *INVERTIBLE) for _ in range(units + 1)) if moves else ()
  around = ["cond", "switch", "map", *["while"] * (not shortcut), *["RNN"] * (not shortcut and not sequence)]
  control = maybe(0.25, *around) if not fits else ""
  # Affine(bound) computes s in F's precision, `Plain` in the stream's.
  low = "float32" if fits or "bounded" in couplings else "mixed_bfloat16"
  exact = chain and set(couplings) <= {"additive", "minus"} and chains == 1
  can_mask = sequence and control != "map"
  masks = maybe(0.5 * can_mask, (1, 1), (1, 1), (1, 2), (1, 0), (0, 1), default=())
  tapes = ["persistent", "assigned", "jacobian", "partial", "nested", "second", "forward", "list"]
  config = Config(
    functions=(draw_function(rng, 0.35, sequence), draw_function(rng, 0.1, sequence)),
    unlike=draw_function(rng, 0.1, sequence) if units > 1 and rng.random() < 0.08 else "",
    wrap=rng.choice(["Sequential", "Sequential", "Model", "Stack", "Stack, masking", "Stack, again"]),
    share=share,
    freeze=maybe(0.15, "before", "after", "variable", "all"),
    units=units,
    chains=chains,
    layer="chain" if chain else "Recompute" if fits else rng.choice(["Recompute", "recompute"]),
    keep=("statistics",) if chain else rng.choice([("statistics",), (), ("statistics", "activations")]),
    couplings=couplings,
    coupling_as=coupling_as,
    log_det=chain and chains == 1 and not (shortcut or fits or control) and rng.random() < 0.15,
    between=between,
    backward="loop" if loop else maybe(0.4, *BACKWARD, default="least") if chain else "least",
    kept=maybe(
      0.3 * (chain and chains == 1 and not loop), tuple(rng.choices(range(units + 1), k=3)), default=()
    ),
    grid_bits=maybe(0.12, 14, 20, default=None) if exact and set(between) <= {"", *EXACT} else None,
    training=rng.random() < 0.85,
    sequence=sequence,
    dtype=maybe(0.25, "float32", low, default="float64"),
    masks=masks,
    mask_as=rng.choice(["carried", "argument"]) if masks and chain and chains == 1 and not fits else "carried",
    streams="tensors" if fits else maybe(0.15, "tf.Variable", "keras.Variable", default="tensors"),
    uses=maybe(0.4, "first", "second", "stop", "product", default="both"),
    control=control,
    tape="one" if fits else maybe(0.4, *tapes, default="one"),
    execution="graph" if execution == "eager" and control not in ("", "RNN") else execution,
    batch=maybe(0.15, "unknown", default="known") if execution in ("graph", "fit", "mirrored fit") else "known",
    steps=maybe(0.25, 2, default=1),
  )
  inputs = config.tensor_names
  if rng.random() < (0.15 if len(inputs) == 2 else 0.4) and not (shortcut and len(inputs) > 2):
    config = dataclasses.replace(config, alias=tuple(rng.sample(inputs, 2)))
  if "outside tensor" in config.parts and rng.random() < 0.3:  # Rare otherwise.
    config = dataclasses.replace(config, execution="mirrored")
  if config.tape == "assigned" and config.parts & {"tf.recompute_grad", "tf.custom_gradient", "keras.remat"}:
    config = dataclasses.replace(config, tape="persistent")  # Plain Keras reads weights as they are then.
  return dataclasses.replace(config, steps=2) if "tf.function" in config.parts else config


# What is run.


@dataclasses.dataclass
class World:
  """The layers, variables and tensors of a configuration."""

  config: Config
  functions: list[layers.Layer]  # F and G of unit 0, F of unit 1, and so on
  engine: list[layers.Layer]  # that run them without storing activations
  plain: Plain
  variables: dict[str, Any]  # of the functions, and around them
  scales: dict[bool, list[Any]]  # of trained couplings: the engine's (True), the oracle's
  tensors: dict[str, tf.Tensor]  # streams and arguments of the call
  held: dict[str, Any]  # variables in place of these
  masks: list[Any]  # of the streams
  start: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def call(self, streams, arguments) -> list:
    """The outputs, by the engine or by the oracle."""
    config, kwargs = self.config, dict(arguments)
    if not config.fits:
      kwargs["training"] = config.training
      if config.masks and config.mask_as == "argument":
        kwargs["mask"] = self.masks
      elif config.masks:
        streams = [with_mask(tf.convert_to_tensor(x), mask) for x, mask in zip(streams, self.masks)]
    if not USES.engine:
      return list(self.plain(tuple(streams), **kwargs))
    streams = list(streams)
    for k, layer in enumerate(self.engine):
      chain = config.layer == "chain"
      functions = split(self.functions, config.chains)[k] if chain else self.functions[k : k + 1]
      names = {"training", "mask"}.union(*map(names_of, functions)) & set(kwargs)
      own = {name: kwargs[name] for name in names}
      if chain:
        streams = list(layer(tuple(streams), **own))
        continue
      recompute = functools.partial(engine.recompute, functions[0], keep=config.keep)
      y = (layer if config.layer == "Recompute" else recompute)(streams[1 - k % 2], **own)
      streams[k % 2] = with_mask(tf.cast(y, tf.float32), mask_of(y)) if config.dtype == "mixed_bfloat16" else y
    return streams

  def inputs(self, tensors) -> tuple[list, dict[str, Any]]:
    """(streams, arguments of the call)."""
    tensors = {**tensors, **self.held}
    if self.config.alias:
      tensors[self.config.alias[0]] = tensors[self.config.alias[1]]
    arguments = {name: tensors[name] for name in ("time", "key", "value") if name in tensors}
    if "a" in tensors:
      arguments["extra"] = {"a": tensors["a"], "rest": [tensors["b"], tensors["c"]]}
    return [tensors["x1"], tensors["x2"]], arguments

  def all_variables(self) -> dict[str, Any]:
    return self.variables | {f"scale {k}": v for k, v in enumerate(self.scales[USES.engine])}

  def sources(self, inputs) -> dict[str, Any]:
    """What gradients are wanted for."""
    found = {f"input {k}": raw(leaf) for k, leaf in enumerate(tf.nest.flatten(inputs))}
    found |= {name: raw(v) for name, v in self.all_variables().items() if v.trainable}
    return dict(list(found.items())[:: 2 if self.config.tape == "partial" else 1])

  def assign(self, new: Callable, trained_only=False) -> None:
    for name, variable in self.all_variables().items():
      if variable.trainable or not trained_only:
        variable.assign(new(name, variable))


def raw(x):
  return x.value if isinstance(x, keras.Variable) else x


def other_value(_, variable):
  value = tf.convert_to_tensor(raw(variable))
  return value * 0.7 + 0.1 if value.dtype.is_floating else value + 1


def split(functions, chains):
  return [functions] if chains == 1 else [functions[:2], functions[2:]]


def make_function(config: Config, spec: str, width: int, in_width: int) -> layers.Layer:
  names = spec.split(" > ")
  parts = [MAKERS[name](width) for name in names]
  if names[-1] in SAME_WIDTH and (len(parts) > 1 or width != in_width):
    parts.append(layers.Dense(width))
  if spec in TAKING or (len(parts) == 1 and config.wrap != "Stack, again"):
    return parts[0]
  if config.wrap == "Sequential":
    return keras.Sequential(parts)
  if config.wrap == "Model":
    x = keras.Input([*[STEPS] * config.sequence, in_width])
    return keras.Model(x, functools.reduce(lambda y, part: part(y), parts, x))
  return Stack(parts, config.wrap)


def make_functions(config: Config, in_width: int) -> list[layers.Layer]:
  functions: list[layers.Layer] = []
  for k, coupling in enumerate(config.coupling_names):
    if (config.share == "FG" and k % 2) or (config.share == "units" and k and k % 2 == 0):
      functions.append(functions[-1 if config.share == "FG" else 0])
      continue
    spec = config.unlike if config.unlike and k == 2 * config.units - 2 else config.functions[k % 2]
    width = 2 * WIDTH if coupling in AFFINE else WIDTH
    functions.append(make_function(config, spec, width, WIDTH if k else in_width))
  for function in functions[::2] if config.freeze == "before" else ():
    function.trainable = False
  return functions


def make_engine(config: Config, functions, couplings, between, shape, in_width: int) -> list[layers.Layer]:
  """The built layers."""
  if config.layer != "chain":
    made = [engine.Recompute(function, keep=config.keep) for function in functions]
    for layer, function in zip(made, functions):
      if names_of(function):
        layer.build((*shape, WIDTH))
      else:
        layer(keras.KerasTensor((*shape, WIDTH), function.variable_dtype))
    return made
  given = {"default": None, "one": couplings[0], "pair": tuple(couplings), "list": couplings}
  kwargs = {"log_det": config.log_det, "grid_bits": config.grid_bits, "backward": BACKWARD[config.backward]}
  made, kwargs["coupling"] = [], given[config.coupling_as]
  for some, width in zip(split(functions, config.chains), [in_width, WIDTH]):
    units: list = list(zip(some[::2], some[1::2]))
    for place, (_, layer) in reversed([*enumerate(between)]):
      units[place:place] = [layer] if layer else []
    made.append(engine.ReversibleChain(units, **kwargs))
    made[-1].build([(*shape, width)] * 2)
    if config.kept:
      keeping(made[-1], *config.kept)
  return made


def freeze(config: Config, functions, made) -> None:
  for layer in {"after": functions[-2:-1], "all": made + functions}.get(config.freeze, ()):
    layer.trainable = False
  for variable in functions[0].trainable_variables[:1] if config.freeze == "variable" else ():
    variable.trainable = False


def make_world(config: Config) -> World:
  USES.engine, USES.run = True, 0
  keras.utils.set_random_seed(1)
  rng, dtype = np.random.RandomState(0), keras.config.floatx()
  make_outside = keras.Variable if "reads keras.Variable" in config.parts else tf.Variable
  OUTSIDE.variable, COMPUTED.tensor = make_outside(1.3, dtype=dtype), tf.constant(1.3, dtype)
  shape, in_width = [STEPS] * config.sequence, 3 if "shortcut" in config.couplings else WIDTH
  functions = make_functions(config, in_width)
  couplings = [COUPLINGS[name]() for name in config.couplings]
  between = [
    (name, INVERTIBLE[name](2 * (WIDTH if place else in_width)) if name else None)
    for place, name in enumerate(config.between)
  ]
  made = make_engine(config, functions, couplings, between, (None, *shape), in_width)
  freeze(config, functions, made)
  moving = [layer for _, layer in between if layer]
  shortcuts = [one.layer for one in couplings if isinstance(one, engine.Shortcut)]
  owned = {id(v): v for layer in [*functions, *shortcuts, *moving] for v in layer.variables}
  variables = {f"{v.path} {k}": v for k, v in enumerate(owned.values())}
  if config.parts & {"assigns", "outside tensor", "reads tf.Variable", "reads keras.Variable"}:
    variables["outside"] = OUTSIDE.variable
  of_engine = {id(v): v for layer in made for v in layer.variables if id(v) not in owned}
  names = config.coupling_names
  own_scales = [keras.Variable(0.9, dtype=dtype) for name in names if name == "trained"]
  unused = {"trained": iter(own_scales), "shortcut": iter(shortcuts)}
  needs = [next(unused[name]) if name in unused else None for name in names]
  scales = {True: list(of_engine.values()), False: own_scales}
  tensors = {}
  for name in config.tensor_names:
    width = in_width if name in ("x1", "x2") else WIDTH
    tensors[name] = tf.constant(rng.normal(size=[BATCH, *shape, width]), dtype)
  kind = {"tf.Variable": tf.Variable, "keras.Variable": keras.Variable}.get(config.streams)
  held = {name: kind(value) for name, value in tensors.items()} if kind else {}
  lengths = [[[4], [2], [1]], [[1], [3], [2]]]
  masks = [tf.constant(np.arange(STEPS) < lengths[which - 1]) if which else None for which in config.masks]
  plain = Plain(functions, list(zip(names, needs)), between, config.grid_bits, config.log_det)
  if config.freeze == "all":
    plain.trainable = False
  world = World(config, functions, made, plain, variables, scales, tensors, held, masks)
  for name, variable in variables.items():  # Away from where layers begin, which gives gradients that are 0.
    value = np.array(tf.convert_to_tensor(raw(variable)))
    world.start[name] = value + rng.uniform(0, 0.4, value.shape).astype(value.dtype) * (value.dtype.kind == "f")
  world.start |= {f"scale {k}": np.array(0.9 + k / 20) for k in range(len(names))}
  return world


# Programs.


class Cell(layers.Layer):
  """y2 and the next state y1, of an entry of the sequence and the state before."""

  state_size = output_size = WIDTH

  def __init__(self, run):
    super().__init__(autocast=False)
    self.run = run

  def call(self, inputs, states):
    y1, y2 = self.run([inputs, states[0]])
    return y2, [y1]


def around(config: Config, call: Callable, streams: list) -> list:
  """`call` on the streams, in some control flow."""
  if not config.control:
    return call(streams)
  x1, x2 = map(tf.convert_to_tensor, streams)
  parallel = {"parallel_iterations": 1 if config.parts & STATEFUL else 10}
  branches = [lambda: [x1[..., :1] * tf.ones([WIDTH], x1.dtype)] * 2, lambda: call([x1, x2])]
  if config.control == "cond":
    return tf.cond(tf.reduce_sum(x1) < 1e9, branches[1], branches[0])
  if config.control == "switch":
    return tf.switch_case(tf.cast(tf.reduce_sum(x1) < 1e9, tf.int32), [*branches, branches[0]])
  if config.control == "while":
    twice = {"maximum_iterations": 2, **parallel}
    return list(tf.while_loop(lambda *_: True, lambda *pair: call(list(pair)), [x1, x2], **twice))
  if config.control == "map":
    pairs, dtypes = (tf.stack([x1, 2 * x1]), tf.stack([x2, -x2])), [x1.dtype] * 2
    return tf.map_fn(lambda pair: call(list(pair)), pairs, fn_output_signature=dtypes, **parallel)
  sequence, *state = layers.RNN(Cell(call), True, True, dtype=x1.dtype.name)(tf.stack([x1, 2 * x1], 1), x2)
  return [sequence, *state]


def losses_of(config: Config, outputs: list) -> list[tf.Tensor]:
  y1, y2, *log_det = outputs
  uses = {"both": (y1, y2), "first": (y1, y1), "second": (y2, y2), "stop": (y1, tf.stop_gradient(y2))}
  a, b = uses.get(config.uses) or (tf.reduce_sum(y1) * y2, y1)
  return [tf.reduce_sum(tf.sin(a)), tf.add_n([tf.reduce_sum(b**2), *map(tf.reduce_sum, log_det)])]


def gradients(tape, target, sources: dict[str, Any], label="", **kwargs) -> dict[str, tf.Tensor]:
  found = getattr(tape, label or "gradient")(target, list(sources.values()), **kwargs)
  shape = tf.shape(target) if label == "jacobian" else []
  zeros = [tf.zeros(tf.concat([shape, tf.shape(x)], 0), tf.as_dtype(x.dtype)) for x in sources.values()]
  return {
    f"gradient of {name}": tf.convert_to_tensor(zero if d is None else d)
    for name, zero, d in zip(sources, zeros, found)
  }


def step(world: World, tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Outputs, their masks and gradients, by name."""
  config, kind = world.config, world.config.tape
  streams, arguments = world.inputs(tensors)
  sources = world.sources((streams, arguments))

  def run(streams):
    COMPUTED.tensor = tf.exp(tf.convert_to_tensor(raw(OUTSIDE.variable)))
    return around(config, lambda streams: world.call(streams, arguments), streams)

  if kind == "forward":
    x1 = tf.convert_to_tensor(streams[0])
    with tf.autodiff.ForwardAccumulator(x1, tf.ones_like(x1)) as accumulator:
      outputs = run([x1, streams[1]])
    return outputs_of(config, outputs) | {f"jvp {k}": accumulator.jvp(y, "zero") for k, y in enumerate(outputs)}
  with contextlib.ExitStack() as stack:
    outer = stack.enter_context(tf.GradientTape()) if kind in ("nested", "second") else None
    with tf.GradientTape(persistent=kind in ("persistent", "assigned", "jacobian")) as tape:
      for each in (tape, outer) if outer else (tape,):
        each.watch([x for x in sources.values() if not isinstance(x, tf.Variable)])
      outputs = run(streams)
      losses = losses_of(config, outputs)
      added = [tf.cast(loss, losses[0].dtype) for function in world.functions for loss in function.losses]
      loss = tf.add_n(losses + added * (not config.control))
    if kind == "assigned":
      world.assign(other_value)
    if kind == "list":
      weights = [tf.fill(tf.shape(y), tf.constant(0.3 + k, y.dtype)) for k, y in enumerate(outputs)]
      found = gradients(tape, outputs, sources, output_gradients=weights)
    elif kind == "jacobian":
      found = gradients(tape, tf.stack(losses), sources, "jacobian")
    else:
      found = gradients(tape, loss, sources)
    if kind in ("persistent", "assigned"):
      found |= {f"{name}, again": d for name, d in gradients(tape, losses[0], sources).items()}
    if kind == "second":
      loss = tf.add_n([tf.reduce_sum(d**2) for d in found.values()])
  if outer:
    found |= {f"{name}, outer": d for name, d in gradients(outer, loss, sources).items()}
  return outputs_of(config, outputs) | found


def outputs_of(config: Config, outputs: list) -> dict[str, tf.Tensor]:
  masks = {f"mask {k}": mask_of(y) for k, y in enumerate(outputs) if not config.control}
  masks = {name: tf.identity(mask) for name, mask in masks.items() if mask is not None}
  return {f"output {k}": y for k, y in enumerate(outputs)} | masks


def fit(world: World) -> dict[str, Any]:
  """How variables move in training by Keras, in a functional model with a dense layer before the streams."""
  config, x = world.config, dict(world.tensors)
  size = None if config.batch == "unknown" else BATCH
  inputs = {name: keras.Input(value.shape[1:], size, name=name) for name, value in x.items()}
  first = layers.Dense(x["x1"].shape[-1], kernel_initializer=keras.initializers.GlorotUniform(3))
  streams = {name: inputs[name] for name in ("x1", "x2")}
  for name, mask in zip(streams, world.masks):
    if mask is not None:
      x[name] *= tf.cast(mask, x[name].dtype)[..., None]
      streams[name] = layers.Masking(0.0)(streams[name])
  model = keras.Model(
    inputs, world.call(*world.inputs(inputs | {name: first(y) for name, y in streams.items()}))
  )
  model.compile(keras.optimizers.SGD(0.1), ["mse", "mse"], jit_compile=False)
  y = [tf.ones([BATCH, *x["x1"].shape[1:-1], WIDTH], x["x1"].dtype)] * 2
  variables = {"first": first.kernel, **world.all_variables()}
  before = {name: array(raw(variable)) for name, variable in variables.items()}
  if config.steps == 1:
    model.train_on_batch(x, y)
  else:
    model.fit(x, y, batch_size=BATCH, epochs=config.steps, verbose=0)
  return {f"move of {name}": array(raw(variable)) - before[name] for name, variable in variables.items()}


@functools.cache
def mirrored() -> tf.distribute.Strategy:
  """One for all configurations: TensorFlow numbers what devices exchange, anew for each strategy."""
  return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def strategy_of(config: Config) -> tf.distribute.Strategy:
  return mirrored() if "mirrored" in config.execution else tf.distribute.get_strategy()


def execute(world: World, by_engine: bool) -> dict[str, np.ndarray]:
  """What the configuration's program gives, by the engine or by the oracle."""
  USES.engine, USES.run = by_engine, 1 + by_engine
  tf.random.set_seed(1)
  world.assign(lambda name, _: world.start[name])
  config, strategy, tensors = world.config, strategy_of(world.config), world.tensors
  if config.fits:
    return {name: array(value) for name, value in fit(world).items()}
  program = one = functools.partial(step, world)
  if config.execution in ("graph", "XLA"):
    size = None if config.batch == "unknown" else BATCH
    spec = {name: tf.TensorSpec([size, *x.shape[1:]], x.dtype) for name, x in tensors.items()}
    program = tf.function(one, [spec], autograph=False, jit_compile=config.execution == "XLA")
  elif config.execution == "mirrored":
    program = tf.function(lambda tensors: strategy.run(one, (tensors,)), autograph=False)
    scatter = strategy.experimental_distribute_values_from_function
    tensors = {n: scatter(lambda c, x=x: x / (1 + c.replica_id_in_sync_group)) for n, x in tensors.items()}
  found = {}
  for number in range(config.steps):
    if number:
      world.assign(other_value, trained_only=True)
    found |= {f"{name}{', second step' * number}": value for name, value in program(tensors).items()}
  found |= {f"state {name}": raw(variable) for name, variable in world.all_variables().items()}
  return {
    f"{name}{f', replica {replica}' * bool(replica)}": array(part)
    for name, value in found.items()
    for replica, part in enumerate(strategy.experimental_local_results(value))
  }


def array(x) -> np.ndarray:
  x = tf.convert_to_tensor(x)
  return np.array(tf.cast(x, tf.float64) if x.dtype.is_floating else x)


# What is compared.


@dataclasses.dataclass(frozen=True)
class Result:
  seed: int
  outcome: str  # equal, refused, different, error
  config: Config
  details: str = ""
  redrawn: int = 0  # configurations that plain Keras could not run


class CannotRun(Exception):
  """Plain Keras cannot run a configuration."""


def differences(config: Config, actual: dict, expected: dict) -> list[str]:
  relative, of_all = TOLERANCES[config.dtype]
  groups: collections.Counter = collections.Counter()
  for name, value in expected.items():
    groups[name.split()[0]] += float(np.linalg.norm(value)) ** 2
  by = {name: "the engine" if name in actual else "plain Keras" for name in actual.keys() ^ expected.keys()}
  found = [f"{name} only by {who}" for name, who in by.items()]
  for name in sorted(actual.keys() & expected.keys()):
    a, e = actual[name], expected[name]
    if a.shape != e.shape:
      found.append(f"{name} has shape {a.shape} instead of {e.shape}")
    elif e.dtype.kind != "f":
      found += [] if np.array_equal(a, e) else [f"{name} is {a.ravel()[:12]} instead of {e.ravel()[:12]}"]
    else:
      error, norm = np.linalg.norm(a - e), np.linalg.norm(e)
      if not error <= relative * norm + of_all * groups[name.split()[0]] ** 0.5:
        found.append(f"{name} differs by {error:.2g}, norm {norm:.2g}")
  return found


def is_allowed(error: Exception, config: Config, functions: list[layers.Layer]) -> bool:
  """Whether the engine itself refuses what it may refuse, and says what and where."""
  raised_by = traceback.extract_tb(error.__traceback__)[-1].filename
  ours = any(f"resnet/{package}/" in raised_by for package in ("reversible", "recomputation"))
  where = [r"[FG] of unit \d", "ReversibleChain", "[Rr]ecompute", "loop=True", *[f.name for f in functions]]
  what = [WORDS[reason] for reason in refusable(config)]
  says = [bool(words) and bool(re.search("|".join(words), str(error))) for words in (where, what)]
  return ours and isinstance(error, ValueError | NotImplementedError) and all(says)


@contextlib.contextmanager
def settings(config: Config) -> Iterator[None]:
  """A fresh Keras, with the configuration's dtypes and strategy."""
  before = keras.config.floatx(), keras.config.dtype_policy()
  keras.backend.clear_session()
  keras.config.set_floatx("float64" if config.dtype == "float64" else "float32")
  keras.config.set_dtype_policy(config.dtype)
  try:
    with warnings.catch_warnings(), strategy_of(config).scope():
      warnings.simplefilter("ignore")
      yield
  finally:
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def compare(config: Config) -> tuple[str, str]:
  """(outcome, details) of a configuration.

  Raises:
    CannotRun: plain Keras cannot run it.
  """
  functions: list[layers.Layer] = []
  with settings(config):
    try:
      world = make_world(config)
      functions = world.functions
      try:
        expected = execute(world, by_engine=False)
      except Exception as error:
        raise CannotRun(f"{type(error).__name__}: {error}") from error
      if not all(np.all(np.isfinite(value)) for value in expected.values()):
        raise CannotRun("numbers that are not finite")
      found = differences(config, execute(world, by_engine=True), expected)
    except CannotRun:
      raise
    except Exception as error:
      allowed = is_allowed(error, config, functions)
      message = f"{type(error).__name__}: {' '.join(str(error).split())}"
      return ("refused" if allowed else "error"), "\n".join([message, *traceback.format_exception(error)])
  return ("different" if found else "equal"), "\n".join(found)


def check(seed: int) -> Result:
  """The result of a seed."""
  for attempt in itertools.count():
    config = draw(seed, attempt)
    with contextlib.suppress(CannotRun):
      outcome, details = compare(config)
      return Result(seed, outcome, config, details, attempt)
  raise AssertionError


# Processes.


def prepare() -> None:
  """Two devices; one thread for each of TensorFlow's operations."""
  cpu = tf.config.list_physical_devices("CPU")[0]
  tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.get_logger().setLevel("ERROR")


def work(seeds: list[int], connection) -> None:
  prepare()
  for seed in seeds:
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    connection.send(check(seed))
  faulthandler.cancel_dump_traceback_later()


def check_in_process(seeds: list[int], report: Callable[[Result], None]) -> None:
  """Checks seeds in a process of their own; if it ends early, those after that in another one."""
  spawn = multiprocessing.get_context("spawn")
  while seeds:
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=work, args=(seeds, sender))
    process.start()
    sender.close()
    with contextlib.suppress(EOFError):
      while seeds:
        report(receiver.recv())
        seeds = seeds[1:]
    process.join()
    if seeds:
      report(Result(seeds[0], "error", draw(seeds[0]), f"the process ended with {process.exitcode}"))
      seeds = seeds[1:]


def check_all(seeds: range, processes: int) -> list[Result]:
  results: list[Result] = []
  lock = threading.Lock()

  def report(result: Result) -> None:
    with lock:
      results.append(result)
      if result.outcome in ("different", "error"):
        lines = result.details.split("\n")[: 1 if result.outcome == "error" else 3]
        lines = [f"seed {result.seed} {result.outcome}: {result.config}", *[line[:600] for line in lines]]
        print(*lines, sep="\n    ", flush=True)
      if len(results) % 50 == 0:
        counts = collections.Counter(result.outcome for result in results)
        print(f"{len(results)} of {len(seeds)}: {dict(counts)}", flush=True)

  size = max(1, min(PER_PROCESS, -(-len(seeds) // processes)))
  shares = [list(seeds[start : start + size]) for start in range(0, len(seeds), size)]
  with multiprocessing.pool.ThreadPool(processes) as pool:
    pool.map(lambda share: check_in_process(share, report), shares, 1)
  return results


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--count", type=int, default=2000, help="of configurations")
  parser.add_argument("--seed", type=int, default=0, help="of the first configuration")
  parser.add_argument("--only", type=int, help="the one seed to run, with all details")
  parser.add_argument("--processes", type=int, default=2)
  arguments = parser.parse_args()
  if arguments.only is not None:
    prepare()
    results = [check(arguments.only)]
    print(repr(results[0].config), results[0].details, f"refusable: {refusable(results[0].config)}", sep="\n")
  else:
    results = check_all(range(arguments.seed, arguments.seed + arguments.count), arguments.processes)
  refused = [" + ".join(refusable(result.config)) for result in results if result.outcome == "refused"]
  for reasons, number in collections.Counter(refused).most_common():
    print(f"refused, {reasons}: {number}")
  counts = collections.Counter(result.outcome for result in results)
  print(
    f"{counts['equal']} equal, {counts['refused']} refused, {counts['different']} different, "
    f"{counts['error']} errors, {sum(result.redrawn for result in results)} redrawn"
  )
  return int(bool(counts["different"] + counts["error"]))


if __name__ == "__main__":
  sys.exit(main())
