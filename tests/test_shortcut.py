"""Chains with units that change the streams' shape, and so have no inverse: their streams are kept."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import (
  RUNS,
  Counted,
  Marked,
  ancestors,
  assert_as_ordinary,
  gradients_of,
  keeping,
  make_chain,
  rebuilt_streams,
  run_ops,
  traced_gradients,
)
from helpers import assert_close, values

from resnet.reversible import Additive, Rebuild, ReversibleChain, Scaled, Shortcut, Store


def shortcut_chain(changing=(0,), units=3, function=Counted, **kwargs):
  """Streams of 5 and 8 features, of which each unit in `changing` makes as many more."""
  keras.config.set_dtype_policy("float64")
  try:
    keras.utils.set_random_seed(5)
    widths, pairs, couplings = [5, 8], [], []
    for unit in range(units):
      more = unit in changing
      widths = [width + more for width in widths]
      pairs.append([function(width) for width in widths])
      couplings += [Shortcut(keras.layers.Dense(width)) if more else Additive() for width in widths]
    chain = ReversibleChain(pairs, coupling=couplings, **kwargs)
    chain.build([(None, 5), (None, 8)])
  finally:
    keras.config.set_dtype_policy("float32")
  random = np.random.RandomState(4)
  return chain, [tf.constant(random.normal(size=(6, width))) for width in (5, 8)]


@pytest.mark.parametrize(
  ("run", "changing", "units", "loop", "kept"),
  [
    ("graph", (0,), 3, False, {}),
    ("eager", (0, 2), 3, False, {}),
    ("graph", (1,), 3, False, {"streams": 2}),
    ("eager", (0, 1), 3, False, {"everything": 2}),
    ("graph", (0,), 3, True, {}),
    ("eager", (0,), 1, True, {}),
    ("graph", (2,), 5, True, {}),
  ],
  ids=str,
)
def test_gradients_are_those_of_ordinary_backprop(run, changing, units, loop, kept):
  chain, streams = shortcut_chain(changing, units, backward=Rebuild(loop=loop))
  chain = keeping(chain, **kept) if kept else chain
  y1, y2 = chain(streams)
  assert (y1.shape[1], y2.shape[1]) == (5 + len(changing), 8 + len(changing))
  assert chain.compute_output_shape([(None, 5), (None, 8)]) == [(None, y1.shape[1]), (None, y2.shape[1])]
  assert_as_ordinary(chain, streams, RUNS[run])


def test_a_loop_comes_after_a_first_unit_of_another_kind():
  keras.utils.set_random_seed(2)
  pairs = [(Counted(5), Counted(8, rate=0.5)), *((Counted(5), Counted(8)) for _ in range(3))]
  chain = ReversibleChain(pairs, backward=Rebuild(loop=True))
  chain.build([(None, 5), (None, 8)])
  for function in chain.functions:
    function.inputs.clear()
  streams = [tf.constant(np.random.RandomState(7).normal(size=(6, width)), tf.float32) for width in (5, 8)]
  state = values(chain.non_trainable_variables)
  looped = gradients_of(chain, streams, state, tf.function)
  assert [len(function.inputs) for function in chain.functions] == [3] * 4 + [
    0
  ] * 4  # Inspected, forward, back.
  chain.backward = Store()
  for one, other in zip(looped, gradients_of(chain, streams, state, tf.function), strict=True):
    assert_close(one, other, 1e-4)


def test_the_layer_on_the_shortcut_does_not_run_again_and_f_waits_for_g():
  chain, streams = shortcut_chain((0,), units=1)
  graph, d_weights = traced_gradients(chain, streams)
  # A Dense in each function, which its output does not need again, and one on each shortcut; and gradients.
  forward, of_weights, of_inputs = 4, 4, 4
  products = [op for op in run_ops(graph) if op.type == "MatMul"]
  again = 2  # in F and G, whose tanh needs them
  assert len(products) == forward + of_weights + of_inputs + again
  second_run_of_f = [op for op in graph.get_operations() if op.type == "Tanh"][-1]
  assert d_weights[1] <= ancestors(second_run_of_f)


def test_what_has_no_inverse_is_refused_or_left_out():
  chain, streams = shortcut_chain((0,))
  with pytest.raises(ValueError, match="has no inverse, since its Shortcut has none"):
    chain.inverse(chain(streams))
  error = float(chain.reconstruction_error(streams))
  assert 0 < error < 1e-14
  pairs = [(keras.layers.Dense(4), keras.layers.Dense(8))]
  chain = ReversibleChain(pairs, coupling=[Shortcut(keras.layers.Dense(6)), Additive()])
  with pytest.raises(ValueError, match=r"F of unit 0 .* gives shape \(None, 4\) to a stream of .*\(None, 6\)"):
    chain.build([(None, 5), (None, 8)])


def test_couplings_of_each_function_are_used_as_they_are_and_saved():
  chain, streams = shortcut_chain((0, 1), function=keras.layers.Dense)
  copy = ReversibleChain.from_config(chain.get_config())
  copy.build([(None, 5), (None, 8)])
  assert copy.get_config() == chain.get_config()
  for variable, value in zip(copy.variables, values(chain.variables), strict=True):
    variable.assign(value)
  assert_close(list(copy(streams)), list(chain(streams)), 1e-12)
  scaled = [Scaled(0.5), Additive(), Scaled(2.0), Additive()]
  pairs = [[keras.layers.Dense(4) for _ in "FG"] for _ in range(2)]
  assert ReversibleChain(pairs, coupling=scaled).couplings == scaled
  with pytest.raises(ValueError, match="or a list of one for each of the 4 functions"):
    ReversibleChain(pairs, coupling=scaled[:3])


def test_on_a_grid_a_shortcut_gives_numbers_on_the_grid():
  chain, streams = shortcut_chain((0,), grid_bits=10)
  for y in chain(streams, training=True):
    np.testing.assert_array_equal(y * 2**10, np.round(y * 2**10))
  assert chain.reconstruction_error(streams) == 0
  assert_as_ordinary(chain, streams, tf.function)


def test_streams_kept_by_a_plain_chain_are_not_rebuilt():
  rebuilt = []
  for kept in (0, 2):
    chain, streams = make_chain(3, coupling=Marked())
    graph, _ = traced_gradients(keeping(chain, streams=kept), streams)
    rebuilt.append(len(rebuilt_streams(graph)))
  assert rebuilt == [5, 1]  # Two streams of each unit that does not keep them, but for the first x1.


def test_the_gradients_of_a_stage_are_there_before_the_stages_before_it_are_undone():
  names = ["first", "second", "third", "last"]
  functions = [keras.layers.Dense(4, "tanh", name=f"{name}_{letter}") for name in names for letter in "fg"]
  shortcuts = [Shortcut(keras.layers.Dense(4)) for _ in "FG"]
  couplings = [Additive(), Additive(), Additive(), Additive(), *shortcuts, Additive(), Additive()]
  chain = ReversibleChain(list(zip(functions[::2], functions[1::2], strict=True)), couplings)
  chain.build([(3, 4), (3, 4)])

  def gradients(x):
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(chain((x, 2 * x))[0] ** 2)
    return tape.gradient(loss, [functions[0].kernel, functions[-1].kernel])

  graph = tf.function(gradients).get_concrete_function(tf.TensorSpec([3, 4])).graph
  of_first, of_last = (needed(tensor.op) for tensor in graph.outputs)
  assert any("gradient_tape/first_f" in op.name for op in of_first)
  assert not any("gradient_tape/second_f" in op.name for op in of_last)


def needed(op):
  """The ops that one waits for."""
  found, todo = {op}, [op]
  while todo:
    op = todo.pop()
    before = {*(tensor.op for tensor in op.inputs), *op.control_inputs} - found
    found |= before
    todo += before
  return found
