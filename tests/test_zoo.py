"""Manual gradients are ordinary backpropagation's for functions, couplings, forms and runs of all kinds."""

import functools
import gc
import json
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import RUNS
from helpers import ROOT, assert_close, start, values
from keras.src import testing
from zoo import KINDS, SHARED, mixture

from resnet.reversible import Additive, Affine, Rebuild, Recompute, ReversibleChain, Scaled, Store

UNITS = 3
COUPLINGS = {
  "additive": Additive(),
  "leapfrog": Scaled(-1),
  "momentum": (Scaled(0.8), Additive()),
  "trained scale": Scaled(0.9, trained=True),
  "affine": Affine(bound=1.0),
}
TOLERANCES = {"float64": 1e-10, "float32": 2e-5, "float16": 2e-2, "mixed_float16": 2e-2, "mixed_bfloat16": 4e-2}


@functools.cache
def make_chain(kind, coupling="additive", grid_bits=None):
  """A built chain, its state, streams and arguments."""
  keras.utils.set_random_seed(1)
  SHARED.clear()
  kind = KINDS[kind]
  make = functools.partial(mixture, width=8) if coupling == "affine" else kind.make
  units = [[make(kind.dtype) for _ in "FG"] for _ in range(UNITS)]
  dtype = "float64" if kind.dtype == "float64" else "float32"
  chain = ReversibleChain(units, coupling=COUPLINGS[coupling], grid_bits=grid_bits, dtype=dtype)
  chain.build([(None, *kind.shape)] * 2)
  random = np.random.RandomState(2)
  streams = [tf.constant(random.normal(size=(3, *kind.shape)), dtype) for _ in "12"]
  arguments = tf.nest.map_structure(tf.constant, kind.arguments)
  return chain, values(chain.non_trainable_variables), streams, arguments


def gradients(run, chain, state, streams, arguments):
  """[outputs, gradients of streams, weights and arguments, state afterwards]."""
  for variable, value in zip(chain.non_trainable_variables, state, strict=True):
    variable.assign(value)
  floats = [x for x in tf.nest.flatten(arguments) if x.dtype.is_floating]

  def compute(streams, arguments):
    floats = [x for x in tf.nest.flatten(arguments) if x.dtype.is_floating]
    with tf.GradientTape() as tape:
      tape.watch((streams, floats))
      y1, y2 = chain(streams, training=True, **arguments)
      loss = tf.reduce_sum(tf.sin(y1)) + tf.reduce_sum(y2**2)
    sources = [*streams, *floats, *chain.trainable_variables]
    return [y1, y2], tape.gradient(loss, sources, unconnected_gradients="zero")

  outputs, found = run(compute)(streams, arguments)
  assert len(found) == 2 + len(floats) + len(chain.trainable_variables)
  return outputs, found, values(chain.non_trainable_variables)


@functools.cache
def by_ordinary_backprop(kind, coupling, grid_bits, run):
  chain, *rest = make_chain(kind, coupling, grid_bits)
  chain.backward = Store()
  return gradients(RUNS[run], chain, *rest)


def require_equal(kind, loop, run, coupling="additive", grid_bits=None):
  chain, *rest = make_chain(kind, coupling, grid_bits)
  dtype = KINDS[kind].dtype
  # XLA draws other random numbers, and in half precision the order shows in which a graph computes.
  same_run = dtype != "float64" or "dropout" in kind
  expected = by_ordinary_backprop(kind, coupling, grid_bits, run if same_run else "eager")
  chain.backward = Rebuild(loop=loop)
  actual = gradients(RUNS[run], chain, *rest)
  for one, other in zip(actual, expected, strict=True):
    if grid_bits and dtype != "float64" and run != "XLA":
      assert all(np.array_equal(a, e) for a, e in zip(one, other, strict=True))
    else:
      assert_close(one, other, TOLERANCES[dtype])
  for before, after in zip(rest[0], actual[2], strict=True):
    if kind in ("counter", "dropout", "sequential and dropout"):
      assert np.any(before != after)


