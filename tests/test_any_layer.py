"""Chains and recomputed layers wherever a Keras layer may stand, beside plain Keras: equal, or a clear line."""

import gc
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import RUNS, keeping, loops
from helpers import assert_close, values

from resnet.reversible import Rebuild, Recompute, ReversibleChain, Scaled, Store, keep_output, recompute

eager_and_graph = pytest.mark.parametrize(
  "run", [lambda f: f, tf.function(autograph=False)], ids=["eager", "graph"]
)
both_forms = pytest.mark.parametrize("loop", [False, True])


def random(*shape, seed=0):
  return tf.constant(np.random.RandomState(seed).normal(size=shape))


def dense(units=4, **kwargs):
  return keras.layers.Dense(units, "tanh", dtype="float64", **kwargs)


def attention():
  return keras.layers.MultiHeadAttention(2, 2, use_bias=False, dtype="float64")


def by_hand(chain, streams, *arguments, **kwargs):
  """y1 = a x1 + F(x2), y2 = a x2 + G(y1): the chain's functions by Keras alone."""
  add = keras.layers.Add(dtype="float64")
  streams = list(streams)
  for k, function in enumerate(chain.functions):
    scale = getattr(chain.couplings[k], "a", None)
    x = streams[k % 2] if scale is None else scale * streams[k % 2]
    streams[k % 2] = add([x, function(streams[1 - k % 2], *arguments, **kwargs)])
  return streams


def gradients(call, sources, variables=()):
  """Those of a function of two streams for the sources, and for variables."""
  with tf.GradientTape() as tape:
    tape.watch(sources)
    y1, y2 = call()
    loss = tf.reduce_sum(tf.sin(y1)) + tf.reduce_sum(y2**3)
  return tape.gradient(
    loss, [*sources, *[variable.value for variable in variables]], unconnected_gradients="zero"
  )


class Cross(keras.layers.Layer):
  """Attention to what a call hands over."""

  def build(self, input_shape):
    self.w = self.add_weight(shape=(4, 4))

  def call(self, x, key, value):
    return tf.nn.softmax((x @ self.w) @ tf.transpose(key, [0, 2, 1])) @ value


# One tensor in several places.


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


# In control flow.


class Conditioned(keras.layers.Layer):
  """tanh(x w + time), whose output may be kept."""

  def __init__(self):
    super().__init__(dtype="float64")
    self.inner = dense()

  def build(self, input_shape):
    self.inner.build(input_shape)

  def call(self, x, time):
    return tf.tanh(keep_output(self.inner, x) + time)


class Cell(keras.layers.Layer):
  """A chain as the cell of a recurrent layer."""

  state_size = (4, 4)

  def __init__(self, step):
    super().__init__(dtype="float64")
    self.step = step

  def build(self, input_shape):
    pass

  def call(self, x, states):
    streams = tuple(self.step((states[0] + x, states[1])))
    return streams[0], streams


WHERE = {
  "cond": lambda step, x: tf.cond(tf.reduce_sum(x[0]) < 1e9, lambda: tuple(step(x)), lambda: x),
  "switch_case": lambda step, x: tf.switch_case(tf.constant(1), [lambda: x, lambda: tuple(step(x))]),
  "while_loop": lambda step, x: tf.while_loop(lambda i, *_: i < 3, lambda i, *x: (i + 1, *step(x)), (0, *x))[
    1:
  ],
  "map_fn": lambda step, x: tf.map_fn(lambda x: tuple(y[0] for y in step((x[0][None], x[1][None]))), x),
  "rnn": lambda step, x: keras.layers.RNN(Cell(step), return_state=True, dtype="float64")(
    tf.stack([x[0], x[1], x[0]], axis=1), initial_state=list(x)
  )[1:],
}


