"""A layer run again in the backward pass: gradients and updates of one that stores."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import Counted
from helpers import assert_close, relative_difference, values

from resnet.reversible import Recompute, ReversibleChain, keep_output, ordinary_backprop, recompute


def test_recompute_agrees_with_ordinary_backprop_and_keeps_one_update():
  layer = Counted(4)
  keras.utils.set_random_seed(5)
  layer.build((None, 3))
  x = tf.constant(np.random.RandomState(6).normal(size=(6, 3)), tf.float32)
  state = values(layer.non_trainable_variables)
  results = []
  for run in (lambda x: recompute(layer, x, training=True), lambda x: layer(x, training=True)):
    for variable, value in zip(layer.non_trainable_variables, state, strict=True):
      variable.assign(value)
    with tf.GradientTape() as tape:
      tape.watch(x)
      loss = tf.reduce_sum(run(x) ** 3)
    gradients = tape.gradient(loss, [x, *layer.trainable_variables])
    results.append(([loss], gradients, values(layer.non_trainable_variables)))
  for actual, expected in zip(*results, strict=True):
    assert_close(actual, expected, 1e-6)


@keras.saving.register_keras_serializable("tests")
class Counting(keras.layers.Layer):
  """Dense and dropout; counts its runs, as batch norm moves its statistics."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.dense = keras.layers.Dense(4)
    self.dropout = keras.layers.Dropout(0.5, seed=1)

  def build(self, input_shape):
    self.dense.build(input_shape)
    self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

  def call(self, x, training=False):
    self.count.assign(self.count + 1)
    return self.dropout(self.dense(x), training=training)


def step(layer, call, x):
  """(gradients of a step by `call`, whether they are those of ordinary backpropagation, runs counted)."""
  start = values(layer.non_trainable_variables)
  found = []
  for run in (layer, call):
    for variable, value in zip(layer.non_trainable_variables, start, strict=True):
      variable.assign(value)
    with tf.GradientTape() as tape:
      tape.watch(x)
      loss = tf.reduce_sum(run(x, training=True) ** 3)
    found.append(tape.gradient(loss, [x, layer.dense.kernel.value]))
  ordinary, actual = found
  same = max(relative_difference(a, o) for a, o in zip(actual, ordinary, strict=True)) < 1e-5
  return same, float(layer.count) - float(start[0])


def test_a_recomputed_layer_is_right_where_keras_remat_is_not():
  layer = Counting()
  layer.build((None, 3))
  x = tf.constant(np.random.RandomState(6).normal(size=(6, 3)), tf.float32)
  # The second run of keras.remat drops other units, and moves the statistics again.
  assert step(layer, lambda x, training: keras.remat(lambda x: layer(x, training=training))(x), x) == (False, 2)
  assert step(layer, Recompute(layer), x) == (True, 1)


def test_a_recomputed_layer_is_a_layer_where_keras_remat_is_not(tmp_path):
  inputs = keras.Input([3])
  outputs = Recompute(Counting())(inputs)
  assert outputs.shape == (None, 4)
  model = keras.Model(inputs, outputs)
  model.compile("sgd", "mse")
  x = np.random.RandomState(8).normal(size=(32, 3)).astype("float32")
  losses = model.fit(x, x[:, :1], epochs=5, verbose=0).history["loss"]
  assert losses[-1] < losses[0]
  assert model.layers[-1].layer.count == 5
  model.save(tmp_path / "model.keras")
  copy = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(copy(x), model(x))
  with pytest.raises(Exception, match="KerasTensor"):
    keras.remat(lambda x: tf.sin(x))(inputs)


def test_a_recomputed_layer_takes_structures():
  layer = Recompute(keras.layers.Concatenate(dtype="float64"))
  x, y = tf.ones([2, 3], tf.float64), tf.ones([2, 1], tf.float64)
  with tf.GradientTape() as tape:
    tape.watch((x, y))
    z = layer([x, y])
  assert_close(
    tape.gradient(z, (x, y), tf.reshape(tf.range(8.0), [2, 4])), [[[0, 1, 2], [4, 5, 6]], [[3], [7]]], 0
  )


def test_weights_are_read_as_they_are_in_mixed_precision():
  keras.config.set_dtype_policy("mixed_bfloat16")
  try:
    layer = Recompute(keras.layers.Dense(4, dtype="float32"))
  finally:
    keras.config.set_dtype_policy("float32")
  x = tf.random.stateless_normal([5, 3], [1, 2])
  np.testing.assert_array_equal(layer(x), layer.layer(x))


class Bare(keras.layers.Layer):
  """tanh(x W) in float32. Keras rounds W to bfloat16, but not in a call of another layer of mixed precision."""

  def __init__(self):
    super().__init__(autocast=False, dtype="mixed_bfloat16")

  def build(self, input_shape):
    self.w = self.add_weight(shape=(4, 4))

  def call(self, x):
    return tf.tanh(tf.cast(x, tf.float32) @ tf.cast(self.w, tf.float32))


class Keeping(keras.layers.Layer):
  """Keeps the output of a layer."""

  def __init__(self, inner):
    super().__init__(dtype="mixed_bfloat16")
    self.inner = inner

  def call(self, x, training=False):
    return keep_output(self.inner, x, training)


class Around(keras.layers.Layer):
  """Calls a layer as `way` says, itself being of mixed precision."""

  def __init__(self, inner, way):
    super().__init__(dtype="mixed_bfloat16")
    inner.build([None, 4])
    self.inner, self.way = inner, way
    if way == "chain":
      self.inner = ReversibleChain([(inner, inner)])
    elif way != "recompute":
      self.inner = Recompute(Keeping(inner) if way == "keep_output" else inner, ["statistics", "activations"])

  def call(self, x):
    if self.way == "recompute":
      return recompute(self.inner, x)
    return tf.add_n(self.inner([x, x])) if self.way == "chain" else self.inner(x)


@pytest.mark.parametrize("way", ["recompute", "Recompute", "keep_output", "chain"])
@pytest.mark.parametrize(
  "make",
  [
    lambda: keras.layers.Dense(4, "tanh", dtype="float32"),
    lambda: keras.layers.Dense(4, "tanh", dtype="float64"),
    Bare,
  ],
  ids=["float32", "float64", "without autocast"],
)
@pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_weights_are_as_precise_as_without_the_engine_in_a_layer_of_mixed_precision(make, way, run):
  keras.utils.set_random_seed(1)
  layer, x = Around(make(), way), tf.random.stateless_normal([5, 4], [1, 2])

  def gradients():
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = layer(x)
    return [y, *tape.gradient(y, [x, *layer.trainable_variables], tf.cast(x, y.dtype))]

  with ordinary_backprop():
    expected = gradients()
  assert_close(run(gradients)(), expected, 1e-6)


class Rows(keras.layers.Layer):
  """w x as rows of lengths 2 and 3, and these lengths."""

  def build(self, input_shape):
    self.w = self.add_weight(shape=(), initializer="ones")

  def call(self, x):
    return {"rows": tf.RaggedTensor.from_row_lengths(self.w * x, [2, 3]), "lengths": tf.constant([2, 3])}


def test_outputs_may_be_rows_of_several_lengths():
  layer, x = Rows(), tf.range(5.0)
  layer.build([5])
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = recompute(layer, x)
    loss = tf.reduce_sum(y["rows"].flat_values ** 2)
  np.testing.assert_array_equal(y["rows"].row_lengths(), y["lengths"])
  assert_close(tape.gradient(loss, [x, *layer.trainable_variables]), [2 * x, tf.reduce_sum(2 * x**2)], 1e-6)
