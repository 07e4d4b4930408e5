"""What chains keep: the same gradients for whatever is kept, and the estimate of its memory."""

import collections
import dataclasses
import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import RUNS, Counted, KeepsHidden, assert_as_ordinary, make_chain, run_ops, traced_gradients
from helpers import assert_close, copy_of, make_batch, make_model, values

from resnet.configs import get_config
from resnet.models import get_model
from resnet.reversible import Additive, InvertibleDense, Rebuild, ReversibleChain, Shortcut, Store, Swap
from resnet.reversible.backward import EVERYTHING, NOTHING
from resnet.reversible.plan import AUTO
from resnet.training.step import loss_and_gradients

# MB an image that XLA plans for an H100, by network, dtype and activation_memory; "all" is ordinary
# backpropagation.
MEASURED = {
  ("revnet-110", "float32"): {"least": 0.63, "auto": 1.02, "all": 9.38},
  ("revnet-110", "mixed_bfloat16"): {"least": 0.47, "auto": 0.73, "all": 5.15},
  ("revnet-104", "float32"): {"least": 27.3, "auto": 47.7, "all": 127.3},
  ("revnet-104", "mixed_bfloat16"): {"least": 22.8, "auto": 35.3, "all": 78.5},
}


def deep_chain(keep, units=8, function=KeepsHidden):
  return make_chain(units, 40, 60, function=function, backward=Rebuild(keep))


def test_the_more_memory_the_more_is_kept_and_no_more_than_fits():
  chain, streams = deep_chain("least")
  least = chain.plan(streams)
  chain.backward = Rebuild("all")
  most = chain.plan(streams)
  assert set(least.kept) == {NOTHING}
  assert set(most.kept) == {EVERYTHING}
  assert least.bytes == least.least == most.least < most.bytes / 4
  plans = []
  for budget in np.geomspace(least.bytes / 2, 2 * most.bytes, 6):
    chain.backward = Rebuild(budget)
    plans.append(chain.plan(streams))
    assert plans[-1].bytes <= max(budget, least.least)
    assert plans[-1].bytes == least.bytes or plans[-1].bytes > 0.6 * min(budget, most.bytes)
  sizes = [plan.bytes for plan in plans]
  assert sizes == sorted(sizes)
  assert len(set(sizes)) > 3
  assert plans[0] == least
  assert plans[-1] == most


def test_auto_is_within_its_share_of_the_least():
  chain, streams = deep_chain("auto")
  plan = chain.plan(streams)
  assert 1.3 * plan.least < plan.bytes <= AUTO * plan.least == 1.75 * plan.least
  assert set(plan.kept) > {NOTHING}


@pytest.mark.parametrize("keep", ["least", "auto"])
def test_memory_does_not_grow_with_depth_unless_all_is_stored(keep):
  sizes = [chain.plan(streams).bytes for chain, streams in (deep_chain(keep, units) for units in (4, 12))]
  assert sizes[1] == pytest.approx(sizes[0], rel=0.2)
  shallow, deep = (
    chain.plan(streams).bytes for chain, streams in (deep_chain("all", units) for units in (4, 12))
  )
  assert deep == pytest.approx(3 * shallow, rel=0.1)


def test_the_estimate_of_stored_activations_is_what_can_be_counted():
  """Of y = x + tanh(W z) the tanh is stored, and z; the first x is not needed."""
  chain = ReversibleChain([[keras.layers.Dense(50, "tanh") for _ in "FG"] for _ in range(10)], backward=Store())
  streams = [tf.ones([70, 50])] * 2
  stored = (2 * 20 + 1) * 70 * 50 * 4
  assert chain.plan(streams).bytes == pytest.approx(stored, rel=0.15)


@pytest.mark.parametrize(
  ("keep", "function", "run"),
  [
    (keep, function, ("eager", "graph")[(k + n) % 2])
    for k, keep in enumerate(["auto", "all", 5_000, 8_000.0, 12_000])
    for n, function in enumerate([Counted, KeepsHidden])
  ],
)
def test_gradients_and_updates_are_those_of_ordinary_backprop(keep, function, run):
  chain, streams = make_chain(4, function=function, backward=Rebuild(keep))
  assert set(chain.plan(streams).kept) != {NOTHING}
  assert_as_ordinary(chain, streams, RUNS[run])


def test_what_is_kept_is_not_run_again():
  again = []
  for keep in ("least", 7_000, 10_000, 12_000, "all"):
    chain, streams = make_chain(4, function=KeepsHidden, backward=Rebuild(keep))
    graph, _ = traced_gradients(chain, streams)
    kinds = collections.Counter(op.type for op in run_ops(graph))
    again.append(kinds["Sin"] + kinds["Tanh"] + kinds["MatMul"])
  ordinary = 8 + 8 + (8 + 8 + 7)  # Products: forward, for weights, and for the inputs of all but the first F.
  assert all(later < sooner for sooner, later in itertools.pairwise(again))
  assert again[-1] == ordinary


def test_a_budget_is_for_the_batch_of_the_call():
  chain, streams = deep_chain(60_000.0)
  of_six = chain.plan(streams)
  assert of_six.bytes > of_six.least
  many = chain.plan([tf.TensorSpec([600, *x.shape[1:]], x.dtype) for x in streams])
  assert many.bytes == many.least == pytest.approx(100 * of_six.least, rel=0.1)
  assert set(many.kept) == {NOTHING}