@both_forms
@pytest.mark.parametrize("where", WHERE)
def test_gradients_in_control_flow(where, loop):
  coupling = Scaled(0.9, trained=True)
  chain = ReversibleChain(
    [(Conditioned(), Conditioned()) for _ in "12"], backward=Rebuild(loop=loop), coupling=coupling
  )
  chain = chain if loop else keeping(chain, streams=1, outputs=1)
  chain.build([(None, 4)] * 2)
  x, time = (random(3, 4, seed=1), random(3, 4, seed=2)), random(1, 4, seed=3)
  assert len(chain.weights) == 4 * 3

  @tf.function(autograph=False)
  def both():
    ours = gradients(lambda: WHERE[where](lambda s: chain(s, time=time), x), [*x, time], chain.weights)
    plain = gradients(lambda: WHERE[where](lambda s: by_hand(chain, s, time), x), [*x, time], chain.weights)
    return ours, plain

  assert_close(*both(), 1e-12)


@pytest.mark.parametrize(
  ("inner", "where"),
  [("recompute", "cond"), ("recompute", "while_loop"), ("chain", "while_loop"), ("chain", "map_fn")],
)
def test_nested_in_control_flow_under_a_persistent_tape(inner, where):
  def nested():
    if inner == "recompute":
      return Recompute(dense(), dtype="float64")
    x = keras.Input([4], dtype="float64")
    y = ReversibleChain([(dense(2), dense(2))], dtype="float64")(keras.ops.split(x, 2, axis=-1))
    return keras.Model(x, keras.layers.Concatenate(dtype="float64")(y))

  chain = ReversibleChain([(nested(), dense()), (nested(), dense())], dtype="float64")
  chain.build([(None, 4)] * 2)
  x = random(3, 4, seed=1), random(3, 4, seed=2)

  def twice(step):
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(x)
      y1, y2 = WHERE[where](step, x)
      square = y1**2
    return [*tape.gradient(square, x), *tape.gradient(y2, x)]

  ours = tf.function(lambda: twice(chain), autograph=False)()
  right = tf.function(lambda: twice(lambda s: by_hand(chain, s)), autograph=False)()
  assert_close(ours, right, 1e-12)


class Table(keras.layers.Layer):
  """Multiplies by a table that was computed in eager mode, some of it masked."""

  def __init__(self):
    super().__init__(dtype="float64")
    self.dense = dense()
    self.table, self.chosen = random(4, seed=7), tf.constant([True, True, False, True])
    self.long = random(200, seed=8)  # TensorFlow has other ways for tensors of more than 128 numbers.

  def build(self, input_shape):
    self.dense.build(input_shape)

  def call(self, x):
    return tf.where(self.chosen, tf.sin(self.dense(x) * self.table), x) + tf.reduce_sum(self.long)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("layer", ["chain", "loop", "recompute"])
def test_tensors_of_eager_mode_are_constants_in_control_flow(where, layer):
  chain = ReversibleChain([(Table(), Table()) for _ in "12"], backward=Rebuild(loop=layer == "loop"))
  chain.build([(None, 4)] * 2)
  recomputed = Recompute(Block(chain)) if layer == "recompute" else chain
  x = random(3, 4, seed=1), random(3, 4, seed=2)

  @tf.function(autograph=False)
  def both():
    calls = (recomputed, lambda streams: by_hand(chain, streams))
    return [gradients(lambda call=call: WHERE[where](call, x), x, chain.weights) for call in calls]

  assert_close(*both(), 1e-12)


class Block(keras.layers.Layer):
  """The functions of a chain, by hand."""

  def __init__(self, chain):
    super().__init__(dtype="float64")
    self.chain = chain

  def call(self, streams):
    return by_hand(self.chain, streams)


class RunsAgain(keras.layers.Layer):
  """A frozen layer, which reads its weights when its gradient is taken."""

  def __init__(self, how):
    super().__init__(dtype="float64", trainable=False)
    self.how = how

  def build(self, input_shape):
    self.w = self.add_weight(shape=(4, 4), initializer="glorot_normal")

  def call(self, x):
    if self.how == "recompute_grad":
      return tf.recompute_grad(lambda x: tf.tanh(x @ self.w))(x)

    @tf.custom_gradient
    def own(x):
      def gradient(d, variables=()):
        return (d * tf.cos(x @ self.w)) @ tf.transpose(self.w), [tf.zeros_like(v) for v in variables]

      return tf.sin(x @ self.w), gradient

    return own(x)


