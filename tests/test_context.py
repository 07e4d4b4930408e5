"""What a chain hands on to its functions beside the streams: arguments of the call, and Keras' masks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close

from resnet.reversible import Rebuild, Recompute, ReversibleChain, Store, recompute

eager_and_graph = pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "graph"])
both_forms = pytest.mark.parametrize("loop", [False, True])


@keras.saving.register_keras_serializable("tests")
class Conditioned(keras.layers.Layer):
  """tanh(x W + time V), times `scales` of them where given; `order` is a structure of tensors, or None."""

  def build(self, input_shape):
    self.w = self.add_weight(shape=(4, 4), initializer="glorot_uniform")
    self.v = self.add_weight(shape=(3, 4), initializer="glorot_uniform")

  def call(self, x, time, scales=None):
    y = tf.tanh(x @ self.w + time @ self.v)
    return y if scales is None else y * scales["a"] + scales["b"][0]

  def compute_output_shape(self, input_shape):
    return input_shape


def make_chain(loop, units=3):
  keras.utils.set_random_seed(1)
  pairs = [(Conditioned(dtype="float64"), keras.layers.Dense(4, "tanh", dtype="float64")) for _ in range(units)]
  chain = ReversibleChain(pairs, backward=Rebuild(loop=loop), dtype="float64")
  chain.build([(None, 4), (None, 4)])
  return chain


def random(*shape, seed=0):
  return tf.constant(np.random.RandomState(seed).normal(size=shape))


@both_forms
@eager_and_graph
def test_gradients_of_arguments_are_summed_over_the_units(loop, run):
  chain = make_chain(loop)
  x = random(5, 4, seed=1), random(5, 4, seed=2)
  time, scales = random(5, 3, seed=3), {"a": random(5, 1, seed=4), "b": [random(4, seed=5), tf.range(3)]}
  found = []
  for chain.backward in (Rebuild(loop=loop), Store()):

    @run
    def gradients(x, time, scales):
      with tf.GradientTape() as tape:
        floats = [time, scales["a"], scales["b"][0]]
        tape.watch((x, floats))
        y1, y2 = chain(x, time=time, scales=scales)
        loss = tf.reduce_sum(tf.sin(y1)) + tf.reduce_sum(y2**3)
      return tape.gradient(loss, [*x, *floats, *chain.trainable_variables])

    found.append(gradients(x, time, scales))
  assert all(np.any(gradient != 0) for gradient in found[0])
  assert_close(*found, 1e-12)
  y = chain(x, time=time, scales=scales)
  assert_close(chain.inverse(y, time=time, scales=scales), x, 1e-12)
  assert chain.reconstruction_error(x, time=time, scales=None) < 1e-14


def test_arguments_in_a_functional_model_survive_saving(tmp_path):
  inputs, time = keras.Input([8]), keras.Input([3])
  streams = tuple(keras.ops.split(inputs, 2, axis=-1))
  pairs = [(Conditioned(), keras.layers.Dense(4)) for _ in range(2)]
  outputs = ReversibleChain(pairs)(streams, time=time)
  outputs = Recompute(Conditioned())(outputs[0], time=time)
  model = keras.Model([inputs, time], outputs)
  data = [np.random.RandomState(k).normal(size=(16, n)).astype("float32") for k, n in enumerate((8, 3))]
  model.compile(keras.optimizers.Adam(0.03), "mse")
  losses = model.fit(data, 0.3 * data[0][:, :4], epochs=8, verbose=0).history["loss"]
  assert losses[-1] < 0.8 * losses[0]
  model.save(tmp_path / "model.keras")
  copy = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(copy(data), model(data))
  assert np.any(copy([data[0], data[1] + 1]) != copy(data))


@eager_and_graph
def test_recompute_hands_arguments_on(run):
  layer = Conditioned(dtype="float64")
  layer.build((None, 4))
  x, time = random(5, 4), random(5, 3)

  def gradients(call):
    with tf.GradientTape() as tape:
      tape.watch((x, time))
      y = call(x, time=time, scales=None)
    return tape.gradient(y, [x, time, *layer.trainable_variables])

  assert_close(run(lambda: gradients(lambda *a, **k: recompute(layer, *a, **k)))(), gradients(layer), 1e-12)
  assert_close(run(lambda: gradients(Recompute(layer)))(), gradients(layer), 1e-12)
  with pytest.raises(ValueError, match="with 'times', which no layer in it takes; they take 'scales', 'time'"):
    recompute(layer, x, times=time)


class Masked(keras.layers.Layer):
  """The mean of x over the steps that its mask leaves, at each step; remembers whether there was a mask."""

  supports_masking = True
  masks = None

  def call(self, x, mask=None):
    self.masks = [*(self.masks or []), mask]
    weight = tf.ones_like(x[..., :1]) if mask is None else tf.cast(mask, x.dtype)[..., None]
    mean = tf.reduce_sum(x * weight, 1, keepdims=True) / tf.reduce_sum(weight, 1, keepdims=True)
    return tf.sin(mean + x)

  def compute_output_shape(self, input_shape):
    return input_shape


@both_forms
@eager_and_graph
def test_functions_get_the_mask_of_the_stream_that_they_take(loop, run):
  chain = ReversibleChain(
    [[Masked(dtype="float64") for _ in "FG"] for _ in "12"], backward=Rebuild(loop=loop), dtype="float64"
  )
  x = random(2, 3, 4, seed=1), random(2, 3, 4, seed=2)
  masks = tf.constant([[True, True, False]] * 2), tf.constant([[True, False, False]] * 2)

  def by_hand(y1, y2):
    mask1, mask2 = masks
    for k in (0, 2):
      y1 = y1 + chain.functions[k](y2, mask=mask2)
      mask1 = None if mask1 is None or mask2 is None else mask1 | mask2  # As of `keras.layers.Add`.
      y2 = y2 + chain.functions[k + 1](y1, mask=mask1)
      mask2 = None if mask1 is None or mask2 is None else mask1 | mask2
    return y1, y2

  def gradients(call):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = call(*x)
      loss = tf.reduce_sum(y[0] ** 2) + tf.reduce_sum(y[1])
    return [*y, *tape.gradient(loss, x)]

  assert_close(run(lambda: gradients(lambda *x: chain(x, mask=masks)))(), gradients(by_hand), 1e-12)
  rebuilt = chain.inverse(chain(x, mask=masks), mask=masks)
  assert_close(rebuilt, x, 1e-12)
  masks = masks[0], None
  if loop:  # Behind the first unit no stream carries a mask.
    with pytest.raises(ValueError, match="the streams carry none and none, before it a mask and none"):
      run(lambda *x: chain(x, mask=masks))(*x)
    return
  assert_close(run(lambda: gradients(lambda *x: chain(x, mask=masks)))(), gradients(by_hand), 1e-12)


def test_keras_masks_pass_through_chains_and_recomputed_layers():
  tokens = keras.Input([3], dtype="int32")
  streams = [keras.layers.Embedding(9, 4, mask_zero=True)(tokens) for _ in range(2)]
  function, last = Masked(), Masked()
  y1, y2 = ReversibleChain([(function, function)])(streams)
  outputs = last(Recompute(function)(keras.layers.Add()([y1, y2])))
  model = keras.Model(tokens, outputs)
  batch = np.array([[5, 3, 0], [2, 0, 0]])
  for layer in (function, last):
    layer.masks = []
  actual = model(batch)
  for masks in (function.masks, last.masks):
    assert masks
    for mask in masks:
      np.testing.assert_array_equal(mask, batch != 0)
  x1, x2 = (layer(batch) for layer in model.layers if isinstance(layer, keras.layers.Embedding))
  mask = tf.constant(batch != 0)
  y1 = x1 + function(x2, mask=mask)
  y2 = x2 + function(y1, mask=mask)
  np.testing.assert_allclose(actual, last(function(y1 + y2, mask=mask), mask=mask), rtol=1e-6)


@both_forms
def test_attention_gets_its_mask_and_its_flags(loop):
  def attention():
    return SelfAttention(dtype="float64")

  chain = ReversibleChain(
    [(attention(), keras.layers.Dense(4, dtype="float64")) for _ in range(2)], backward=Rebuild(loop=loop)
  )
  x = random(2, 3, 4, seed=1), random(2, 3, 4, seed=2)
  free, causal = chain(x), chain(x, use_causal_mask=True)
  triangle = tf.linalg.band_part(tf.ones([2, 3, 3], tf.bool), -1, 0)
  assert np.any(np.abs(free[0] - causal[0]) > 1e-3)
  assert_close(chain(x, attention_mask=triangle), causal, 1e-12)


@keras.saving.register_keras_serializable("tests")
class SelfAttention(keras.layers.Layer):
  """Attention of x to itself."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.attention = keras.layers.MultiHeadAttention(2, 3, dtype=self.dtype_policy)

  def build(self, input_shape):
    self.attention.build(input_shape, input_shape)

  def call(self, x, attention_mask=None, use_causal_mask=False):
    return self.attention(x, x, attention_mask=attention_mask, use_causal_mask=use_causal_mask)
