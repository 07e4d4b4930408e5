"""What units keep and store: the same gradients, fewer second runs, in the order that bounds memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import (
  RUNS,
  Counted,
  KeepsHidden,
  ancestors,
  assert_as_ordinary,
  gradients_of,
  keeping,
  make_chain,
  producer,
  run_ops,
  traced_gradients,
)
from helpers import assert_close, values

from resnet.reversible import Affine, Rebuild, Recompute, ReversibleChain, Store, keep_output, recompute

# How many of three units keep their streams, their outputs, everything.
SETTINGS = [(0, 0, 0), (2, 0, 0), (0, 2, 0), (1, 3, 0), (3, 3, 1), (2, 1, 2), (0, 0, 3)]


@pytest.mark.parametrize(
  ("setting", "function", "run"),
  [
    (setting, function, ("eager", "graph")[(k + n) % 2])
    for k, setting in enumerate(SETTINGS)
    for n, function in enumerate([Counted, KeepsHidden])
  ],
)
def test_gradients_and_updates_are_those_of_ordinary_backprop(setting, function, run):
  chain, streams = make_chain(function=function)
  assert_as_ordinary(keeping(chain, *setting), streams, RUNS[run])


@pytest.mark.parametrize("everything", [0, 1])
def test_gradients_are_right_when_compiled_by_xla(everything):
  chain, streams = make_chain(function=KeepsHidden)
  keeping(chain, streams=2, outputs=2, everything=everything)
  for function in chain.functions:  # XLA on the CPU has no kernel for dropout's stateful seed.
    function.hidden.parts = function.hidden.parts[:2]
  state = values(chain.non_trainable_variables)
  actual = gradients_of(chain, streams, state, lambda f: tf.function(f, jit_compile=True))
  chain.backward = Store()
  for one, other in zip(actual, gradients_of(chain, streams, state), strict=True):
    assert_close(one, other, 1e-12)


@pytest.mark.parametrize("everything", [0, 1, 2])
def test_a_coupling_with_parameters_and_the_determinant(everything):
  functions = [keras.layers.Dense(8, "tanh", dtype="float64") for _ in range(4)]
  chain = ReversibleChain(
    list(zip(functions[::2], functions[1::2])),
    coupling=Affine(),
    log_det=True,
    dtype="float64",
  )
  keeping(chain, streams=2, everything=everything)
  chain.build([(None, 4), (None, 4)])
  streams = [tf.constant(np.random.RandomState(seed).normal(size=(5, 4))) for seed in (1, 2)]
  found = []
  for chain.backward in (Rebuild("auto"), Store()):
    with tf.GradientTape() as tape:
      tape.watch(streams)
      y1, y2, log_det = chain(streams)
      loss = tf.reduce_sum(y1**2) + tf.reduce_sum(tf.sin(y2)) + tf.reduce_sum(log_det**2)
    found.append(tape.gradient(loss, [*streams, *chain.trainable_variables]))
  assert_close(*found, 1e-12)


class Timed(keras.layers.Layer):
  """A layer of several units, of an argument, and of a variable that is no layer's."""

  def __init__(self, inner):
    super().__init__(dtype="float64")
    self.inner = inner

  def call(self, x, time, outside, training=False):
    return time * self.inner(outside * x, training=training)


def test_shared_layers_arguments_and_variables_from_outside():
  outside, time = tf.Variable(0.5, dtype=tf.float64), tf.constant(0.7, tf.float64)
  chain, streams = make_chain(1, 4, 4, function=KeepsHidden)
  timed = [[Timed(inner) for inner in chain.functions] for _ in range(3)]
  chain = keeping(ReversibleChain(timed, dtype="float64"), streams=2, outputs=2, everything=1)
  chain.build([(None, 4), (None, 4)])
  state = values(chain.non_trainable_variables)
  found = []
  for chain.backward in (Rebuild("auto"), Store()):
    for variable, value in zip(chain.non_trainable_variables, state, strict=True):
      variable.assign(value)

    @tf.function
    def step(x1, x2):
      with tf.GradientTape() as tape:
        tape.watch((x1, x2, time))
        y1, y2 = chain((x1, x2), training=True, time=time, outside=outside)
        loss = tf.reduce_sum(y1**2) + tf.reduce_sum(tf.sin(y2))
      return tape.gradient(loss, [x1, x2, time, outside, *chain.trainable_variables])

    found.append((step(*streams), values(chain.non_trainable_variables)))
  for one, other in zip(*found, strict=True):
    assert_close(one, other, 1e-12)


def test_what_is_kept_is_not_computed_again_and_what_is_stored_not_run_again():
  chain, streams = make_chain(4, function=KeepsHidden)
  keeping(chain, streams=3, outputs=3, everything=1)
  graph, _ = traced_gradients(chain, streams)
  kinds = [op.type for op in run_ops(graph)]
  # The sine makes the output that rebuilds a stream: it runs again in the first unit alone, and there in G
  # alone, since nothing needs x1. The tanh, whose gradient needs its result, runs again but in the stored unit.
  assert kinds.count("Sin") == 2 * 4 + 1
  assert kinds.count("Tanh") == 2 * 4 + 2 * 3


