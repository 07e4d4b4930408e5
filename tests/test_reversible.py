"""The engine: exact gradients, nothing stored, state moved once, on functions of any kind."""

import ast
import collections
import functools
import gc
import re
import subprocess
import sys
import traceback
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import (
  Counted,
  Marked,
  all_ops,
  ancestors,
  assert_as_ordinary,
  gradients_of,
  keeping,
  loops,
  make_chain,
  rebuilt_streams,
  traced_gradients,
)
from helpers import ROOT, assert_close, values

from resnet.reversible import Rebuild, ReversibleChain, Store, Swap


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_chain_agrees_with_ordinary_backprop(run, loop):
  chain, streams = make_chain()
  chain.backward = Rebuild(loop=loop)
  state = values(chain.non_trainable_variables)
  actual = gradients_of(chain, streams, state, run)
  chain.backward = Store()
  expected = gradients_of(chain, streams, state, run)
  for one, other in zip(actual, expected, strict=True):
    assert_close(one, other, 1e-12)
  moved = [np.any(before != after) for before, after in zip(state, actual[2], strict=True)]
  assert all(moved), "moving statistics and dropout seeds must move"


@pytest.mark.parametrize("loop", [False, True])
def test_chain_agrees_when_compiled_by_xla(loop):
  chain, streams = make_chain()
  chain.backward = Rebuild(loop=loop)
  # XLA on the CPU has no kernel for dropout's stateful seed; the rest of the function is compiled.
  for function in chain.functions:
    function.parts = function.parts[:2]
  state = values(chain.non_trainable_variables)
  actual = gradients_of(chain, streams, state, lambda f: tf.function(f, jit_compile=True))
  chain.backward = Store()
  expected = gradients_of(chain, streams, state)
  for one, other in zip(actual, expected, strict=True):
    assert_close(one, other, 1e-12)


def test_the_inverse_gives_the_inputs_back():
  chain, streams = make_chain()
  before = values(chain.non_trainable_variables)
  rebuilt = chain.inverse(chain(streams))
  for actual, expected in zip(rebuilt, streams, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)
  assert_close(values(chain.non_trainable_variables), before, 0)


def test_every_function_runs_twice_and_on_the_true_input():
  chain, streams = make_chain()
  gradients_of(chain, streams, values(chain.non_trainable_variables))
  for function in chain.functions:
    inspected, forward, rebuilt = function.inputs
    assert tf.is_symbolic_tensor(inspected)
    np.testing.assert_allclose(rebuilt, forward, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
  ("backward", "most"),
  [(Store(), 3), (Rebuild(), 5), (Rebuild("auto"), 5), (Rebuild("all"), 5), (Rebuild(loop=True), 8)],
  ids=str,
)
def test_few_frames_of_the_engine_lie_between_a_call_and_a_function(backward, most):
  class Traced(keras.layers.Dense):
    def call(self, x):
      frames = traceback.extract_stack()
      self.frames = [f for f in frames if re.search("resnet/(reversible|recomputation)/", f.filename)]
      return super().call(x)

  units = [(keras.layers.Dense(4), Traced(4)) for _ in range(2)]
  ReversibleChain(units, backward=backward)([tf.ones([2, 4])] * 2)
  frames = units[0][1].frames  # The last run is the forward pass: building and inspection come before.
  assert frames[0].name == "call"
  assert any(f.name == "body" for f in frames) == backward.loop
  assert 3 <= len(frames) <= most


def test_eager_forward_pass_keeps_no_activation():
  chain, streams = make_chain()
  outputs_of_functions = []

  def probe(function, x, training):
    y = type(function).call(function, x, training)
    outputs_of_functions.append(weakref.ref(y))
    return y

  for function in chain.functions:
    function.call = functools.partial(probe, function)
  for chain.backward, kept in ((Rebuild(), 0), (Store(), 6)):
    with tf.GradientTape() as tape:
      tape.watch(streams)
      outputs = chain(streams, training=True)
    for function in chain.functions:
      function.inputs.clear()
    gc.collect()
    assert sum(reference() is not None for reference in outputs_of_functions) == kept
    assert tape.gradient(outputs, streams)[0] is not None
    del tape, outputs
    outputs_of_functions.clear()