@both_forms
@eager_and_graph
@pytest.mark.parametrize("how", ["recompute_grad", "custom_gradient"])
def test_what_a_custom_gradient_reads_of_a_frozen_layer_is_what_the_layer_had(how, loop, run):
  chain = ReversibleChain(
    [(RunsAgain(how), dense()) for _ in "123"], backward=Rebuild(loop=loop), dtype="float64"
  )
  chain.build([(None, 4)] * 2)
  x = [random(3, 4, seed=1), random(3, 4, seed=2)]
  expected = run(lambda: gradients(lambda: by_hand(chain, x), x, chain.trainable_weights))()

  def changed_in_between():
    with tf.GradientTape() as tape:
      tape.watch(x)
      y1, y2 = chain(x)
      loss = tf.reduce_sum(tf.sin(y1)) + tf.reduce_sum(y2**3)
    for variable in chain.non_trainable_weights:
      variable.assign(2 * variable.value)
    return tape.gradient(loss, [*x, *[variable.value for variable in chain.trainable_weights]])

  assert_close(run(lambda: gradients(lambda: chain(x), x, chain.trainable_weights))(), expected, 1e-12)
  assert_close(run(changed_in_between)(), expected, 1e-12)


@pytest.mark.parametrize(("loop", "jit"), [(False, True), (True, False)])
def test_two_gradients_of_a_tape_around_a_compiled_function(loop, jit):
  chain = ReversibleChain(
    [(Recompute(dense()), dense()) for _ in "12"], backward=Rebuild(loop=loop), dtype="float64"
  )
  chain.build([(None, 4)] * 2)
  compiled = tf.function(lambda *x: chain(x), jit_compile=jit, autograph=False)
  x = random(3, 4, seed=1), random(3, 4, seed=2)
  found = []
  for call in (compiled, lambda *x: by_hand(chain, x)):
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(x)
      y1, y2 = call(*x)
    found.append([*tape.gradient(y1, x), *tape.gradient(y2, x)])
  assert_close(*found, 1e-12)


# Keras' masks.


class Attends(keras.layers.Layer):
  """Normalises and attends to itself; Keras' attention finds the mask that its input carries."""

  def __init__(self, supports_masking=True):
    super().__init__(dtype="float64")
    self.supports_masking = supports_masking
    self.norm, self.attention = keras.layers.LayerNormalization(dtype="float64"), attention()

  def build(self, input_shape):
    self.norm.build(input_shape)
    self.attention.build(input_shape, input_shape)

  def call(self, x):
    h = self.norm(x)
    h = self.attention(h, h)  # Carries the mask, too.
    return h if self.supports_masking else tf.identity(h)


MASKED = {
  "attention": Attends,
  "attention that drops the mask": lambda: Attends(supports_masking=False),
  "recurrent": lambda: keras.layers.Bidirectional(
    keras.layers.GRU(2, return_sequences=True, dtype="float64"), dtype="float64"
  ),
  "masking": lambda: keras.Sequential(
    [keras.layers.Masking(1.0, dtype="float64"), keras.layers.GRU(4, return_sequences=True, dtype="float64")]
  ),
}


@pytest.mark.parametrize(
  ("kind", "loop", "run"),
  [
    (kind, loop, run)
    for k, kind in enumerate(MASKED)
    for loop, run in zip((False, True), ("eager", "graph") if k % 2 else ("graph", "eager"), strict=True)
  ],
)
def test_masks_are_those_of_plain_keras(kind, loop, run):
  keras.utils.set_random_seed(0)
  tokens = tf.constant([[1, 2, 0, 0, 0], [1, 2, 3, 4, 1]])
  embeddings = [keras.layers.Embedding(5, 4, mask_zero=True, dtype="float64") for _ in "12"]
  chain = ReversibleChain(
    [(MASKED[kind](), dense()) for _ in "12"], backward=Rebuild(loop=loop), dtype="float64"
  )
  chain.build([(2, 5, 4)] * 2)
  masks = []

  def step(call):
    def embedded():
      streams = call([embedding(tokens) for embedding in embeddings])
      masks.append([getattr(y, "_keras_mask", None) is not None for y in streams])
      return streams

    return RUNS[run](lambda: gradients(embedded, [], chain.weights))()

  embeddings[0](tokens), embeddings[1](tokens)
  right = step(lambda streams: by_hand(chain, streams))
  if kind == "attention that drops the mask" and loop:
    with pytest.raises(
      ValueError, match="needs units that hand Keras' masks on, but behind F of unit 0 .*loop=False"
    ):
      step(chain)
    return
  assert_close(step(chain), right, 1e-12)
  assert masks[0] == masks[-1] == [kind != "attention that drops the mask"] * 2


