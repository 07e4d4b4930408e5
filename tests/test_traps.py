"""What gave wrong gradients without a word, or an error of TensorFlow's: right now, or one clear line."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, values

from resnet.reversible import (
  Affine,
  Coupling,
  InvertibleDense,
  Permute,
  Rebuild,
  Recompute,
  ReversibleChain,
  Scaled,
  Shortcut,
  Store,
  recompute,
)

eager_and_graph = pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "graph"])
both_forms = pytest.mark.parametrize("loop", [False, True])


def dense(**kwargs):
  return keras.layers.Dense(4, activation="tanh", dtype="float64", **kwargs)


def random_streams(dtype="float64", shape=(5, 4)):
  return tuple(tf.constant(np.random.RandomState(seed).normal(size=shape), dtype) for seed in (1, 2))


class FromCall(keras.layers.Layer):
  """A function of the test, on a layer with one weight."""

  def __init__(self, function, **kwargs):
    super().__init__(**kwargs)
    self.function = function

  def build(self, input_shape):
    self.weight = self.add_weight(shape=(), initializer="ones")

  def call(self, x):
    return self.function(self.weight * x)

  def get_config(self):
    return {**super().get_config(), "function": self.function.__name__}  # To be compared.


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("policy", ["mixed", "whole"])
def test_half_precision_streams_are_widened(half, policy):
  dtype = f"mixed_{half}" if policy == "mixed" else half
  keras.utils.set_random_seed(0)
  units = [[keras.layers.Dense(8, "tanh", dtype=dtype) for _ in "FG"] for _ in range(30)]
  chain = ReversibleChain(units, dtype=dtype)
  streams = random_streams(half, (6, 8))
  outputs = chain(streams)
  assert [y.dtype for y in outputs] == [tf.float32] * 2
  assert [y.dtype for y in chain.compute_output_spec([keras.KerasTensor((6, 8), half)] * 2)] == ["float32"] * 2
  for rebuilt, stream in zip(chain.inverse(outputs), streams, strict=True):
    np.testing.assert_allclose(rebuilt, tf.cast(stream, tf.float32), atol=0.1)
  assert chain.reconstruction_error(streams) < 0.02


@both_forms
@eager_and_graph
def test_gradients_of_gradients_are_refused(loop, run):
  chain = ReversibleChain([(dense(), dense()) for _ in range(2)], backward=Rebuild(loop=loop), dtype="float64")
  chain.build([(None, 4), (None, 4)])

  @run
  def second_order(x1, x2):
    # The outer tape sees neither weights nor a gradient of the loss that depends on anything.
    with tf.GradientTape(watch_accessed_variables=False) as outer:
      outer.watch(x1)
      with tf.GradientTape() as inner:
        inner.watch(x1)
        loss = tf.reduce_sum(chain((x1, x2))[0])
      first = inner.gradient(loss, x1)
    return first, outer.gradient(first, x1)

  with pytest.raises(
    NotImplementedError, match=r"gradients of gradients through ReversibleChain '.*use backward=Store\(\)"
  ):
    second_order(*random_streams())
  chain.backward = Store()
  assert np.any(second_order(*random_streams())[1] != 0)


@eager_and_graph
def test_gradients_of_recomputed_gradients_are_refused(run):
  layer = Recompute(dense())
  x, _ = random_streams()

  @run
  def second_order(x):
    with tf.GradientTape(watch_accessed_variables=False) as outer:
      outer.watch(x)
      with tf.GradientTape() as inner:
        inner.watch(x)
        y = layer(x)
      first = inner.gradient(y, x)
    return outer.gradient(first, x)

  with pytest.raises(NotImplementedError, match="gradients of gradients through recomputed layer 'dense"):
    second_order(x)


def test_first_order_gradients_under_a_second_tape_are_allowed():
  chain = ReversibleChain([(dense(), dense())], dtype="float64")
  x1, x2 = random_streams()
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(x1)
    y1, _ = chain((x1, x2))
    first = tape.gradient(y1, x1)
  assert_close([tape.gradient(y1, x1)], [first], 0)


DRAWING = {
  "RandomUniform": lambda x: x * tf.random.uniform(tf.shape(x), dtype=x.dtype),
  "RandomStandardNormal": lambda x: tf.map_fn(lambda row: row + tf.random.normal([4], dtype=x.dtype), x),
  "RandomShuffle": tf.function(lambda x: tf.random.shuffle(x)),
}


@both_forms
@eager_and_graph
@pytest.mark.parametrize("op", DRAWING)
def test_random_numbers_that_would_be_drawn_again_are_refused(op, run, loop):
  units = [(dense(), FromCall(DRAWING[op], dtype="float64", name="noisy")) for _ in range(2)]
  chain = ReversibleChain(units, backward=Rebuild(loop=loop), dtype="float64")
  call = run(lambda *streams: chain(streams))
  with pytest.raises(ValueError, match=f"G of unit 0 .'noisy'. draws random numbers .* op {op}.*SeedGenerator"):
    call(*random_streams())
  with pytest.raises(ValueError, match=f"noisy draws random numbers by TensorFlow's op {op}"):
    run(lambda x: recompute(units[0][1], x))(random_streams()[0])


@eager_and_graph
def test_variables_that_would_change_twice_are_refused(run):
  counter = tf.Variable(0.0)

  def count(x):
    counter.assign_add(1.0)
    return x

  chain = ReversibleChain([(FromCall(count, dtype="float64"), dense())], dtype="float64")
  with pytest.raises(
    ValueError, match="F of unit 0 .* changes a variable by TensorFlow's op AssignAdd.*add_weight"
  ):
    run(lambda *streams: chain(streams))(*random_streams())


@both_forms
def test_tensors_that_no_gradient_would_reach_are_refused_in_graphs(loop):
  scale = tf.Variable(2.0, dtype=tf.float64)
  held = {}
  units = [(dense(), FromCall(lambda x: x * held["scale"], dtype="float64")) for _ in range(2)]
  chain = ReversibleChain(units, backward=Rebuild(loop=loop), dtype="float64")
  held["scale"] = tf.constant(np.full([5, 4], 3.0))  # A constant is no trap.
  chain.build([(5, 4), (5, 4)])

  @tf.function
  def call(*streams):
    if computes:
      held["scale"] = tf.exp(scale)
    return chain(streams)

  computes = False
  call(*random_streams())
  computes = True
  call = tf.function(call.python_function)
  with pytest.raises(
    ValueError, match="G of unit 0 .* uses the tensor 'Exp:0', computed outside .* as an argument"
  ):
    call(*random_streams())


@eager_and_graph
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("kind", [tf.Variable, keras.Variable])
def test_a_variable_that_is_no_weight_of_the_function_is_refused(run, kind, trainable):
  variable = kind(2.0, dtype="float64", name="gain", trainable=trainable)
  layer = FromCall(lambda x: tf.sin(x) * tf.convert_to_tensor(variable), dtype="float64")
  chain = ReversibleChain([(dense(), layer)], dtype="float64")
  x, _ = random_streams()
  with pytest.raises(
    ValueError,
    match="G of unit 0 .* reads the variable 'gain' otherwise than as one of its weights.*add_weight",
  ):
    run(lambda x: chain((x, x)))(x)
  with pytest.raises(ValueError, match="reads the variable 'gain'.* as an argument of the call"):
    run(lambda x: recompute(layer, x))(x)


@eager_and_graph
def test_losses_that_would_be_lost_are_refused(run):
  regularized = dense(activity_regularizer="l2", name="regularized")
  chain = ReversibleChain([(regularized, dense())], dtype="float64")
  chain.build([(None, 4), (None, 4)])
  with pytest.raises(ValueError, match="F of unit 0 .'regularized'. adds a loss .*, which would be lost"):
    run(lambda *streams: chain(streams))(*random_streams())
  chain.backward = Store()  # Plain Keras.
  chain(random_streams())
  assert len(chain.losses) == 1


@both_forms
def test_layers_that_units_share_see_the_state_as_the_unit_before_left_it(loop):
  shared = keras.layers.Dropout(0.5, seed=3, dtype="float64")
  chain = ReversibleChain([(shared, dense()) for _ in range(2)], backward=Rebuild(loop=loop), dtype="float64")
  x1, x2 = random_streams()
  chain.build([(None, 4), (None, 4)])
  if loop:
    with pytest.raises(
      ValueError, match="needs functions whose states are their own, but several share 'seed_generator"
    ):
      chain((x1, x2), training=True)
    return
  start = values(chain.non_trainable_variables)
  y1, y2 = chain((x1, x2), training=True)
  for variable, value in zip(chain.non_trainable_variables, start, strict=True):
    variable.assign(value)
  for _ in range(2):  # By hand, with the layer's own, moving seed.
    x1 = x1 + shared(x2, training=True)
    x2 = x2 + chain.functions[1 + 2 * _](x1)
  assert_close([y1, y2], [x1, x2], 1e-12)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda chain: chain(tf.zeros([5, 4])), "takes two streams, .x1, x2., got a tensor of shape .5, 4."),
    (lambda chain: chain([tf.zeros([5, 4])] * 3), "takes two streams, .x1, x2., got 3 inputs"),
    (lambda chain: chain.inverse(tf.zeros([5, 4])), "takes two streams"),
    (
      lambda chain: chain([tf.zeros([5, 4], tf.int32)] * 2),
      "must be float tensors, x1 is int32; cast it first",
    ),
    (lambda chain: chain([keras.Input([4], dtype="int32")] * 2), "must be float tensors, x1 is int32"),
    (
      lambda chain: chain([tf.zeros([5, 4])] * 2, attention=1),
      "with 'attention', which no layer in it takes; they take 'mask'",
    ),
    (
      lambda chain: chain([tf.zeros([5, 4]), tf.zeros([6, 4])]),
      "F of unit 0 .* gives shape .6, 4. to .* .5, 4.",
    ),
  ],
)
def test_what_is_no_pair_of_streams_is_refused(call, message):
  chain = ReversibleChain([(keras.layers.Dense(4), keras.layers.Dense(4))])
  with pytest.raises(ValueError, match=message):
    call(chain)


class Gated(Coupling):
  """y = x + g F, with weights in what it makes of F's output."""

  def build(self, input_shape):
    self.g = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="g", autocast=False)

  def parts(self, change):
    return (tf.multiply(self.g, change) + tf.ones([4], self.g.dtype),)

  def couple(self, x, change):
    return x + change

  def uncouple(self, y, change):
    return y - change


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float16", "float32", "float64"])
def test_a_coupling_gets_the_function_s_output_as_precise_as_the_stream(dtype):
  wide = "float64" if dtype == "float64" else "float32"
  units = [(keras.layers.Dense(4, dtype=dtype), keras.layers.Dense(4, dtype=dtype))]
  chain = ReversibleChain(units, coupling=Gated(dtype=wide), dtype=wide)
  x = [keras.Input([4], dtype=wide) for _ in range(2)]
  model = keras.Model(x, chain(x))
  assert [y.dtype for y in model(random_streams(wide))] == [wide] * 2
  assert len(model.trainable_variables) == 2 * 2 + 2


