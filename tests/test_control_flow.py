"""Chains and recomputed layers in control flow and under tapes of all kinds, beside plain Keras."""

import keras
import pytest
import tensorflow as tf
from any_layer import Conditioned, both_forms, by_hand, dense, eager_and_graph, gradients, random
from chains import keeping
from helpers import assert_close

from resnet.reversible import Rebuild, Recompute, ReversibleChain, Scaled


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