def by_turns(names, *runs):
  """[name, loop, run]: each name in each of the runs, unrolled and as a loop by turns."""
  return [(name, (k + r) % 2 == 1, run) for k, name in enumerate(names) for r, run in enumerate(runs)]


@pytest.mark.parametrize(("kind", "loop", "run"), by_turns(KINDS, "graph", "XLA"))
def test_every_kind_in_a_graph_and_by_xla_in_one_form_each(kind, loop, run):
  require_equal(kind, loop, run)


# Eager, all kinds; where the order of sums shows, in graphs, too.
NARROW = [name for name, kind in KINDS.items() if kind.dtype != "float64"]
WIDE = [name for name in KINDS if name not in NARROW]


@pytest.mark.parametrize(("kind", "loop", "run"), by_turns(WIDE, "eager") + by_turns(NARROW, "eager", "graph"))
def test_every_kind_on_a_grid(kind, loop, run):
  require_equal(kind, loop, run, grid_bits=14)
  chain, _, streams, arguments = make_chain(kind, "additive", 14)
  assert chain.reconstruction_error(streams, **arguments) == 0


@pytest.mark.parametrize(
  ("coupling", "loop", "run"), by_turns([name for name in COUPLINGS if name != "additive"], *RUNS)
)
def test_every_coupling_in_every_run_by_one_form(coupling, loop, run):
  require_equal("sequential and dropout", loop, run, coupling)


@pytest.mark.parametrize("loop", [False, True])
def test_leapfrog_on_a_grid(loop):
  require_equal("sequential and dropout", loop, "graph", "leapfrog", grid_bits=12)


def test_synchronised_batch_norm_on_two_devices(tmp_path):
  # In a process of its own: TensorFlow numbers what devices exchange, anew for each strategy.
  process = start("tests/synchronised_batch_norm.py", cwd=tmp_path, PYTHONPATH=str(ROOT))
  assert process.returncode == 0, process.stderr
  manual, ordinary = (list(map(np.float32, gradients)) for gradients in json.loads(process.stdout))
  assert len(manual) == 2 * (2 + 8)
  assert_close(manual, ordinary, 1e-4)
  assert np.any(manual[4] != manual[5])  # Replicas have parts of their own.


@pytest.mark.parametrize("kind", ["dense", "layer norm", "no weights", "frozen"])
def test_what_is_stored_does_not_grow_with_the_units(kind):
  living = {}
  for units in (2, 5):
    kind_of = KINDS[kind]
    chain = ReversibleChain([[kind_of.make("float64") for _ in "FG"] for _ in range(units)], dtype="float64")
    chain.build([(None, *kind_of.shape)] * 2)
    outputs = []

    def probe(function, *args, outputs=outputs, **kwargs):
      y = type(function).call(function, *args, **kwargs)
      outputs.append(weakref.ref(y))
      return y

    for function in chain.functions:
      function.call = functools.partial(probe, function)
    x = [tf.random.stateless_normal([3, *kind_of.shape], [k, 0], dtype=tf.float64) for k in (1, 2)]
    for chain.backward in (Rebuild(), Store()):
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = chain(x, training=True)
      gc.collect()
      living[units, chain.backward] = sum(reference() is not None for reference in outputs)
      assert tape.gradient(y, x)[0] is not None
      del tape, y
      outputs.clear()
  assert living[2, Rebuild()] == living[5, Rebuild()] == 0
  assert living[5, Store()] > living[2, Store()] > 0


def test_layers_pass_the_tests_of_keras():
  case = testing.TestCase()
  case.run_layer_test(
    ReversibleChain,
    {"units": [[keras.layers.Dense(units, "tanh") for units in (3, 4)] for _ in range(2)]},
    input_shape=((2, 3), (2, 4)),
    expected_output_shape=((2, 3), (2, 4)),
    expected_num_trainable_weights=8,
    supports_masking=True,
  )
  case.run_layer_test(
    Recompute,
    {"layer": keras.layers.Dense(3)},
    input_shape=(2, 4),
    expected_output_shape=(2, 3),
    expected_num_trainable_weights=2,
    supports_masking=True,
  )
