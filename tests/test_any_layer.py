"""Chains and recomputed layers wherever a Keras layer may stand, beside plain Keras: equal, or a clear line."""

import gc
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from any_layer import Cross, attention, both_forms, by_hand, dense, eager_and_graph, gradients, random
from chains import keeping
from helpers import assert_close, values

from resnet.reversible import Rebuild, Recompute, ReversibleChain, Scaled, Store, recompute


@both_forms
@eager_and_graph
def test_a_tensor_that_is_two_arguments_has_its_whole_gradient_once(loop, run):
  chain = ReversibleChain(
    [[Cross(dtype="float64") for _ in "FG"] for _ in "12"], backward=Rebuild(loop=loop), dtype="float64"
  )
  chain.build([(2, 3, 4)] * 2)
  x, y, m = (random(2, 3, 4, seed=seed) for seed in range(3))
  found = []
  for streams in ((x, y), (x, x), (m, y)):  # The last: a stream that is an argument, too.
    for call in (lambda s: chain(s, key=m, value=m), lambda s: by_hand(chain, s, m, m)):
      found.append(run(lambda s=streams, call=call: gradients(lambda: call(s), [m], chain.weights))())
    assert_close(*found[-2:], 1e-12)


@eager_and_graph
def test_a_recomputed_layer_that_takes_a_tensor_twice(run):
  layer, m, x = attention(), random(2, 3, 4), random(2, 3, 4, seed=1)
  layer.build(m.shape, m.shape)
  add = keras.layers.Add(dtype="float64")
  for ours, plain in (
    (lambda: Recompute(layer)(m, value=m), lambda: layer(m, m)),
    (lambda: Recompute(layer)(x, value=m, key=m), lambda: layer(x, m, key=m)),
    (lambda: Recompute(add)([m, m]), lambda: 2 * m),
  ):
    both = [
      run(lambda call=call: gradients(lambda: (call(), m), [m], layer.weights))() for call in (ours, plain)
    ]
    assert_close(*both, 1e-12)


@pytest.mark.parametrize("kept", [{}, {"everything": 1}, {"everything": 2}, {"streams": 2}], ids=str)
@eager_and_graph
def test_one_tensor_as_both_streams(kept, run):
  chain = keeping(ReversibleChain([(dense(), dense()) for _ in "12"], dtype="float64"), **kept)
  chain.build([(None, 4)] * 2)
  m = random(3, 4)
  ours = run(lambda: gradients(lambda: chain((m, m)), [m], chain.weights))()
  assert_close(ours, gradients(lambda: by_hand(chain, (m, m)), [m], chain.weights), 1e-12)


KEYS = itertools.count(100_000, 10_000)


def make_model(backward, synchronized):
  """A chain, then a recomputed layer, in a functional model."""
  keras.utils.set_random_seed(1)

  def block(units):
    layers = [
      keras.layers.Dense(units, use_bias=False),
      keras.layers.BatchNormalization(synchronized=synchronized),
    ]
    return keras.Sequential([*layers, keras.layers.ReLU(), keras.layers.Dropout(0.2, seed=1)])

  x = keras.Input([8])
  chain = ReversibleChain([(block(4), block(4)) for _ in "12"], backward=backward)
  y = keras.layers.Concatenate()(chain(keras.ops.split(x, 2, axis=-1)))
  y = Recompute(block(8))(y) if backward == Rebuild() else block(8)(y)
  model = keras.Model(x, keras.layers.Dense(3)(y))
  model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
  return model


@pytest.mark.parametrize("devices", [1, 2, "one"])
def test_fit_evaluate_and_predict_under_strategies(devices, monkeypatch):
  data = random(16, 8).numpy().astype("float32"), random(16, 3, seed=1).numpy().astype("float32")
  found = []
  for backward in (Rebuild(), Store()):
    # Strategies of one process would use the same keys for different sums.
    monkeypatch.setattr(tf.distribute.MirroredStrategy, "_collective_key_base", next(KEYS))
    names = [f"CPU:{k}" for k in range(2 if devices == 2 else 1)]
    one = devices == "one"
    strategy = tf.distribute.OneDeviceStrategy("CPU:0") if one else tf.distribute.MirroredStrategy(names)
    with strategy.scope():
      model = make_model(backward, synchronized=devices == 2)
    losses = model.fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
    losses += [model.train_on_batch(*data)[0], model.evaluate(*data, verbose=0)[0]]
    found.append([losses, model.predict(data[0], verbose=0), *values(model.variables)])
  assert_close(*found, 1e-5)


def test_each_function_has_a_coupling_of_its_own():
  def chain(units, coupling):
    made = ReversibleChain([(dense(), dense()) for _ in range(units)], coupling=coupling, dtype="float64")
    made.build([(None, 4)] * 2)
    return made

  for units in (1, 2):
    for coupling in (Scaled(0.9, trained=True), (Scaled(0.9, trained=True), Scaled(0.8, trained=True))):
      chains = [chain(units, coupling) for _ in "12"]
      scales = [v for made in chains for v in made.trainable_variables if v.name == "scale"]
      assert len({id(v) for v in scales}) == 2 * 2 * units