@eager_and_graph
def test_masks_that_inputs_and_arguments_of_a_recomputed_layer_carry(run):
  layer, embedding = attention(), keras.layers.Embedding(5, 4, mask_zero=True, dtype="float64")
  layer.build((2, 3, 4), (2, 3, 4))
  again = Recompute(layer, dtype="float64")
  tokens = tf.constant([[1, 2, 0], [3, 0, 0]])
  x = random(2, 3, 4)
  for call in (again, lambda *x, **kwargs: recompute(layer, *x, **kwargs)):
    ours = run(lambda call=call: gradients(lambda: (call(x, value=embedding(tokens)), x), [x], layer.weights))()
    right = gradients(lambda: (layer(x, value=embedding(tokens)), x), [x], layer.weights)
    assert_close(ours, right, 1e-12)
  assert np.any(layer(x, value=embedding(tokens)) != layer(x, value=tf.identity(embedding(tokens))))


def test_padding_does_not_change_valid_positions_in_a_functional_model():
  keras.utils.set_random_seed(0)
  tokens = keras.Input([5], dtype="int64")
  embedding = keras.layers.Embedding(5, 4, mask_zero=True, embeddings_initializer="normal", dtype="float64")
  streams = ReversibleChain([(Attends(), dense()) for _ in "123"], dtype="float64")((embedding(tokens),) * 2)
  model, batch = keras.Model(tokens, streams[0]), np.array([[1, 2, 0, 0, 0]])
  before = model(batch).numpy()
  table = embedding.get_weights()[0]
  table[0] += 10
  embedding.set_weights([table])
  np.testing.assert_array_equal(model(batch)[:, :2], before[:, :2])
  assert np.any(model(batch)[:, 2:] != before[:, 2:])


# What a function may read, and what is refused.


class Reads(keras.layers.Layer):
  """tanh(x w), computed in one of several ways."""

  def __init__(self, how):
    super().__init__(dtype="float64")
    self.how = how

  def build(self, input_shape):
    self.w = self.add_weight(shape=(4,), initializer="ones")

  def compute_output_shape(self, input_shape):
    return input_shape

  def inner(self, x):
    return tf.tanh(x * tf.convert_to_tensor(self.w))

  @tf.function(autograph=False)
  def traced(self, x):
    return self.inner(x)

  @tf.function
  def converted(self, x):
    for _ in tf.range(2):  # By autograph.
      x = self.inner(x)
    return x

  def call(self, x):
    @tf.custom_gradient
    def custom_gradient(x):
      y = self.inner(x)

      def gradient(dy, variables=()):
        d = dy * (1 - y * y)
        return d * tf.convert_to_tensor(self.w), [tf.reduce_sum(d * x, 0)] * len(variables)

      return y, gradient

    return {
      "tf.custom_gradient": custom_gradient,
      "tf.recompute_grad": tf.recompute_grad(self.inner),
      "keras.remat": keras.remat(self.inner),
      "in a branch": lambda x: tf.cond(tf.reduce_sum(x) < 1e9, lambda: custom_gradient(x), lambda: x),
      "an inner Recompute": lambda h: Recompute(
        keras.layers.Lambda(lambda h: h * x, output_shape=(4,), dtype="float64")
      )(h),
      "tf.function": self.traced,
      "autograph": self.converted,
    }[self.how](x)


@eager_and_graph
@pytest.mark.parametrize(
  "how", ["tf.custom_gradient", "tf.recompute_grad", "keras.remat", "in a branch", "an inner Recompute"]
)
def test_what_a_custom_gradient_hides_is_refused(how, run):
  layer, x = Reads(how), random(3, 4)
  layer.build((None, 4))
  chain = ReversibleChain([(dense(), layer)], dtype="float64")
  chain.build([(None, 4)] * 2)
  with pytest.raises(
    ValueError, match="G of unit 0 .*inside of a custom gradient .*gradient would be lost.*Recompute"
  ):
    run(lambda: chain((x, x)))()
  with pytest.raises(ValueError, match="inside of a custom gradient"):
    run(lambda: recompute(layer, x))()
  if how == "an inner Recompute":  # It refuses by itself.
    return
  chain.backward = Store()  # Plain Keras.
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(chain((x, x))[1])
  assert tape.gradient(loss, layer.w.value) is not None


