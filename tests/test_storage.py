"""The dial between rebuilding and storing: what it keeps, its gradients, and the estimate of its memory."""

import collections
import dataclasses
import functools
import itertools

import pytest
import tensorflow as tf
from chains import run_ops
from helpers import assert_close, copy_of, make_batch, make_model, values

from resnet.configs import get_config
from resnet.models.storage import (
  AUTO,
  Kept,
  activation_bytes,
  describe,
  dial_of,
  fit_memory,
  kept_of_stages,
  overlapping_stages,
)
from resnet.training.step import loss_and_gradients
from resnet.utils.errors import UserError

# MB per image, measured at batches of 100 and 300, by `kept_units`: see docs/benchmark.md.
MEASURED = {"0": 0.67, "auto": 1.20, "38": 2.50, "69": 5.89, "all": 9.25}


def with_dial(name, dial, **fields):
  return dataclasses.replace(get_config(name), kept_units=str(dial), **fields)


# The steps: streams of the last stage, of the first; outputs of the last; everything of the last, of the first.
@pytest.mark.parametrize(
  ("dial", "expected"),
  [
    (0, [Kept(), Kept()]),
    (3, [Kept(), Kept(streams=3)]),
    (6, [Kept(streams=2), Kept(streams=4)]),
    (12, [Kept(streams=5), Kept(streams=4, outputs=3)]),
    (17, [Kept(streams=5), Kept(4, 4, everything=4)]),
    (20, [Kept(streams=5, everything=3), Kept(4, 4, 4)]),
    ("all", [Kept(5, 5, 5), Kept(4, 4, 4)]),
  ],
)
def test_the_units_that_save_most_are_kept_first(dial, expected):
  config = with_dial("revnet-test", dial, num_residual_units=(5, 4))
  assert kept_of_stages(config) == expected
  chains = make_model("revnet-test", num_residual_units=(5, 4), kept_units=str(dial)).reversible_chains
  assert [Kept(chain.kept_streams, chain.kept_outputs, chain.stored_units) for chain in chains] == expected


@pytest.mark.parametrize(
  ("name", "dial", "expected"),
  [
    ("revnet-110", 0, [False, True, True]),
    ("revnet-110", "auto", [True, True, True]),
    ("revnet-104", 0, [False, True, True, True]),
  ],
)
def test_f_and_g_overlap_where_this_hardly_raises_the_peak(name, dial, expected):
  assert overlapping_stages(with_dial(name, dial)) == expected


def test_chains_overlap_as_said():
  chains = make_model("revnet-test", kept_units="0").reversible_chains
  assert [chain.overlap for chain in chains] == [False, True]


def test_bottlenecks_keep_their_narrow_outputs_first():
  kept = kept_of_stages(with_dial("revnet-104", 15))
  assert kept == [Kept(), Kept(outputs=2), Kept(outputs=11), Kept(outputs=2)]


@pytest.mark.parametrize("name", ["revnet-test", "revnet-btl-test"])
def test_every_setting_has_the_gradients_of_ordinary_backprop_and_the_more_it_keeps_runs_less_again(name):
  model = make_model(name, "float64", num_residual_units=(3, 2))
  images, labels = make_batch(model, 4)
  state = values(model.non_trainable_variables)

  def step(network):
    for variable, value in zip(network.non_trainable_variables, state, strict=True):
      variable.assign(value)
    traced = tf.function(functools.partial(loss_and_gradients, network), autograph=False)
    gradients = traced(images, labels)[1]
    kinds = collections.Counter(op.type for op in run_ops(traced.get_concrete_function(images, labels).graph))
    return gradients, values(network.non_trainable_variables), kinds["Conv2D"]

  expected, moved, forward = step(copy_of(model, manual_gradients=False))
  counts = []
  for dial in [*range(16), "auto"]:
    gradients, statistics, convolutions = step(copy_of(model, kept_units=str(dial)))
    assert_close(gradients, expected, 1e-10)
    assert_close(statistics, moved, 1e-10)
    counts.append(convolutions - forward)
  *again, auto = counts
  assert all(later <= sooner for sooner, later in itertools.pairwise(again))
  assert again[0] > auto > again[-1] == 0


def test_the_estimate_of_memory_is_within_15_percent_of_what_was_measured():
  for dial, measured in MEASURED.items():
    config = with_dial("revnet-110", dial)
    estimate = activation_bytes(config, dial_of(config)) / 1e6
    assert estimate == pytest.approx(measured, rel=0.15), dial


@pytest.mark.parametrize("name", ["revnet-38", "revnet-110", "revnet-164", "revnet-56", "revnet-104"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_auto_needs_little_more_memory_than_nothing_kept_and_each_step_more_needs_more(name, dtype):
  config = dataclasses.replace(get_config(name), dtype=dtype)
  sizes = [activation_bytes(config, dial) for dial in range(config.most_kept_units + 1)]
  assert sizes == sorted(sizes)
  auto = dial_of(config)
  assert 0 < auto < config.most_kept_units
  assert sizes[auto] <= AUTO * sizes[0] < sizes[auto + 1]
  assert dial_of(dataclasses.replace(config, chain="while_loop")) == 0


def test_memory_does_not_grow_with_depth():
  sizes = [
    activation_bytes(config, dial_of(config))
    for config in (
      with_dial("revnet-110", "auto", num_residual_units=(units,) * 3) for units in (3, 9, 18, 100)
    )
  ]
  assert max(sizes) <= 1.1 * min(sizes)


@pytest.mark.parametrize("budget", [8e7, 1.1e8, 2.5e8, 6e8, 1e12])
def test_as_much_is_kept_as_fits(budget):
  config = fit_memory(get_config("revnet-110"), budget, images=100)
  dial = int(config.kept_units)
  assert 100 * activation_bytes(config, dial) <= budget
  assert dial == config.most_kept_units or 100 * activation_bytes(config, dial + 1) > budget
  assert dataclasses.replace(config, kept_units="auto") == get_config("revnet-110")


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    (
      "revnet-110",
      {},
      "--activation_memory must be at least 61 MB, which 100 images of revnet-110 .* got 10 MB",
    ),
    ("resnet-110", {}, "needs a RevNet that can choose .* resnet-110: without manual_gradients all is stored"),
    ("revnet-110", {"chain": "while_loop"}, "revnet-110: chain while_loop keeps nothing"),
  ],
)
def test_memory_that_cannot_be_kept_to_is_refused(name, fields, message):
  with pytest.raises(UserError, match=message):
    fit_memory(dataclasses.replace(get_config(name), **fields), 1e7, 100)


@pytest.mark.parametrize(
  ("dial", "words"),
  [
    ("5", "of 9 units 3 keep their streams, 2 their convolutions' outputs, 0 everything: about 60 MB"),
    ("21", "of 9 units 9 keep their streams, 9 their convolutions' outputs, 3 everything: about 172 MB"),
  ],
)
def test_what_is_kept_in_words(dial, words):
  assert describe(with_dial("revnet-38", dial), 100).startswith(words)
