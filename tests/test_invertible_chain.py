"""Chains with invertible layers between their units, beside the same written by hand in TensorFlow alone."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import RUNS, keeping
from helpers import assert_close, values

from resnet.reversible import (
  ActNorm,
  Affine,
  InvertibleDense,
  Permute,
  Rebuild,
  ReversibleChain,
  Scaled,
  SpaceToDepth,
  Store,
  Swap,
)

BACKWARD = {
  "Store": Store(),
  "least": Rebuild(),
  "auto": Rebuild("auto"),
  "bytes": Rebuild(60_000),
  "all": Rebuild("all"),
  "loop": Rebuild(loop=True),
}
ORDER = [7, 2, 13, 5, 11, 0, 4, 6, 12, 3, 15, 1, 10, 9, 14, 8]


def convolution(filters, dtype="float64"):
  return keras.layers.Conv2D(filters, 3, padding="same", activation="tanh", dtype=dtype)


def make_chain(backward):
  """Streams [N, 4, 4, 2], then [N, 2, 2, 8]; two units in a row, which can be a loop."""
  keras.utils.set_random_seed(0)
  units = [
    ActNorm(dtype="float64"),
    (convolution(4), convolution(4)),
    InvertibleDense(dtype="float64"),
    Permute([3, 1, 0, 2], dtype="float64"),
    (convolution(4), convolution(4)),
    (convolution(4), convolution(4)),
    Swap(dtype="float64"),
    SpaceToDepth(dtype="float64"),
    (convolution(16), convolution(16)),
  ]
  chain = ReversibleChain(units, coupling=Affine(bound=1.0), backward=backward, log_det=True, dtype="float64")
  chain.build([(None, 4, 4, 2)] * 2)
  random = np.random.RandomState(1)
  for variable in chain.variables:
    variable.assign(variable + random.normal(scale=0.2, size=variable.shape))
  return chain, [tf.constant(random.normal(size=(3, 4, 4, 2))) for _ in "12"]


def by_hand(chain, streams):
  """(y1, y2, log_det), by the equations of the layers, on the chain's variables."""
  x1, x2 = streams
  log_det = tf.zeros([3], tf.float64)
  norm, dense = chain.units[0], chain.units[2]

  def unit(number, x1, x2, log_det):
    f, g = chain.units[number]
    s, t = tf.split(f(x2), 2, axis=-1)
    x1, log_det = x1 * tf.exp(tf.tanh(s)) + t, log_det + tf.reduce_sum(tf.tanh(s), [1, 2, 3])
    s, t = tf.split(g(x1), 2, axis=-1)
    return x1, x2 * tf.exp(tf.tanh(s)) + t, log_det + tf.reduce_sum(tf.tanh(s), [1, 2, 3])

  x = tf.concat([x1, x2], -1)
  x = (x + norm.bias) * tf.exp(norm.log_scale)
  log_det += 4 * 4 * tf.reduce_sum(norm.log_scale)
  x1, x2, log_det = unit(1, x[..., :2], x[..., 2:], log_det)
  x = tf.einsum("nhwc,cd->nhwd", tf.concat([x1, x2], -1), tf.convert_to_tensor(dense.kernel))
  log_det += 4 * 4 * tf.math.log(tf.abs(determinant(tf.convert_to_tensor(dense.kernel))))
  x1, x2 = tf.stack([x[..., 3], x[..., 1]], -1), tf.stack([x[..., 0], x[..., 2]], -1)
  x1, x2, log_det = unit(5, *unit(4, x1, x2, log_det))
  x1, x2 = (
    tf.concat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=-1) for x in (x2, x1)
  )  # Each of the four pixels of a block is a part of the channels.
  return unit(8, x1, x2, log_det)


def determinant(w):
  """Of a 4 x 4 matrix, by Leibniz' formula."""
  orders = np.array(np.meshgrid(*[range(4)] * 4)).reshape(4, -1).T
  orders = [order for order in orders if len(set(order)) == 4]
  signs = [np.linalg.det(np.eye(4)[order]) for order in orders]
  return tf.add_n(
    [sign * tf.reduce_prod([w[k, n] for k, n in enumerate(order)]) for sign, order in zip(signs, orders)]
  )


def outputs_and_gradients(call, chain, streams):
  with tf.GradientTape() as tape:
    tape.watch(streams)
    y1, y2, log_det = call(streams)
    loss = tf.reduce_sum(tf.sin(y1)) + tf.reduce_sum(y2**3) + tf.reduce_sum(log_det**2)
  return [y1, y2, log_det], tape.gradient(loss, [*streams, *chain.trainable_variables])