class Hides(Reads):
  """x w behind a custom gradient, by a way that is not seen at once."""

  def call(self, x):
    def gradient(*dy, variables=()):
      return dy[0], [tf.reduce_sum(dy[0], 0)] * len(variables)

    def product(x, dtype=tf.float64):
      return tf.cast(x, dtype) * tf.cast(tf.convert_to_tensor(self.w), dtype)

    ways = {
      "a result that is not used": lambda x: ((tf.tanh(h := product(x)), h), gradient),
      "a list of tensors": lambda x: (tf.map_fn(product, x), gradient),
      "complex numbers": lambda x: (tf.math.real(product(x, tf.complex128)), gradient),
    }
    return tf.nest.flatten(tf.custom_gradient(ways[self.how])(x))[0]


@eager_and_graph
@pytest.mark.parametrize("how", ["a result that is not used", "a list of tensors", "complex numbers"])
def test_what_a_custom_gradient_hides_by_detours_is_refused(how, run):
  layer = Hides(how)
  layer.build((None, 4))
  with pytest.raises(ValueError, match="inside of a custom gradient"):
    run(lambda: recompute(layer, random(3, 4)))()


class Spectrum(keras.layers.Layer):
  """Complex numbers in and out."""

  def build(self, input_shape):
    self.w = self.add_weight(shape=(4,), initializer="ones")

  def call(self, x, factor):
    return tf.signal.fft(tf.cast(x * tf.convert_to_tensor(self.w), tf.complex128) * factor)


@eager_and_graph
def test_gradients_go_through_complex_numbers(run):
  layer, x, v = Spectrum(dtype="float64"), random(3, 4), random(4, seed=1)
  layer.build((None, 4))

  def step(call):
    with tf.GradientTape() as tape:
      tape.watch((x, v))
      y = call(x, factor=tf.complex(v, v))
      loss = tf.reduce_sum(tf.abs(y) ** 2)
    return tape.gradient(loss, [x, v, layer.w.value])

  assert_close(run(lambda: step(lambda *a, **k: recompute(layer, *a, **k)))(), step(layer), 1e-12)


def test_a_state_that_moves_in_a_branch_is_refused_in_graphs():
  class Branch(keras.layers.Layer):
    def __init__(self):
      super().__init__(dtype="float64")
      self.dropout = keras.layers.Dropout(0.3, seed=1, dtype="float64")

    def call(self, x, training=False):
      return tf.cond(tf.reduce_sum(x) < 1e9, lambda: self.dropout(x, training=training), lambda: x)

  layer, x = Branch(), random(3, 4)
  with pytest.raises(ValueError, match=r"moves 'seed_generator.* in a branch or loop .*backward=Store\(\)"):
    tf.function(lambda: recompute(layer, x, training=True))()


@pytest.mark.parametrize(
  ("mask", "got"),
  [(tf.ones([2, 4], tf.bool), "a tensor of shape .2, 4."), ([None], ".None."), ([None] * 3, "None")],
)
def test_a_mask_that_is_no_pair_is_refused(mask, got):
  chain = ReversibleChain([(dense(), dense())], dtype="float64")
  x = random(2, 4, 4)
  with pytest.raises(ValueError, match=f"mask must be a pair, the mask of x1 and that of x2.*got .*{got}"):
    chain((x, x), mask=mask)


def test_a_layer_made_in_a_remat_scope_is_refused():
  with keras.RematScope("full"):
    layer = keras.layers.Dense(4, dtype="float64")
  chain = ReversibleChain([(dense(), layer)], dtype="float64")
  with pytest.raises(ValueError, match="G of unit 0 .*inside of a custom gradient"):
    chain((random(3, 4), random(3, 4)))


