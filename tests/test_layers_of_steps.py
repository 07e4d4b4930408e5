"""Layers within couplings and invertible layers get the same arguments, states and shapes in both runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import loops
from keras import layers

from resnet.reversible import (
  Additive,
  Affine,
  Invertible,
  Rebuild,
  ReversibleChain,
  Shortcut,
  SpaceToDepth,
  Store,
  Swap,
  replayed,
)


def dense(activation="tanh", **kwargs):
  return layers.Dense(4, activation, dtype="float64", **kwargs)


def streams():
  return [tf.constant(np.random.RandomState(k).normal(size=(6, 4))) for k in range(2)]


class Noisy(Invertible):
  """Multiplies by a random number."""

  def __init__(self):
    super().__init__(dtype="float64")
    self.generator = keras.random.SeedGenerator(3)

  def _factor(self):
    return tf.cast(keras.random.uniform((), 1, 2, seed=self.generator), tf.float64)

  def call(self, streams):
    factor = self._factor()
    return [factor * x for x in streams]

  def inverse(self, streams):
    factor = self._factor()
    return [y / factor for y in streams]


class Normalising(Invertible):
  """x1 plus x2, normalised."""

  def __init__(self):
    super().__init__(dtype="float64")

  def build(self, input_shape):
    self.norm = layers.BatchNormalization(dtype="float64")
    self.norm.build(input_shape[1])

  def call(self, streams):
    return [streams[0] + self.norm(streams[1]), streams[1]]

  def inverse(self, streams):
    return [streams[0] - self.norm(streams[1]), streams[1]]


class Rescaling(Normalising):
  """x1 plus x2 over its norm, which the first run would keep for the second."""

  def build(self, input_shape):
    self.w = self.add_weight(shape=(), initializer="ones", autocast=False)

  def norm(self, x):
    def first(x):
      scale = tf.stop_gradient(tf.norm(x))
      return x / scale, scale

    return self.w * replayed(self, first, lambda scale, x: (x / scale, lambda dy: dy / scale), x)[0]


def with_shortcuts(make_layer):
  shortcuts = [Shortcut(make_layer(), dtype="float64") for _ in "FG"]
  return [(dense(), dense()) for _ in range(2)], [*shortcuts, Additive(), Additive()]


CASES = {
  "batch norm in a shortcut": lambda: with_shortcuts(lambda: layers.BatchNormalization(dtype="float64")),
  "dropout in a shortcut": lambda: with_shortcuts(lambda: layers.Dropout(0.5, seed=1, dtype="float64")),
  "random numbers in an invertible layer": lambda: ([(dense(), dense()), Noisy(), (dense(), dense())], None),
  "batch norm in an invertible layer": lambda: ([(dense(), dense()), Normalising(), (dense(), dense())], None),
  "`replayed` in an invertible layer": lambda: ([(dense(), dense()), Rescaling(), (dense(), dense())], None),
}


@pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "graph"])
@pytest.mark.parametrize("backward", [Rebuild(), Rebuild("auto"), Rebuild(loop=True)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_outputs_gradients_and_updates_are_those_of_plain_keras(case, backward, run):
  found = []
  for way in (Store(), backward):
    keras.utils.set_random_seed(1)
    units, coupling = CASES[case]()
    chain = ReversibleChain(units, coupling, way, dtype="float64")
    chain.build([(6, 4), (6, 4)])
    given = streams()

    def gradients(chain=chain, given=given):
      with tf.GradientTape() as tape:
        tape.watch(given)
        outputs = chain(given, training=True)
        loss = sum(tf.reduce_sum(tf.sin(y)) for y in outputs)
      return [*outputs, *tape.gradient(loss, [*given, *chain.trainable_variables])]

    found.append([*run(gradients)(), *map(tf.convert_to_tensor, chain.non_trainable_variables)])
  for ours, plain in zip(*reversed(found), strict=True):
    np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-9)


def test_methods_hand_on_training_as_a_call_does():
  keras.utils.set_random_seed(1)
  units, coupling = CASES["batch norm in a shortcut"]()
  chain, given = ReversibleChain(units, coupling, dtype="float64"), streams()
  (after,) = chain.intermediates(given, [1], training=True)
  np.testing.assert_array_equal(after, chain(given, training=True))
  assert np.abs(np.subtract(after, chain(given))).max() > 0.1


class Turned(Invertible):
  """x1 plus x2 W. `call` and `inverse` read W of a layer within."""

  def build(self, input_shape):
    self.dense = dense(use_bias=False)
    self.dense.build(input_shape[1])

  def call(self, streams):
    return [streams[0] + streams[1] @ tf.cast(self.dense.kernel, streams[1].dtype), streams[1]]

  def inverse(self, streams):
    return [streams[0] - streams[1] @ tf.cast(self.dense.kernel, streams[1].dtype), streams[1]]


class Within(layers.Layer):
  """What a function gives in the call of a layer of mixed precision."""

  def __init__(self, function):
    super().__init__(dtype="mixed_bfloat16")
    self.function = function

  def call(self, _):
    return self.function()


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16"])
def test_methods_read_weights_as_a_call_does_in_a_layer_of_mixed_precision(dtype):
  keras.utils.set_random_seed(1)
  units = [(dense(), dense()), Turned(dtype=dtype), (dense(), dense())]
  chain, given, found = ReversibleChain(units, dtype="float64"), streams(), []
  chain.build([(6, 4), (6, 4)])
  for chain.backward in (Store(), Rebuild()):
    with tf.GradientTape() as tape:
      tape.watch(given)
      ((y1, y2),) = Within(lambda: chain.intermediates(given, [2]))(tf.constant(0))
      loss = tf.reduce_sum(tf.sin(y1)) + tf.reduce_sum(y2**2)
    found.append([y1, y2, *tape.gradient(loss, [*given, *chain.trainable_variables])])
  for ours, plain in zip(*reversed(found), strict=True):
    np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-9)
  assert Within(lambda: chain.reconstruction_error(given))(tf.constant(0)) < 1e-12
  assert Within(lambda: chain.plan(given))(tf.constant(0)) == chain.plan(given)


@keras.saving.register_keras_serializable("tests")
class Shuffled(layers.Layer):
  """The features in an order that its configuration chooses."""

  def __init__(self, seed, **kwargs):
    super().__init__(**kwargs)
    self.seed = seed

  def call(self, x):
    return tf.gather(x, np.random.RandomState(self.seed).permutation(4), axis=-1)

  def get_config(self):
    return {**super().get_config(), "seed": self.seed}


@pytest.mark.parametrize(
  ("make", "alike"),
  [
    (lambda k: dense(("tanh", "sigmoid", "softsign")[k], name=("tanh", "sigmoid", "softsign")[k]), False),
    (lambda k: Shuffled(k, dtype="float64"), False),
    (lambda k: layers.Dropout(0.5, seed=k, dtype="float64"), True),
    (lambda k: dense(kernel_initializer=keras.initializers.GlorotUniform(seed=k), name=f"number_{k}"), True),
  ],
  ids=["activations that layers are named by", "a layer's own seed", "Keras' dropout", "Keras' initializers"],
)
def test_loops_are_of_layers_that_compute_the_same(make, alike):
  chain = ReversibleChain([(make(k), make(k)) for k in range(3)], backward=Rebuild(loop=True), dtype="float64")
  given = streams()
  looped = chain(given)
  chain.backward = Store()
  np.testing.assert_allclose(looped, chain(given), rtol=1e-12)
  chain.backward = Rebuild(loop=True)
  assert (loops(chain, given) > 0) == alike


@pytest.mark.parametrize("keep", ["auto", "all", 1e6])
def test_sizes_that_are_not_known_when_a_call_is_traced(keep):
  def convolution(filters):
    return layers.Conv2D(filters, 3, padding="same")

  units = [(convolution(4), convolution(4)), SpaceToDepth(), (convolution(16), convolution(16))]
  chain = ReversibleChain(units, backward=Rebuild(keep))
  chain.build([(None, 8, 8, 4)] * 2)
  call = tf.function(lambda x: chain((x, x)), input_signature=[tf.TensorSpec([None, None, None, 4])])
  images = tf.random.stateless_normal([2, 8, 8, 4], [0, 0])
  expected = chain((images, images))
  np.testing.assert_allclose(call(images), expected, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="a plan needs streams of known sizes"):
    chain.plan([tf.TensorSpec([2, None, None, 4])] * 2)


def test_invertible_layers_that_change_shapes_or_streams_are_in_no_loop():
  units = [SpaceToDepth(), SpaceToDepth(), (layers.Dense(64), layers.Dense(64)), Swap(), Swap()]
  chain = ReversibleChain(units, backward=Rebuild(loop=True))
  images = tf.ones([2, 8, 8, 4])
  assert tf.function(lambda x: chain((x, x)))(images)[0].shape == (2, 2, 2, 64)


class Halving(Invertible):
  def call(self, streams):
    return [2 * x for x in streams]

  def inverse(self, streams):
    return [y[:, :1] / 2 for y in streams]


class Three(Invertible):
  def call(self, streams):
    return [*streams, streams[0]]


def test_a_wrong_inverse_is_refused_where_the_shape_of_gradients_is_not_known():
  chain, given = ReversibleChain([(layers.Dense(4), layers.Dense(4)), Halving()]), tf.ones([3, 4])

  @tf.custom_gradient
  def unknown(x):
    return x, lambda d: tf.compat.v1.placeholder_with_default(d, None)

  @tf.function(autograph=False)
  def gradient():
    with tf.GradientTape() as tape:
      tape.watch(given)
      loss = tf.add_n([tf.reduce_sum(unknown(y)) for y in chain((given, given))])
    return tape.gradient(loss, given)

  with pytest.raises(ValueError, match="what its inverse gives becomes"):
    gradient()


def test_invertible_layers_that_give_what_no_streams_are_are_refused():
  chain, given = ReversibleChain([(layers.Dense(4), layers.Dense(4)), Halving()]), tf.ones([3, 4])
  with tf.GradientTape() as tape:
    tape.watch(given)
    outputs = chain((given, given))
  with pytest.raises(ValueError, match=r"unit 1 .*: what its inverse gives becomes \(3, 1\), not \(3, 4\)"):
    tape.gradient(outputs, given)
  with pytest.raises(ValueError, match="its call must give two streams"):
    ReversibleChain([Three()])((given, given))


@pytest.mark.parametrize("units", [[4], [-1], [0.5], [1, 0], [1, 1]])
def test_units_whose_streams_are_asked_for_must_be_there(units):
  chain = ReversibleChain([(layers.Dense(4), layers.Dense(4)) for _ in range(3)])
  with pytest.raises(ValueError, match="units must be increasing numbers from 0 to 2"):
    chain.intermediates([tf.ones([3, 4])] * 2, units)


def test_a_chain_that_rebuilds_nothing_has_no_error():
  shortcuts = [Shortcut(layers.Dense(4)) for _ in "FG"]
  chain = ReversibleChain([(layers.Dense(4), layers.Dense(4))], coupling=shortcuts)
  assert chain.reconstruction_error([tf.ones([3, 4])] * 2) == 0


@pytest.mark.parametrize("backward", [Store(), Rebuild()], ids=str)
def test_couplings_compute_as_precisely_as_streams_are(backward):
  functions = [layers.Dense(8, dtype="mixed_bfloat16") for _ in "FG"]
  chain = ReversibleChain([functions], Affine(bound=1.5), backward, log_det=True)
  x1, x2 = (tf.cast(x, tf.float32) for x in streams())
  y1, _, log_det = chain((x1, x2))
  s1, s2 = (tf.cast(f(x)[:, :4], tf.float32) for f, x in zip(functions, (x2, y1), strict=True))
  expected = tf.reduce_sum(1.5 * tf.tanh(s1 / 1.5) + 1.5 * tf.tanh(s2 / 1.5), axis=1)
  np.testing.assert_allclose(log_det, expected, rtol=1e-6, atol=1e-6)