@pytest.mark.parametrize(
  ("backward", "run"),
  [
    *zip(BACKWARD, itertools.cycle(["eager", "graph"])),
    *zip(("least", "auto", "loop"), ("XLA", "XLA", "eager"), strict=True),
  ],
)
def test_outputs_gradients_and_determinants_are_those_by_hand(backward, run):
  chain, streams = make_chain(BACKWARD[backward])
  ours = RUNS[run](lambda *x: outputs_and_gradients(chain, chain, list(x)))(*streams)
  right = outputs_and_gradients(lambda x: by_hand(chain, x), chain, streams)
  assert len(right[1]) == 2 + len(chain.variables) == 2 + 2 + 1 + 4 * 4
  for one, other in zip(ours, right, strict=True):
    assert_close(one, other, 1e-10)
  *outputs, log_det = ours[0]
  assert np.all(log_det != 0)
  assert outputs[0].shape == (3, 2, 2, 8)


@pytest.mark.parametrize("kept", [{"streams": 9}, {"streams": 4, "everything": 2}, {"everything": 5}], ids=str)
@pytest.mark.parametrize("run", ["eager", "graph"])
def test_layers_that_keep_their_streams_or_everything(run, kept):
  chain, streams = make_chain(Rebuild())
  keeping(chain, **kept)
  ours = RUNS[run](lambda *x: outputs_and_gradients(chain, chain, list(x)))(*streams)
  right = outputs_and_gradients(lambda x: by_hand(chain, x), chain, streams)
  for one, other in zip(ours, right, strict=True):
    assert_close(one, other, 1e-10)


@pytest.mark.parametrize("backward", BACKWARD)
def test_the_inverse_gives_the_inputs_back(backward):
  chain, streams = make_chain(BACKWARD[backward])
  y1, y2, _ = chain(streams)
  assert_close(chain.inverse((y1, y2)), streams, 1e-12)
  assert 0 < chain.reconstruction_error(streams) < 1e-12


def test_two_units_in_a_row_are_a_loop_and_the_layers_between_are_not():
  chain, streams = make_chain(Rebuild(loop=True))
  graph = tf.function(lambda *x: chain(list(x))).get_concrete_function(*streams).graph
  assert sum(op.type in ("While", "StatelessWhile") for op in graph.get_operations()) == 1


def make_exact_chain(backward=None):
  keras.utils.set_random_seed(0)
  f = lambda filters: keras.layers.Conv2D(filters, 3, padding="same", activation="tanh")  # noqa: E731
  units = [(f(2), f(2)), SpaceToDepth(), (f(8), f(8)), Permute([*range(15, -1, -1)]), Swap(), (f(8), f(8))]
  couplings = [Scaled(-1.0), Scaled(1.0)] * 3
  chain = ReversibleChain(units, coupling=couplings, backward=backward, grid_bits=14)
  chain.build([(None, 4, 4, 2)] * 2)
  return chain, [tf.random.stateless_normal([3, 4, 4, 2], [seed, 0]) for seed in (1, 2)]