def test_what_a_traced_step_holds_is_collected_with_it():
  def train(make):
    x = [keras.Input([4], dtype="float64"), keras.Input([4], dtype="float64")]
    model = keras.Model(x, make(x))

    @tf.function(autograph=False)
    def step():
      return gradients(lambda: model([random(2, 4)] * 2, training=True), [], model.trainable_variables)

    step()
    keras.backend.clear_session()

  def alive():
    gc.collect()
    kinds = tf.Graph, tf.Variable
    return [sum(issubclass(type(one), kind) for one in gc.get_objects()) for kind in kinds]

  for make in (
    lambda x: list(ReversibleChain([(dense(), dense())], dtype="float64")(x)),
    lambda x: list(
      ReversibleChain([(dense(), dense()), (dense(), dense())], backward=Rebuild(loop=True), dtype="float64")(x)
    ),
    lambda x: [Recompute(dense(), dtype="float64")(x[0]), x[1]],
  ):
    train(make)
    before = alive()
    train(make)
    assert alive() == before


def test_a_loaded_saved_model_has_its_gradients(tmp_path):
  x = keras.Input([4])
  chain = ReversibleChain([(keras.layers.Dense(2, "tanh"), keras.layers.Dense(2, "tanh"))])
  model = keras.Model(
    x, Recompute(keras.layers.Dense(3))(keras.layers.Concatenate()(chain((x[:, :2], x[:, 2:]))))
  )
  tf.saved_model.save(
    model, str(tmp_path), options=tf.saved_model.SaveOptions(experimental_custom_gradients=True)
  )
  loaded = tf.saved_model.load(str(tmp_path))
  batch = tf.cast(random(5, 4), tf.float32)
  found = []
  for call in (model, lambda x: loaded.signatures["serving_default"](x)):
    with tf.GradientTape() as tape:
      tape.watch(batch)
      (y,) = tf.nest.flatten(call(batch))
    found.append([y, tape.gradient(y, batch)])
  assert_close(*found, 1e-6)


@eager_and_graph
@pytest.mark.parametrize("other", [None, True, "text", 3], ids=str)
def test_a_recomputed_layer_may_return_more_than_tensors(other, run):
  class Pair(keras.layers.Layer):
    def call(self, x):
      return {"y": tf.tanh(x), "other": other, "largest": tf.argmax(x, -1)}

  layer, x = Pair(dtype="float64"), random(3, 4)

  def step():
    with tf.GradientTape() as tape:
      tape.watch(x)
      outputs = recompute(layer, x)
    assert outputs["other"] is other
    return tape.gradient(outputs["y"], x), outputs["largest"]

  gradient, largest = run(step)()
  assert_close([gradient], [1 - tf.tanh(x) ** 2], 1e-12)
  np.testing.assert_array_equal(largest, np.argmax(x, -1))


def test_layers_that_are_built_by_more_than_their_inputs(tmp_path):
  x, m = keras.Input([5, 4]), keras.Input([3, 4])
  units = [(keras.layers.MultiHeadAttention(2, 2), keras.layers.Dense(4))]
  y1, y2 = ReversibleChain(units)((x, x), value=m)
  y = Recompute(keras.layers.MultiHeadAttention(2, 2))(keras.layers.Add()([y1, y2]), value=m)
  model = keras.Model([x, m], y)
  data = [tf.cast(random(2, n, 4), tf.float32) for n in (5, 3)]
  model.save(tmp_path / "model.keras")
  np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(data), model(data))
  assert len(model.trainable_variables) == 8 + 2 + 8


def test_the_reconstruction_error_of_zeros_is_zero():
  chain = ReversibleChain([(keras.layers.Dense(4), keras.layers.Dense(4))], grid_bits=14)
  assert chain.reconstruction_error((tf.zeros([2, 4]), tf.zeros([2, 4]))) == 0


class Two(keras.layers.Layer):
  """Two outputs, the second of whole numbers, or that alone."""

  def __init__(self, both):
    super().__init__()
    self.both = both

  def call(self, x):
    return (x, tf.argmax(x, -1)) if self.both else tf.argmax(x, -1)


def test_outputs_and_streams_that_are_not_understood_are_refused_in_a_line():
  x = tf.ones([2, 4])
  for layer, message in (
    (Two(True), "gives .*, where its coupling Additive takes one float tensor"),
    (Two(False), "int64"),
  ):
    with pytest.raises(ValueError, match=f"F of unit 0 .'two.*{message}"):
      ReversibleChain([(layer, keras.layers.Dense(4))])((x, x))
  chain = ReversibleChain([(keras.layers.Dense(4), keras.layers.Dense(4))])
  chain((x, x))
  with pytest.raises(ValueError, match="number of axes of x1 must be known; .*ensure_shape"):
    tf.function(lambda x: chain((x, x)), input_signature=[tf.TensorSpec(None)])(x)
  with pytest.raises(ValueError, match=r"units must be a list of \(F, G\), one at least; got \[\]"):
    ReversibleChain([])


def test_functions_that_share_weights_that_are_assigned_to_are_refused():
  shared = keras.layers.SpectralNormalization(dense(), dtype="float64")
  chain = ReversibleChain([(shared, dense()) for _ in "12"], dtype="float64")
  with pytest.raises(ValueError, match="F of unit 1 .* shares .*kernel', a trained weight that is assigned to"):
    chain((random(3, 4), random(3, 4)), training=True)


def test_a_loop_refuses_batch_norm_that_is_synchronised(monkeypatch):
  monkeypatch.setattr(tf.distribute.MirroredStrategy, "_collective_key_base", next(KEYS))
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  with strategy.scope():
    units = [[keras.layers.BatchNormalization(synchronized=True) for _ in "FG"] for _ in "12"]
    chain = ReversibleChain(units, backward=Rebuild(loop=True))
    chain.build([(None, 4)] * 2)
  x = tf.ones([2, 4])
  step = tf.function(lambda: strategy.run(lambda: chain((x, x), training=True)), autograph=False)
  with pytest.raises(ValueError, match="loop=True cannot hold layers that speak to other devices"):
    step()
