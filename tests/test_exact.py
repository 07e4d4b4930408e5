"""Exact chains: what is rebuilt, and in half precision every gradient, is right to the last bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from chains import gradients_of, keeping
from helpers import copy_of, make_batch, make_model, values

from resnet.models.residual import ResidualFunction
from resnet.reversible import Rebuild, ReversibleChain, Scaled, Store
from resnet.reversible.plain import on_grid
from resnet.training.step import loss_and_gradients


def make_chain(dtype, units, **arguments):
  keras.utils.set_random_seed(0)
  pairs = [[Residual(8, dtype=dtype) for _ in "FG"] for _ in range(units)]
  chain = ReversibleChain(pairs, **arguments)
  chain.build([(None, 4, 4, 8)] * 2)
  return chain


@keras.saving.register_keras_serializable("tests")
class Residual(ResidualFunction):
  """Batch norm, ReLU and convolution, twice; with a configuration, which loops compare."""

  def get_config(self):
    return {"filters": 8, "dtype": self.dtype_policy.name}


def streams():
  return tuple(tf.random.stateless_normal([4, 4, 4, 8], [seed, 0]) for seed in (1, 2))


def bits_equal(actual, expected):
  return [np.array_equal(a, e) for a, e in zip(actual, expected, strict=True)]


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_gradients_are_those_of_ordinary_backprop_to_the_last_bit(dtype, loop):
  chain = make_chain(dtype, 4, grid_bits=14, backward=Rebuild(loop=loop))
  state = values(chain.non_trainable_variables)
  manual = gradients_of(chain, streams(), state, tf.function)
  assert chain.reconstruction_error(streams()) == 0
  chain.backward = Store()
  for actual, expected in zip(manual, gradients_of(chain, streams(), state, tf.function), strict=True):
    assert all(bits_equal(actual, expected))


def test_gradients_without_a_grid_are_not():
  chain = make_chain("float32", 6)
  state = values(chain.non_trainable_variables)
  _, manual, _ = gradients_of(chain, streams(), state, tf.function)
  assert chain.reconstruction_error(streams()) > 0
  chain.backward = Store()
  assert not all(bits_equal(manual, gradients_of(chain, streams(), state, tf.function)[1]))


@pytest.mark.parametrize("kept", [0, 2])
def test_the_inverse_gives_the_inputs_on_the_grid(kept):
  chain = keeping(make_chain("mixed_bfloat16", 8, grid_bits=12), streams=kept)
  x = streams()
  outputs = chain(x, training=True)
  rebuilt = chain.inverse(outputs, training=True)
  assert all(bits_equal(rebuilt, [tf.round(stream * 2**12) / 2**12 for stream in x]))
  assert not any(bits_equal(rebuilt, x))
  assert all(np.all(y * 2**12 == np.round(y * 2**12)) for y in outputs)


def test_leapfrog_is_exact_too():
  chain = make_chain("float32", 6, grid_bits=14, coupling=Scaled(-1))
  assert chain.reconstruction_error(streams()) == 0


def test_the_reconstruction_error_says_when_the_range_of_the_grid_is_left():
  chain = make_chain("float32", 4, grid_bits=14)
  assert chain.reconstruction_error(streams()) == 0
  far = [stream + 1500.0 for stream in streams()]  # Beyond 2 ** (24 - 14).
  assert chain.reconstruction_error(far) > 0


def test_rounding_lets_the_gradient_through():
  x = tf.constant([0.3, -0.3, 1.26])
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = on_grid(x, 2)
  np.testing.assert_array_equal(y, [0.25, -0.25, 1.25])
  np.testing.assert_array_equal(tape.gradient(y, x, tf.constant([1.0, 2, 3])), [1, 2, 3])


@pytest.mark.parametrize(("name", "dtype"), [("revnet-test", "mixed_bfloat16"), ("revnet-btl-test", "float32")])
def test_a_revnet_on_a_grid_has_the_gradients_of_ordinary_backprop_to_the_last_bit(name, dtype):
  model = make_model(name, dtype, num_residual_units=(3, 3), grid_bits=14, activation_memory="least")
  images, labels = make_batch(model)
  ordinary = copy_of(model, manual_gradients=False)
  found = [
    tf.function(loss_and_gradients, autograph=False)(network, images, labels)[1]
    for network in (model, ordinary)
  ]
  assert all(bits_equal(*found))
  assert np.all(model.reconstruction_errors(images) == 0)
  assert np.any(copy_of(model, dtype="float32", grid_bits=0).reconstruction_errors(images) > 0)