@pytest.mark.parametrize("backward", ["least", "auto", "all", "loop"])
def test_layers_that_move_numbers_are_exact_on_a_grid(backward):
  chain, streams = make_exact_chain(BACKWARD[backward])
  on_grid = [np.round(x * 2**14) / 2**14 for x in streams]
  outputs = chain(streams)
  for rebuilt, x in zip(chain.inverse(outputs), on_grid, strict=True):
    np.testing.assert_array_equal(rebuilt, x)
  for y in outputs:
    np.testing.assert_array_equal(y * 2**14, np.round(y * 2**14))
  assert chain.reconstruction_error(streams) == 0
  found = []
  for way in (chain.backward, Store()):
    chain.backward = way

    @tf.function
    def gradients(x1, x2):
      with tf.GradientTape() as tape:
        tape.watch((x1, x2))
        y1, y2 = chain((x1, x2))
        loss = tf.reduce_sum(y1**2) + tf.reduce_sum(tf.sin(y2))
      return tape.gradient(loss, [x1, x2, *chain.trainable_variables])

    found.append(gradients(*streams))
  for one, other in zip(*found, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layer", [InvertibleDense, ActNorm])
def test_layers_that_change_numbers_have_no_place_on_a_grid(layer):
  with pytest.raises(ValueError, match=f"grid_bits needs .* layers that .* got {layer.__name__}"):
    ReversibleChain([Swap(), layer()], grid_bits=14)


class Pool(keras.layers.Layer):
  """The mean of x over the steps that its mask leaves, at each step; tells the masks that it got."""

  supports_masking = True

  def __init__(self):
    super().__init__(dtype="float64")
    self.masks = []

  def call(self, x, mask=None):
    self.masks.append(mask)
    weight = tf.ones_like(x[..., :1]) if mask is None else tf.cast(mask, x.dtype)[..., None]
    return tf.sin(x + tf.reduce_sum(x * weight, 1, keepdims=True) / tf.reduce_sum(weight, 1, keepdims=True))


@pytest.mark.parametrize("run", ["eager", "graph"])
@pytest.mark.parametrize("backward", ["Store", "least", "auto", "all", "loop"])
def test_masks_go_with_their_streams(backward, run):
  pools = [Pool() for _ in range(4)]
  units = [
    Swap(),
    tuple(pools[:2]),
    InvertibleDense(dtype="float64"),
    ActNorm(dtype="float64"),
    Permute(range(8)),
    Swap(),
    tuple(pools[2:]),
  ]
  chain = ReversibleChain(units, backward=BACKWARD[backward], dtype="float64")
  x = [tf.constant(np.random.RandomState(seed).normal(size=(2, 3, 4))) for seed in (1, 2)]
  m1, m2 = (tf.constant([[True, True, False]] * 2), tf.constant([[True, False, False]] * 2))
  chain.build([(None, 3, 4)] * 2)

  def call_by_hand(x1, x2):
    x1, x2 = x2, x1
    x1 = x1 + pools[0](x2, mask=m1)
    both = m1 | m2  # As of `keras.layers.Add`.
    x2 = x2 + pools[1](x1, mask=both)
    x2, x1 = tf.split(tf.concat([x1, x2], -1) @ tf.convert_to_tensor(chain.units[2].kernel), 2, axis=-1)
    x1 = x1 + pools[2](x2, mask=both)
    return x1, x2 + pools[3](x1, mask=both)

  def gradients(call, x1, x2):
    with tf.GradientTape() as tape:
      tape.watch((x1, x2))
      y1, y2 = call(x1, x2)
      loss = tf.reduce_sum(y1**2) + tf.reduce_sum(tf.sin(y2))
    return [y1, y2, *tape.gradient(loss, [x1, x2, chain.units[2].kernel.value])]

  ours = RUNS[run](lambda *x: gradients(lambda *x: chain(x, mask=(m1, m2)), *x))(*x)
  assert_close(ours, gradients(call_by_hand, *x), 1e-12)
  assert_close(chain.inverse(ours[:2], mask=(m1, m2)), x, 1e-12)
  assert all(mask is not None for pool in pools for mask in pool.masks[-1:])
  # One mask alone: Swap moves it to the other stream; a sum with a stream that has none has none.
  for pool in pools:
    pool.masks.clear()
  chain(x, mask=(m1, None))
  assert [pool.masks[-1] is None for pool in pools] == [False, True, True, True]


@pytest.mark.parametrize("backward", ["Store", "least", "auto", "all", "loop"])
def test_a_layer_that_hands_no_masks_on(backward):
  pool = Pool()
  chain = ReversibleChain([SpaceToDepth(), (pool, Pool())], backward=BACKWARD[backward], dtype="float64")
  x = tf.constant(np.random.RandomState(1).normal(size=(2, 4, 4, 3)))
  chain((x, x), mask=[tf.ones([2, 4, 4], bool)] * 2)
  assert pool.masks[-1] is None


def test_a_functional_model_with_such_a_chain_is_saved_and_trains(tmp_path):
  keras.utils.set_random_seed(0)
  f = lambda filters: keras.layers.Conv2D(filters, 3, padding="same")  # noqa: E731
  units = [ActNorm(), InvertibleDense(), (f(2), f(2)), Swap(), SpaceToDepth(), Permute(ORDER), (f(8), f(8))]
  inputs = keras.Input([4, 4, 4])
  chain = ReversibleChain(units, backward=Rebuild("auto"))
  outputs = keras.ops.concatenate(chain(keras.ops.split(inputs, 2, axis=-1)), axis=-1)
  assert outputs.shape == (None, 2, 2, 16)
  model = keras.Model(inputs, outputs)
  random = np.random.RandomState(3)
  x, y = random.normal(size=(8, 4, 4, 4)), random.normal(size=(8, 2, 2, 16))
  model.compile("sgd", "mse")
  before = values(model.trainable_variables)
  losses = model.fit(x, y, epochs=5, verbose=0).history["loss"]
  assert losses[-1] < losses[0]
  assert all(np.any(a != b) for a, b in zip(before, values(model.trainable_variables), strict=True))
  model.save(tmp_path / "model.keras")
  copy = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(copy(x), model(x))
  assert copy.get_layer(chain.name).backward == Rebuild("auto")
  path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
  for variable in copy.variables:
    variable.assign(tf.zeros_like(variable))
  tf.train.Checkpoint(model=copy).restore(path).assert_existing_objects_matched()
  np.testing.assert_array_equal(copy(x), model(x))


def test_adapt_reaches_each_layer_with_the_streams_that_come_to_it():
  chain, _ = make_chain(Rebuild())
  units = [*chain.units, ActNorm(dtype="float64")]
  chain = ReversibleChain(units, coupling=Affine(bound=1.0), dtype="float64")
  streams = [tf.constant(np.random.RandomState(k).normal(k, 3, size=(50, 4, 4, 2))) for k in (1, 2)]
  chain.adapt(streams)
  first, x = units[0], tf.concat(streams, -1)
  assert_close([first.bias], [-tf.reduce_mean(x, [0, 1, 2])], 1e-12)
  assert_close([tf.exp(-first.log_scale)], [tf.math.reduce_std(x, [0, 1, 2])], 1e-12)
  for y in chain(streams):  # The last layer's.
    np.testing.assert_allclose(tf.reduce_mean(y, [0, 1, 2]), np.zeros(8), atol=1e-12)
    np.testing.assert_allclose(tf.math.reduce_std(y, [0, 1, 2]), np.ones(8), rtol=1e-12)