def test_a_function_is_rebuilt_after_the_weight_gradients_of_those_after_it():
  chain, streams = make_chain()
  graph, d_weights = traced_gradients(chain, streams)
  tanh = [op for op in graph.get_operations() if op.type == "Tanh"]
  functions = len(chain.functions)
  assert len(tanh) == 2 * functions
  for k, rebuilt in enumerate(reversed(tanh[functions:])):
    done = ancestors(rebuilt)
    assert set().union(*d_weights[k + 1 :]) <= done, f"function {k} is rebuilt too early"
    assert not set().union(*d_weights[: k + 1]) & done


def test_gradients_wait_until_the_stream_is_rebuilt_which_frees_what_it_is_rebuilt_from():
  functions = [keras.layers.Dense(4) for _ in range(6)]
  chain = keeping(ReversibleChain(list(zip(functions[::2], functions[1::2])), coupling=Marked()), streams=1)
  chain.build([(None, 4), (None, 4)])
  graph, d_weights = traced_gradients(chain, [tf.ones([6, 4])] * 2)
  # Not x1 of the first unit, which nothing needs, and not the streams of the last unit, which are kept.
  rebuilt = rebuilt_streams(graph)
  assert len(rebuilt) == 3
  waited_for = [{op for op in rebuilt if op in ancestors(*of_weights)} for of_weights in d_weights]
  assert [len(ops) for ops in waited_for] == [3, 3, 2, 1, 0, 0]


def test_x1_before_a_loop_is_not_rebuilt():
  functions = [keras.layers.Dense(4, "tanh" if k < 2 else None) for k in range(6)]
  chain = ReversibleChain(
    list(zip(functions[::2], functions[1::2])), backward=Rebuild(loop=True), coupling=Marked()
  )
  chain.build([(None, 4), (None, 4)])
  graph, _ = traced_gradients(chain, [tf.ones([6, 4])] * 2)
  assert len(rebuilt_streams(graph)) == 1  # x2: those in the loop are in a graph of their own.


def test_streams_keep_their_dtype_when_functions_compute_in_half_precision():
  chain, streams = make_chain(dtype="mixed_bfloat16")
  state = values(chain.non_trainable_variables)
  chain(streams, training=True)  # Traces each function once.
  for function in chain.functions:
    function.inputs.clear()
  actual = gradients_of(chain, streams, state)
  assert [y.dtype for y in actual[0]] == [tf.float32] * 2
  assert all(np.asarray(x).dtype != np.float32 for function in chain.functions for x in function.inputs)
  for function in chain.functions:
    forward, rebuilt = function.inputs
    assert np.mean(np.asarray(forward) == np.asarray(rebuilt)) > 0.98  # Up to a rounding of float32.
  chain.backward = Store()
  expected = gradients_of(chain, streams, state)
  assert_close(actual[0], expected[0], 1e-6)
  assert_close(actual[1], expected[1], 2e-2)  # bfloat16 has 8 bits.


def test_a_loop_has_the_ops_of_one_unit_whatever_the_depth():
  ops = {}
  for units in (2, 5):
    for loop in (False, True):
      chain, streams = make_chain(units)
      chain.backward = Rebuild(loop=loop)
      state = values(chain.non_trainable_variables)
      graphs = []

      def traced(function, graphs=graphs, streams=streams):
        function = tf.function(function)
        graphs.append(function.get_concrete_function(*streams).graph)
        return function

      gradients_of(chain, streams, state, traced)
      (graph,) = graphs
      ops[units, loop] = collections.Counter(op.type for op in all_ops(graph))
  products = {case: (counts["MatMul"], counts["Tanh"]) for case, counts in ops.items()}
  # Each function: a product forward, one again, two for its gradients.
  assert products[2, False] == (2 * 2 * 4, 2 * 2 * 2)
  assert products[5, False] == (5 * 2 * 4, 5 * 2 * 2)
  assert products[2, True] == (2 * 4, 2 * 2)
  variables = {"Placeholder", "ReadVariableOp", "Identity", "AssignVariableOp"}  # Reading and updating them.
  shallow, deep = ({k: n for k, n in ops[units, True].items() if k not in variables} for units in (2, 5))
  assert shallow == deep


