"""Which units are a loop, and what a loop refuses."""

import keras
import pytest
import tensorflow as tf
from any_layer import by_hand, dense, gradients, random
from chains import loops
from helpers import assert_close

from resnet.reversible import Rebuild, ReversibleChain


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