@pytest.mark.parametrize("function", [Counted, KeepsHidden])
def test_a_second_run_waits_for_the_weight_gradients_of_all_later_functions(function):
  """This bounds the peak, whichever op a scheduler takes first."""
  chain, streams = make_chain(4, function=function)
  keeping(chain, streams=3, outputs=3, everything=1)
  graph, d_weights = traced_gradients(chain, streams)
  # From the last function to the first: the second runs of the rebuilt and the kept, and the gradients of all.
  again = [op for op in graph.get_operations() if op.type == "Tanh"][len(chain.functions) :]
  of_outputs = [op for op in graph.get_operations() if op.type == "Cos"]
  assert (len(again), len(of_outputs)) == (6, 8 if function is KeepsHidden else 0)
  for k, op in enumerate(reversed(again)):
    done = ancestors(op)
    assert set().union(*d_weights[k + 1 :]) <= done, f"function {k} runs again too early"
    assert not set().union(*d_weights[:k]) & done
    if function is KeepsHidden:  # Where its output is kept, a layer waits for the gradient of the output, too.
      assert (of_outputs[::-1][k] in done) == (k >= 2)


def test_what_comes_before_a_recomputed_layer_waits_for_its_weight_gradients():
  layers = [keras.layers.Dense(3, "tanh") for _ in range(2)]
  for layer in layers:
    layer.build((None, 3))

  @tf.function
  def gradients(x):
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(recompute(layers[1], recompute(layers[0], x)) ** 2)
    return tape.gradient(loss, [layer.trainable_variables for layer in layers])

  graph = gradients.get_concrete_function(tf.ones([2, 3])).graph
  last = [op for op in graph.get_operations() if op.type == "Tanh"][-1]  # The first layer's second run.
  before, after = ({producer(tensor) for tensor in graph.outputs[k : k + 2]} for k in (0, 2))
  assert after <= ancestors(last)
  assert not before & ancestors(last)


class Shares(keras.layers.Layer):
  """A dropout within a layer whose output is kept, and again after it; in half precision around a full one."""

  def __init__(self, dtype="float64", hidden=None):
    super().__init__(dtype=dtype)
    self.dropout = keras.layers.Dropout(0.5, seed=1, dtype=dtype)
    self.hidden = hidden or keras.Sequential([keras.layers.Dense(4, dtype="float32"), self.dropout])

  def build(self, input_shape):
    self.hidden.build(input_shape)

  def call(self, x, training=False):
    return self.dropout(keep_output(self.hidden, x, training), training=training)


@pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "graph"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 3e-2)])
def test_a_kept_layer_may_share_its_state_and_have_a_precision_of_its_own(run, dtype, tolerance):
  keras.utils.set_random_seed(1)
  chain = keeping(ReversibleChain([(Shares(dtype), Shares(dtype)) for _ in range(2)]), outputs=2)
  chain.build([(None, 4), (None, 4)])
  streams = [tf.constant(np.random.RandomState(seed).normal(size=(5, 4)), tf.float32) for seed in (1, 2)]
  assert_as_ordinary(chain, streams, run, tolerance)


@pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_a_kept_layer_that_reads_a_variable_of_others_is_refused(run):
  outside = tf.Variable(0.5, dtype=tf.float64, name="outside")
  hidden = keras.layers.Lambda(lambda x: outside * x, dtype="float64", name="hidden")
  units = [(Shares("float64", hidden), Shares("float64", hidden))]
  chain = keeping(ReversibleChain(units, dtype="float64"), outputs=1)
  call = run(lambda x: chain((x, x), training=True))
  with pytest.raises(
    ValueError,
    match="F of unit 0 .'shares.* reads the variable 'outside' otherwise than as one of its weights",
  ):
    call(tf.ones([2, 4], tf.float64))


class KeepsMasked(keras.layers.Layer):
  """A recurrent layer, which finds its mask on its input, behind one that makes the mask; both kept."""

  supports_masking = True

  def __init__(self):
    super().__init__(dtype="float64")
    self.parts = [
      keras.layers.Masking(dtype="float64"),
      keras.layers.GRU(4, return_sequences=True, dtype="float64"),
    ]

  def build(self, input_shape):
    for part in self.parts:
      part.build(input_shape)

  def call(self, x, training=False):
    for part in self.parts:
      x = keep_output(part, x, training)
    return x


@pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_kept_layers_hand_masks_on_in_both_runs(run):
  keras.utils.set_random_seed(2)
  units = [(KeepsMasked(), KeepsMasked()) for _ in range(2)]
  chain = keeping(ReversibleChain(units, dtype="float64"), outputs=2)
  chain.build([(None, 3, 4), (None, 3, 4)])
  x1, x2 = (np.random.RandomState(seed).normal(size=(2, 3, 4)) for seed in (1, 2))
  x2[:, 2] = 0  # Masked.
  assert_as_ordinary(chain, (tf.constant(x1), tf.constant(x2)), run, 1e-12)


@pytest.mark.parametrize("keep", ["statistics", ["activation"]])
def test_kinds_that_there_are_not_are_refused(keep):
  layer = keras.layers.Dense(3)
  layer.build((None, 3))
  for call in (lambda: Recompute(layer, keep), lambda: recompute(layer, tf.ones([2, 3]), keep=keep)):
    with pytest.raises(ValueError, match=f"keep must be a list of 'statistics', .* got .*{keep[-1][-5:]}"):
      call()