def test_without_a_known_batch_an_amount_keeps_nothing_and_the_words_what_they_say():
  for keep, kept in ((1e12, "least"), ("least", "least"), ("auto", "auto"), ("all", "all")):
    chain, streams = deep_chain(keep)
    specs = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in streams]
    unknown = chain.plan(specs)
    chain.backward = Rebuild(kept)
    one = chain.plan([x[:1] for x in streams])
    assert unknown.kept == one.kept
    assert unknown.bytes == one.bytes


def test_the_call_follows_the_plan_of_its_batch():
  chain, _ = make_chain(4, function=KeepsHidden, backward=Rebuild(8_000))
  runs = []
  for batch in (6, 600, None):
    specs = [tf.TensorSpec([batch, width], tf.float64) for width in (5, 8)]
    graph, _ = traced_gradients(chain, specs)
    runs.append(collections.Counter(op.type for op in run_ops(graph))["Sin"])
  assert runs[0] < min(runs[1:])


@pytest.mark.parametrize("backward", [Store(), Rebuild(loop=True), Rebuild("auto", loop=True)], ids=str)
def test_plans_of_chains_that_have_no_choice(backward):
  chain, streams = deep_chain("least")
  least, chain.backward = chain.plan(streams), backward
  assert set(chain.plan(streams).kept) == {EVERYTHING if backward == Store() else NOTHING}
  assert chain.plan(streams).least == least.bytes


def test_planning_changes_nothing():
  chain, streams = deep_chain("auto")
  state = values(chain.variables)
  plan = chain.plan(streams)
  assert chain.plan([tf.TensorSpec(x.shape, x.dtype) for x in streams]) == plan
  assert_close(values(chain.variables), state, 0)
  assert not chain.losses


def test_all_kinds_of_steps_are_planned():
  functions = [keras.layers.Dense(8, "tanh") for _ in range(6)]
  units = [Swap(), tuple(functions[:2]), InvertibleDense(), tuple(functions[2:4]), tuple(functions[4:])]
  couplings = [Additive(), Additive(), *(Shortcut(keras.layers.Dense(8)) for _ in "12"), Additive(), Additive()]
  for keep in ("least", "auto", "all"):
    chain = ReversibleChain(units, coupling=couplings, backward=Rebuild(keep), log_det=False)
    plan = chain.plan([tf.TensorSpec([32, 8], tf.float32)] * 2)
    assert len(plan.kept) == 1 + 2 + 1 + 2 + 2
    assert plan.bytes >= plan.least > 32 * 8 * 4


def test_a_plan_in_words():
  chain, streams = deep_chain("all")
  plan = chain.plan(streams)._replace(bytes=123_400_000)
  assert str(plan) == (
    "of 16 steps 0 keep the streams that they change, 0 outputs within, 16 everything: "
    "about 123 MB of activations (an estimate)"
  )


# RevNets.


@pytest.mark.parametrize(("name", "dtype"), MEASURED)
def test_the_estimates_are_within_15_percent_of_what_is_measured(name, dtype):
  model = get_model(dataclasses.replace(get_config(name), dtype=dtype))
  for activation_memory, megabytes in MEASURED[name, dtype].items():
    # As a network of this configuration would be, which takes longer to build than to plan.
    model.config = dataclasses.replace(model.config, activation_memory=activation_memory)
    model.reversible_chain.backward = Rebuild(model.config.keep)
    estimate = model.activation_plan(10).bytes / 1e7
    assert estimate == pytest.approx(megabytes, rel=0.15), activation_memory


def test_a_revnet_without_manual_gradients_stores_everything():
  model = get_model(dataclasses.replace(get_config("revnet-test"), manual_gradients=False))
  assert set(model.activation_plan(3).kept) == {EVERYTHING}


@pytest.mark.parametrize("name", ["revnet-test", "revnet-btl-test"])
def test_a_revnet_has_the_gradients_of_ordinary_backprop_and_the_more_it_keeps_runs_less_again(name):
  model = make_model(name, "float64", num_residual_units=(3, 2))
  images, labels = make_batch(model, 2)
  state = values(model.non_trainable_variables)

  def step(network):
    for variable, value in zip(network.non_trainable_variables, state, strict=True):
      variable.assign(value)
    traced = tf.function(functools.partial(loss_and_gradients, network), autograph=False)
    gradients = traced(images, labels)[1]
    kinds = collections.Counter(op.type for op in run_ops(traced.get_concrete_function(images, labels).graph))
    return gradients, values(network.non_trainable_variables), kinds["Conv2D"]

  expected, moved, forward = step(copy_of(model, manual_gradients=False))
  counts, least = [], copy_of(model, activation_memory="least").activation_plan(2).least
  for amount in ("least", f"{int(2.4 * least)}B", "all", "auto"):
    gradients, statistics, convolutions = step(copy_of(model, activation_memory=amount))
    assert_close(gradients, expected, 1e-10)
    assert_close(statistics, moved, 1e-10)
    counts.append(convolutions - forward)
  *again, auto = counts
  assert all(later <= sooner for sooner, later in itertools.pairwise(again))
  assert len(set(again)) == 3
  assert again[0] > auto > again[-1] == 0