def test_rows_of_units_that_are_alike_are_loops_and_others_are_unrolled():
  keras.utils.set_random_seed(3)
  rates = (0.5, 0.2, 0.2, 0.2, 0.4, 0.3, 0.3)  # A row of three, and one of two.
  chain = ReversibleChain([(Counted(5), Counted(8, rate)) for rate in rates], backward=Rebuild(loop=True))
  chain.build([(None, 5), (None, 8)])
  for function in chain.functions:
    function.inputs.clear()
  streams = [tf.constant(np.random.RandomState(7).normal(size=(6, width)), tf.float32) for width in (5, 8)]
  assert loops(chain, streams) == 2 * 2  # forward and back
  traced = [3 * (len(function.inputs) > 0) for function in chain.functions]
  assert traced == [len(function.inputs) for function in chain.functions]  # Inspected, forward, back.
  assert [n > 0 for n in traced[::2]] == [True, True, False, False, True, True, False]
  assert_as_ordinary(chain, streams, tf.function, 1e-4)


def test_frozen_functions_and_unused_weights_have_no_or_zero_gradients():
  chain, streams = make_chain(units=1)
  chain.functions[0].trainable = False
  state = values(chain.non_trainable_variables)
  _, gradients, _ = gradients_of(chain, streams, state)
  assert len(gradients) == 2 + len(chain.functions[1].trainable_variables)
  chain.backward = Store()
  assert_close(gradients, gradients_of(chain, streams, state)[1], 1e-12)


def test_nothing_moves_outside_training():
  chain, streams = make_chain()
  state = values(chain.non_trainable_variables)
  with tf.GradientTape() as tape:
    outputs = chain(streams, training=False)
    loss = tf.reduce_sum(outputs[0])
  assert tape.gradient(loss, chain.trainable_variables[0]) is not None
  assert_close(values(chain.non_trainable_variables), state, 0)


def test_chain_survives_serialisation():
  for backward in (Store(), Rebuild(), Rebuild(2e9), Rebuild("auto", loop=True)):
    units = [(keras.layers.Dense(4, name="f"), keras.layers.Dense(4, name="g")), Swap()]
    chain = ReversibleChain(units, backward=backward, log_det=True, grid_bits=14, name="chain")
    copy = ReversibleChain.from_config(chain.get_config())
    assert copy.get_config() == chain.get_config()
    assert (copy.name, copy.backward, copy.log_det, copy.grid_bits) == ("chain", backward, True, 14)
    assert (len(copy.units), len(copy.functions)) == (2, 2)


def test_chain_in_a_functional_model():
  inputs = keras.Input([8])
  units = [(keras.layers.Dense(4), keras.layers.Dense(4)) for _ in range(2)]
  streams = ReversibleChain(units)(tuple(keras.ops.split(inputs, 2, axis=-1)))
  model = keras.Model(inputs, keras.layers.Dense(1)(keras.ops.concatenate(streams, axis=-1)))
  model.compile("sgd", "mse")
  x = np.random.RandomState(8).normal(size=(32, 8)).astype("float32")
  losses = model.fit(x, x[:, :1], epochs=5, verbose=0).history["loss"]
  assert losses[-1] < losses[0]


def test_units_that_are_none_are_refused():
  with pytest.raises(
    ValueError, match=r"units must be a list of \(F, G\) and of Invertible layers; unit 1 is .*Dense"
  ):
    ReversibleChain([Swap(), (keras.layers.Dense(4),)])
  with pytest.raises(ValueError, match="unit 0 is <Dense"):
    ReversibleChain([keras.layers.Dense(4)])


def test_the_engine_is_a_package_of_its_own():
  for package in ("reversible", "recomputation"):
    for path in (ROOT / "resnet" / package).glob("*.py"):
      text = path.read_text(encoding="utf-8")
      imported = re.findall(r"^\s*(?:from|import) ([\w.]+)", text, re.MULTILINE)
      private = [name for name in imported if ".python" in name or name.startswith("keras.src")]
      assert not private or path.name == "private_apis.py"
  code = "import sys, resnet.reversible; print([name for name in sys.modules if name.startswith('resnet.')])"
  process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  packages = {name.split(".")[1] for name in ast.literal_eval(process.stdout)}
  assert packages == {"reversible", "recomputation"}