@eager_and_graph
@pytest.mark.parametrize("how", ["tf.function", "autograph"])
@pytest.mark.parametrize("kind", ["chain", "recompute"])
def test_a_tf_function_in_a_layer_reads_the_weights_of_each_step(kind, how, run):
  layer, x = Reads(how), random(3, 4)
  layer.build((None, 4))
  chain = ReversibleChain([(dense(), layer)], dtype="float64")
  chain.build([(None, 4)] * 2)
  plain = Reads(how)
  plain.build((None, 4))

  def both(layer):
    if kind == "chain":
      y1 = x + chain.functions[0](x)
      return y1, x + layer(y1)
    return layer(x), x

  call = (lambda: chain((x, x))) if kind == "chain" else (lambda: (recompute(layer, x), x))
  step = run(lambda: gradients(call, [x], [layer.w]))
  for value in (1.0, 3.0):
    for one in (layer, plain):
      one.w.assign(value * tf.ones([4]))
    assert_close(step(), gradients(lambda: both(plain), [x], [plain.w]), 1e-12)


class Outside(keras.layers.Layer):
  """x times what a test puts here."""

  scale = 1.0

  def call(self, x):
    return x * Outside.scale


@eager_and_graph
def test_a_tensor_from_outside_whose_gradient_would_be_lost_is_refused(run):
  layer, gain, x = Outside(dtype="float64"), tf.Variable(2.0, dtype=tf.float64), random(3, 4)
  layer.build((None, 4))
  chain = ReversibleChain([(layer, dense())], dtype="float64")
  Outside.scale = tf.constant(3.0, tf.float64)  # No tape watches it.
  try:
    chain((x, x))  # Traced, and found to be right.

    def step(call):
      with tf.GradientTape():
        Outside.scale = gain * 1.0
        return call()

    for call in (lambda: chain((x, x)), lambda: recompute(layer, x)):
      with pytest.raises(ValueError, match="uses (a|the) tensor .*computed outside of it.* as an argument"):
        run(lambda call=call: step(call))()
  finally:
    Outside.scale = 1.0


def test_tensors_from_outside_are_refused_with_two_replicas():
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  with strategy.scope():
    gain = tf.Variable(2.0)
    chain = ReversibleChain([(Outside(), keras.layers.Dense(4))])
    chain.build([(None, 4)] * 2)

  @tf.function(autograph=False)
  def step():
    def replica():
      with tf.GradientTape():
        Outside.scale = gain * 1.0
        return chain((tf.ones([2, 4]), tf.ones([2, 4])))[0]

    return strategy.run(replica)

  try:
    with pytest.raises(ValueError, match="F of unit 0 .*uses the tensor .*computed outside"):
      step()
  finally:
    Outside.scale = 1.0


def second_stream(chain, x, time):
  x = tf.convert_to_tensor(x)
  y1 = x + chain.functions[0](x, tf.convert_to_tensor(time))
  return x + chain.functions[1](y1)


@eager_and_graph
def test_inputs_and_arguments_that_are_variables_are_taken_by_value(run):
  layer = Conditioned()
  layer.build((None, 4))
  chain = ReversibleChain([(layer, dense())], dtype="float64")
  chain.build([(None, 4)] * 2)
  x, time = tf.Variable(random(3, 4)), keras.Variable(random(1, 4, seed=1), dtype="float64")

  def moved(call):
    x.assign(random(3, 4))
    time.assign(random(1, 4, seed=1))
    with tf.GradientTape(persistent=True) as tape:
      loss = tf.reduce_sum(call() ** 3)
    x.assign(5 * x)  # A step between the forward and the backward pass.
    time.assign(5 * time.value)
    layer.inner.kernel.assign(5 * layer.inner.kernel.value)
    found = tape.gradient(loss, [x, time.value, layer.inner.kernel.value])
    layer.inner.kernel.assign(layer.inner.kernel.value / 5)
    return found

  for ours, plain in (
    (lambda: recompute(layer, x, time=time), lambda: layer(x, tf.convert_to_tensor(time))),
    (lambda: chain((x, x), time=time)[1], lambda: second_stream(chain, x, time)),
  ):
    assert_close(run(lambda call=ours: moved(call))(), moved(plain), 1e-12)


