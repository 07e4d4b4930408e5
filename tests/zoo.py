"""Kinds of functions for chains: what F and G may be."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from resnet.models.layers import BatchNorm, PreactivatedConv
from resnet.reversible import ReversibleChain


@dataclasses.dataclass(frozen=True)
class Kind:
  """make(dtype policy) -> a layer that keeps the shape of streams [3, *shape]."""

  make: Callable[[str], keras.layers.Layer]
  shape: tuple[int, ...] = (4,)
  arguments: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the chain's call
  dtype: str = "float64"


class Nested(keras.layers.Layer):
  """A chain of two units on the halves of the last axis."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    units = [[layers.Dense(2, "tanh", dtype=self.dtype) for _ in "FG"] for _ in range(2)]
    self.chain = ReversibleChain(units, dtype=self.dtype)

  def build(self, input_shape):
    self.chain.build([(*input_shape[:-1], 2)] * 2)

  def call(self, x, training=False):
    return tf.concat(self.chain(tf.split(x, 2, axis=-1), training=training), axis=-1)


class Counter(keras.layers.Layer):
  """sin(w x (1 + runs / 10)); counts its runs in training."""

  def build(self, input_shape):
    self.w = self.add_weight(shape=input_shape[-1:], initializer="ones")
    self.runs = self.add_weight(shape=(), initializer="zeros", trainable=False)

  def call(self, x, training=False):
    if training:
      self.runs.assign(self.runs + 1)
    return tf.sin(self.w * x * (1 + self.runs / 10))


class Conditioned(keras.layers.Layer):
  """tanh(x W + time V)."""

  def build(self, input_shape):
    self.w = self.add_weight(shape=(input_shape[-1], input_shape[-1]))
    self.v = self.add_weight(shape=(2, input_shape[-1]))

  def call(self, x, time):
    return tf.tanh(x @ self.w + time @ self.v)