@pytest.mark.parametrize("output", [lambda x: (x, x, x), lambda x: {"scale": x}], ids=["three", "dict"])
def test_an_output_that_its_coupling_cannot_take_is_refused_when_built(output):
  chain = ReversibleChain([(FromCall(output), keras.layers.Dense(8))], coupling=Affine())
  with pytest.raises(ValueError, match="F of unit 0 .* gives .*, which its coupling cannot take: "):
    chain.build([(None, 4), (None, 4)])


class Replaced(Coupling):
  """y = F."""

  invertible = False

  def couple(self, x, change):
    return change


def test_a_stream_that_nothing_depends_on_has_no_gradient():
  functions = [(dense(), FromCall(tf.stop_gradient, dtype="float64")) for _ in "123"]
  chain = ReversibleChain(functions, coupling=Replaced(), dtype="float64")
  streams, found = random_streams(), []
  for backward in (Store(), Rebuild()):
    chain.backward = backward
    with tf.GradientTape() as tape:
      tape.watch(streams)
      loss = tf.reduce_sum(chain(streams)[0] ** 2)
    weights = [variable.value for variable in chain.trainable_variables]
    found.append(tape.gradient(loss, [*streams, *weights], unconnected_gradients="zero"))
  assert_close(*found, 1e-13)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_functions_that_map_to_another_shape_are_refused_when_built(width):
  chain = ReversibleChain([(keras.layers.Dense(4), keras.layers.Dense(width, name="wrong"))])
  with pytest.raises(
    ValueError, match=f"G of unit 0 .'wrong'. gives shape .None, {width}. to a stream of shape .None, 4."
  ):
    chain.build([(None, 4), (None, 4)])


