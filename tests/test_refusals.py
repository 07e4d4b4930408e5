"""What a function may read and do: as in plain Keras, or refused in a clear line."""

import keras
import pytest
import tensorflow as tf
from any_layer import Conditioned, dense, eager_and_graph, gradients, random
from helpers import assert_close

from resnet.reversible import Recompute, ReversibleChain, Store, recompute


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