class Attention(keras.layers.Layer):
  """Multi-head attention of x to itself."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.attention = layers.MultiHeadAttention(2, 2, use_bias=False, dtype=self.dtype_policy)

  def build(self, input_shape):
    self.attention.build(input_shape, input_shape)

  def call(self, x, attention_mask=None):
    return self.attention(x, x, attention_mask=attention_mask)


class Masked(keras.layers.Layer):
  """A dense layer of the mean over the steps that the mask leaves."""

  supports_masking = True

  def build(self, input_shape):
    self.w = self.add_weight(shape=(input_shape[-1], input_shape[-1]))

  def call(self, x, mask=None):
    weight = tf.ones_like(x[..., :1]) if mask is None else tf.cast(mask, x.dtype)[..., None]
    return tf.tanh((x + tf.reduce_mean(x * weight, 1, keepdims=True)) @ self.w)


def frozen(dtype):
  layer = layers.Dense(4, "tanh", dtype=dtype)
  layer.trainable = False
  return layer


def mixture(dtype, width=4):
  """State, randomness and weights: dense, batch norm, dropout, tanh."""
  parts = [layers.Dense(width, use_bias=False), layers.BatchNormalization()]  # A bias would have no gradient.
  return in_policy([*parts, layers.Dropout(0.3, seed=5), layers.Activation("tanh")], dtype)


def in_policy(parts, dtype):
  """Layers one after the other, made anew in a dtype policy."""
  return keras.Sequential([type(part).from_config({**part.get_config(), "dtype": dtype}) for part in parts])


def functional(dtype):
  x = keras.Input([4], dtype="float64" if dtype == "float64" else None)
  y = layers.Dense(6, "tanh", dtype=dtype)(x)
  return keras.Model(x, layers.Dense(4, dtype=dtype)(layers.Concatenate(dtype=dtype)([x, y])))


def norm(cls, **kwargs):
  convolution = layers.Conv2D(4, 3, padding="same", activation="tanh")
  return lambda dtype: in_policy([cls(**kwargs), convolution], dtype)


def spectral(dtype):
  return layers.SpectralNormalization(layers.Dense(4, dtype=dtype), dtype=dtype)


def preactivated(dtype):
  return PreactivatedConv(1, 4, 3, dtype=dtype)


def recurrent(cls):
  return lambda dtype: cls(4, return_sequences=True, dtype=dtype)


def convolution(cls, **kwargs):
  return lambda dtype: cls(4, 3, padding="same", activation="tanh", dtype=dtype, **kwargs)


SHARED = {}  # One layer a chain: see make_chain in test_zoo.py.
TIME = np.random.RandomState(5).normal(size=(3, 2))
TRIANGLE = np.tril(np.ones([3, 5, 5], bool))
MASKS = [np.array([[True] * keep + [False] * (5 - keep) for keep in keeps]) for keeps in ((1, 3, 5), (2, 4, 1))]

KINDS = {
  "dense": Kind(lambda dtype: layers.Dense(4, "tanh", dtype=dtype)),
  "convolution 1-D": Kind(convolution(layers.Conv1D), (5, 4)),
  "convolution 2-D": Kind(convolution(layers.Conv2D), (3, 3, 4)),
  "convolution 3-D": Kind(convolution(layers.Conv3D), (2, 2, 2, 4)),
  "depthwise": Kind(lambda dtype: layers.DepthwiseConv2D(3, padding="same", dtype=dtype), (3, 3, 4)),
  "LSTM": Kind(recurrent(layers.LSTM), (3, 4)),
  "GRU": Kind(recurrent(layers.GRU), (3, 4)),
  "attention": Kind(lambda dtype: Attention(dtype=dtype), (5, 4)),
  "attention with a mask": Kind(lambda dtype: Attention(dtype=dtype), (5, 4), {"attention_mask": TRIANGLE}),
  "Keras mask": Kind(lambda dtype: Masked(dtype=dtype), (5, 4), {"mask": MASKS}),
  "conditioned": Kind(lambda dtype: Conditioned(dtype=dtype), (4,), {"time": TIME}),
  "sequential and dropout": Kind(mixture),
  "functional": Kind(functional),
  "spectral normalisation": Kind(
    lambda dtype: layers.SpectralNormalization(layers.Dense(4, dtype=dtype), dtype=dtype)
  ),
  "nested chain": Kind(lambda dtype: Nested(dtype=dtype)),
  "shared": Kind(lambda dtype: SHARED.setdefault(dtype, layers.Dense(4, "tanh", dtype=dtype))),
  "dropout": Kind(lambda dtype: layers.Dropout(0.4, seed=3, dtype=dtype)),
  "batch norm": Kind(norm(layers.BatchNormalization), (3, 3, 4)),
  "layer norm": Kind(norm(layers.LayerNormalization), (3, 3, 4)),
  "group norm": Kind(norm(layers.GroupNormalization, groups=2), (3, 3, 4)),
  "RMS norm": Kind(norm(layers.RMSNormalization), (3, 3, 4)),
  "no weights": Kind(lambda dtype: layers.Activation("tanh", dtype=dtype)),
  "frozen": Kind(frozen),
  "counter": Kind(lambda dtype: Counter(dtype=dtype)),
  "fused batch norm": Kind(lambda dtype: BatchNorm(dtype=dtype), (3, 3, 4), dtype="float32"),
  "preactivated convolution": Kind(
    lambda dtype: PreactivatedConv(1, 4, 3, dtype=dtype), (3, 3, 4), dtype="float32"
  ),
  "float16": Kind(lambda dtype: layers.Dense(4, "tanh", dtype=dtype), dtype="float16"),
  "mixed_float16": Kind(mixture, dtype="mixed_float16"),
  "mixed_bfloat16": Kind(norm(layers.BatchNormalization), (3, 3, 4), dtype="mixed_bfloat16"),
}