@eager_and_graph
@pytest.mark.parametrize("what", ["py_function", "queue"])
def test_ops_with_a_state_of_their_own_are_refused(what, run):
  queue = tf.queue.FIFOQueue(1, tf.float64)

  class Stateful(keras.layers.Layer):
    def call(self, x):
      return x * (tf.py_function(lambda: 1.0, [], tf.float64) if what == "py_function" else queue.dequeue())

    def compute_output_shape(self, input_shape):
      return input_shape

  layer = Stateful(dtype="float64")
  with pytest.raises(ValueError, match="uses TensorFlow's op .*, which has a state of its own.*as an argument"):
    run(lambda x: recompute(layer, x))(random(3, 4))


def test_a_layer_that_needs_values_in_python_is_refused():
  class Branches(keras.layers.Layer):
    def call(self, x):
      return x if tf.reduce_sum(x) > 0 else -x

  with pytest.raises(ValueError, match="(?s)branches cannot be traced.*use TensorFlow's operations"):
    recompute(Branches(name="branches"), random(3, 4))


@eager_and_graph
def test_forward_mode_is_refused(run):
  chain, x = ReversibleChain([(dense(), dense())], dtype="float64"), random(3, 4)
  chain.build([(None, 4)] * 2)

  def jvp(call):
    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
      y = call()
    return accumulator.jvp(y)

  in_branch = lambda: tf.cond(tf.reduce_sum(x) < 1e9, lambda: chain((x, x))[0], lambda: x)  # noqa: E731
  for call in (lambda: chain((x, x))[0], lambda: recompute(chain.functions[0], x), in_branch):
    with pytest.raises(
      NotImplementedError, match=r"forward-mode gradients .* are not supported; use backward=Store\(\)"
    ):
      run(lambda call=call: jvp(call))()


# The loop.


def loop():
  keras.utils.set_random_seed(0)
  units = [[keras.Sequential([dense(), dense()]) for _ in "FG"] for _ in range(3)]
  chain = ReversibleChain(units, backward=Rebuild(loop=True), dtype="float64")
  chain((random(2, 4), random(2, 4)))
  return chain


def freeze(chain, *layers):
  for function, layer in layers:
    chain.functions[function].layers[layer].trainable = False


@pytest.mark.parametrize(
  ("change", "rows"),
  [
    (lambda chain: None, 1),
    (lambda chain: freeze(chain, (2, 0), (4, 1)), 0),
    (lambda chain: setattr(chain.functions[4].layers[0].kernel, "trainable", False), 1),
    (lambda chain: chain.functions[2].layers[0].enable_lora(2), 0),
    (lambda chain: setattr(chain.functions[0].layers[1], "activation", keras.activations.relu), 1),
  ],
  ids=["nothing", "layers", "a variable", "lora", "an activation"],
)
def test_units_that_have_become_unlike_are_unrolled(change, rows):
  chain, x = loop(), (random(2, 4), random(2, 4, seed=1))
  change(chain)
  assert loops(chain, x) == 2 * rows
  ours = tf.function(lambda: gradients(lambda: chain(x), x, chain.trainable_variables))()
  assert_close(ours, gradients(lambda: by_hand(chain, x), x, chain.trainable_variables), 1e-12)


@pytest.mark.parametrize(
  "frozen", [[(0, 0)], [(0, 1), (1, 0)], [(0, 0), (2, 0), (4, 0)], [(1, 1), (3, 1), (5, 1)]], ids=str
)
def test_frozen_layers_in_a_loop(frozen):
  chain = loop()
  freeze(chain, *frozen)
  x = random(2, 4), random(2, 4, seed=1)
  ours = tf.function(lambda: gradients(lambda: chain(x), x, chain.trainable_variables))()
  assert_close(ours, gradients(lambda: by_hand(chain, x), x, chain.trainable_variables), 1e-12)


def test_f_and_g_that_are_one_layer_with_a_state_are_refused_by_a_loop():
  def unit():
    shared = keras.Sequential([dense(), keras.layers.Dropout(0.5, seed=3, dtype="float64")])
    return shared, shared

  chain = ReversibleChain([unit() for _ in "12"], backward=Rebuild(loop=True), dtype="float64")
  with pytest.raises(
    ValueError, match="needs functions whose states are their own, but several share 'seed_generator"
  ):
    chain((random(2, 4), random(2, 4)), training=True)


# Strategies, files, memory.


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


# Smaller things.


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