def test_functions_that_map_to_another_shape_are_refused_when_called():
  narrow = FromCall(lambda x: x)
  chain = ReversibleChain([(narrow, narrow)])
  chain.build([(None, 4), (None, 4)])
  narrow.function = lambda x: x[:, :1]  # Would be broadcast.
  with pytest.raises(ValueError, match="F of unit 0 .* gives shape .5, 1. to a stream of shape .5, 4."):
    chain(random_streams("float32"))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"units": [(tf.sin, keras.layers.Dense(4))]}, "F of unit 0 must be a Keras layer, got <function.*Lambda"),
    ({"units": keras.layers.Dense(4)}, "units must be a list of .F, G."),
    ({"coupling": "affine"}, "coupling must be a Coupling, or a tuple of two.*got 'affine'"),
    ({"coupling": [Scaled(2.0)]}, "coupling must be a Coupling, or a tuple of two"),
    ({"coupling": (Scaled(2.0),) * 3}, "coupling must be a Coupling, or a tuple of two"),
    ({"grid_bits": 24}, "grid_bits must be in .0, 24."),
    (
      {"grid_bits": 14, "coupling": Scaled(0.5)},
      "grid_bits needs couplings and layers that add, negate or move numbers, got Scaled",
    ),
    ({"grid_bits": 14, "coupling": Affine()}, "got Affine"),
    ({"grid_bits": 14, "units": [InvertibleDense()]}, "got InvertibleDense"),
    ({"backward": "store"}, "backward must be Store.. or Rebuild.*, got 'store'"),
    ({"backward": Rebuild}, "backward must be Store.. or Rebuild.*, got <class"),
  ],
)
def test_impossible_chains_are_refused(arguments, message):
  arguments = {"units": [(keras.layers.Dense(4), keras.layers.Dense(4))], **arguments}
  with pytest.raises(ValueError, match=message):
    ReversibleChain(**arguments)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Rebuild("most"), "keep must be 'least', 'auto', 'all' or a number of bytes, got 'most'"),
    (lambda: Rebuild(0), "keep must be .* got 0"),
    (lambda: Rebuild(-1e9), "keep must be .* got -1000000000.0"),
    (lambda: Rebuild(True), "keep must be .* got True"),
    (lambda: Rebuild("all", loop=True), "keep must be 'least' with loop=True, which keeps nothing; got 'all'"),
    (lambda: Rebuild(2e9, loop=True), "keep must be 'least' with loop=True.* got 2000000000.0"),
    (lambda: Rebuild(loop="no"), "loop must be True or False, got 'no'"),
    (lambda: Scaled(0), "scale must be a number other than 0"),
    (lambda: Scaled("2"), "scale must be a number other than 0.* got '2'"),
    (lambda: Affine(bound=-1.0), "bound must be positive"),
    (lambda: Affine("2"), "bound must be positive.* got '2'"),
    (lambda: Permute(None), "order must have each .* got None"),
    (lambda: Permute([0, 2]), r"order must have each .* got \[0, 2\]"),
    (lambda: Shortcut(None), "layer must be a Keras layer, got None"),
    (lambda: Recompute(tf.sin), "layer must be a Keras layer, got <function"),
  ],
)
def test_impossible_couplings_layers_and_ways_back_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
