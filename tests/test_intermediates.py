"""The streams after some units of a chain, and chains of some of its units."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import RUNS, KeepsHidden, keeping
from helpers import assert_close, values

from resnet.reversible import ActivationPlan, Additive, Rebuild, ReversibleChain, Shortcut, Store, Swap
from resnet.reversible.backward import EVERYTHING, NOTHING

BACKWARD = {
  "Store": Store(),
  "least": Rebuild(),
  "auto": Rebuild("auto"),
  "all": Rebuild("all"),
  "loop": Rebuild(loop=True),
}
UNITS = 7


def make_chain(backward, units=UNITS, like=None):
  """The first units of a chain in which unit 2 changes the shape, the layer 4 swaps, and others are alike."""
  keras.config.set_dtype_policy("float64")
  try:
    keras.utils.set_random_seed(0)
    given: list = [(KeepsHidden(4), KeepsHidden(4)) for _ in range(2)]
    given += [(KeepsHidden(6), KeepsHidden(6)), (KeepsHidden(6), KeepsHidden(6)), Swap()]
    given += [(KeepsHidden(6), KeepsHidden(6)) for _ in range(2)]
    couplings = [Shortcut(keras.layers.Dense(6)) if k in (4, 5) else Additive() for k in range(12)]
    given = list(like.units if like else given)[:units]
    functions = 2 * sum(isinstance(unit, tuple) for unit in given)
    couplings = (like.couplings if like else couplings)[:functions]
    chain = ReversibleChain(given, coupling=list(couplings), backward=backward)
    chain.build([(None, 4)] * 2)
  finally:
    keras.config.set_dtype_policy("float32")
  return chain, [tf.constant(np.random.RandomState(seed).normal(size=(5, 4))) for seed in (1, 2)]


def run_from(state, chain, streams, call, run):
  """(streams, gradients of a loss of all, state afterwards), from the given state."""
  for variable, value in zip(chain.non_trainable_variables, state, strict=True):
    variable.assign(value)

  def step(*streams):
    with tf.GradientTape() as tape:
      tape.watch(streams)
      found = tf.nest.flatten(call(list(streams)))
      loss = tf.add_n([tf.reduce_sum(tf.sin((k + 1) * y)) for k, y in enumerate(found)])
    sources = [*streams, *[variable.value for variable in chain.trainable_variables]]
    return found, tape.gradient(loss, sources, unconnected_gradients="zero")

  found, gradients = run(step)(*streams)
  return found, gradients, values(chain.non_trainable_variables)


AFTER = [[0, 3, 6], [1, 4], [2]]


@pytest.mark.parametrize(
  ("backward", "units", "run"),
  [
    (backward, AFTER[(k + n) % 3], run)
    for k, backward in enumerate(BACKWARD)
    for n, run in enumerate(("graph", "eager"))
  ],
)
def test_streams_gradients_and_updates_are_those_of_plain_keras(backward, units, run):
  chain, streams = make_chain(BACKWARD[backward])
  state = values(chain.non_trainable_variables)

  def call_by_hand(streams):
    (x1, x2), found = streams, []
    add = keras.layers.Add(dtype="float64")
    for number, unit in enumerate(chain.units[: units[-1] + 1]):
      if isinstance(unit, Swap):
        x1, x2 = x2, x1
      else:
        first = 2 * (number - (number > 4))
        skips = [
          c.layer if isinstance(c, Shortcut) else lambda x: x for c in chain.couplings[first : first + 2]
        ]
        x1 = add([skips[0](x1), unit[0](x2, training=True)])
        x2 = add([skips[1](x2), unit[1](x1, training=True)])
      found += [(x1, x2)] if number in units else []
    return found

  ours = run_from(state, chain, streams, lambda x: chain.intermediates(x, units, training=True), RUNS[run])
  right = run_from(state, chain, streams, call_by_hand, RUNS[run])
  assert len(ours[0]) == 2 * len(units)
  for one, other in zip(ours, right, strict=True):
    assert_close(one, other, 1e-12)


@pytest.mark.parametrize("backward", BACKWARD)
def test_they_are_what_shorter_chains_give(backward):
  chain, streams = make_chain(BACKWARD[backward])
  found = chain.intermediates(streams, range(UNITS))
  for units, after in enumerate(found, start=1):
    shorter, _ = make_chain(Store(), units, like=chain)
    assert_close(after, shorter(streams), 1e-12)
  assert_close(found[-1], chain(streams), 1e-12)


def test_of_what_is_kept_by_steps_on_both_sides_of_a_cut():
  chain, streams = make_chain(Rebuild())
  state, found = values(chain.non_trainable_variables), []
  for way in (keeping(chain, streams=6, outputs=6, everything=3), chain):
    found.append(
      run_from(state, chain, streams, lambda x: chain.intermediates(x, [0, 4, 6], training=True), tf.function)
    )
    way.backward = Store()
  for one, other in zip(*found, strict=True):
    assert_close(one, other, 1e-12)


@pytest.mark.parametrize("stored", [0, 1])
def test_f_and_g_of_a_unit_in_segments_of_their_own(stored):
  chain, streams = make_chain(Rebuild("auto"))
  kept = [EVERYTHING if step.source == stored else NOTHING for step in chain._steps()]
  chain._plan = lambda *_: ActivationPlan(0, 0, tuple(kept))
  found = chain.intermediates(streams, range(UNITS))
  chain.backward = Store()
  for one, other in zip(found, chain.intermediates(streams, range(UNITS)), strict=True):
    assert_close(one, other, 1e-12)


@pytest.mark.parametrize("backward", BACKWARD)
def test_chains_of_its_units_one_after_the_other_are_the_whole(backward):
  chain, streams = make_chain(BACKWARD[backward])
  state = values(chain.non_trainable_variables)
  cuts = [(0, 0), (1, 2), (4, 8), (5, 8), (7, 12)]  # Units and couplings; among them the Swap alone.

  def by_parts(streams):
    for (first, coupling), (last, next_coupling) in itertools.pairwise(cuts):
      units, couplings = chain.units[first:last], chain.couplings[coupling:next_coupling]
      streams = ReversibleChain(units, couplings, chain.backward, dtype="float64")(streams, training=True)
    return streams

  ours = run_from(state, chain, streams, by_parts, lambda f: f)
  right = run_from(state, chain, streams, lambda x: chain(x, training=True), lambda f: f)
  for one, other in zip(ours, right, strict=True):
    assert_close(one, other, 1e-12)
