"""Models that are saved and loaded, by Keras and by `tf.train.Checkpoint`.

The files of version 0.1 were written by its `Model.save`: a RevNet of two stages of two bottleneck units, and a
functional model around a chain of dense layers. They give what they gave then.
"""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, values

from resnet.configs import get_config
from resnet.models import get_model
from resnet.reversible import (
  Additive,
  InvertibleDense,
  Rebuild,
  Recompute,
  ReversibleChain,
  Scaled,
  Shortcut,
  Store,
  Swap,
)

FOLDER = ROOT / "tests" / "saved_models"


@pytest.mark.parametrize("name", ["revnet-0.1", "chain-0.1"])
def test_models_saved_by_version_0_1_load(name):
  expected = np.load(FOLDER / "expected.npz")
  model = keras.models.load_model(FOLDER / f"{name}.keras")
  np.testing.assert_allclose(model(expected[f"{name}/x"]), expected[f"{name}/y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("manual_gradients", "form", "backward"),
  [
    (True, "unrolled", Rebuild()),
    (True, "while_loop", Rebuild(loop=True)),
    (False, "unrolled", Store()),
    (False, "while_loop", Store()),
  ],
)
def test_a_chain_of_version_0_1_keeps_its_way_back(manual_gradients, form, backward, tmp_path):
  changed = tmp_path / "chain.keras"
  with zipfile.ZipFile(FOLDER / "chain-0.1.keras") as old, zipfile.ZipFile(changed, "w") as new:
    for name in old.namelist():
      content = old.read(name)
      if name == "config.json":
        config = json.loads(content)
        (chain,) = (
          one["config"] for one in config["config"]["layers"] if one["class_name"] == "ReversibleChain"
        )
        assert chain.keys() == {"name", "trainable", "dtype", "pairs", "manual_gradients", "form"}
        chain.update(manual_gradients=manual_gradients, form=form)
        content = json.dumps(config)
      new.writestr(name, content)
  model, expected = keras.models.load_model(changed), np.load(FOLDER / "expected.npz")
  (chain,) = (layer for layer in model.layers if isinstance(layer, ReversibleChain))
  assert chain.backward == backward
  np.testing.assert_allclose(model(expected["chain-0.1/x"]), expected["chain-0.1/y"], rtol=1e-5, atol=1e-6)
  model.save(tmp_path / "again.keras")
  again = keras.models.load_model(tmp_path / "again.keras")
  assert again.get_layer(chain.name).get_config() == chain.get_config()
  np.testing.assert_array_equal(again(expected["chain-0.1/x"]), model(expected["chain-0.1/x"]))


def make_chain():
  """A chain whose functions and couplings have weights, among them layers in layers."""
  Dense = keras.layers.Dense
  couplings = [Shortcut(Dense(4)), Scaled(2.0, trained=True), Additive(), Scaled(3.0, trained=True)]
  norm = keras.Sequential([Dense(4), keras.layers.BatchNormalization()])
  units = [(Dense(4), norm), InvertibleDense(), Swap(), (Recompute(Dense(4)), Dense(4))]
  chain = ReversibleChain(units, coupling=couplings)
  chain.build([(None, 6), (None, 4)])
  return chain


def make_functional():
  streams = [keras.Input([width]) for width in (6, 4)]
  return keras.Model(streams, Recompute(make_chain())(streams))


NETWORKS = {
  "resnet": lambda: get_model(get_config("resnet-test")),
  "revnet": lambda: get_model(get_config("revnet-test")),
  "bottlenecks": lambda: get_model(get_config("revnet-btl-test")),
  "loaded": lambda: keras.models.load_model(FOLDER / "revnet-0.1.keras"),
  "chain": make_chain,
  "functional": make_functional,
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_checkpoint_of_tensorflow_has_all_weights(kind, tmp_path):
  saved, restored = NETWORKS[kind](), NETWORKS[kind]()
  random = np.random.RandomState(0)
  for network in (saved, restored):
    for variable in network.variables:
      variable.assign(random.uniform(1, 2, variable.shape))
  path = tf.train.Checkpoint(model=saved).save(tmp_path / "checkpoint")
  status = tf.train.Checkpoint(model=restored).restore(path)
  status.assert_consumed()
  np.testing.assert_equal(values(restored.variables), values(saved.variables))
  names = [name for name, _ in tf.train.list_variables(path) if name.startswith("model/")]
  assert len(names) == len(saved.variables)


def test_a_checkpoint_that_is_restored_first_waits_for_the_weights(tmp_path):
  first, second = (ReversibleChain([(keras.layers.Dense(4), keras.layers.Dense(4))]) for _ in range(2))
  streams = (tf.ones([1, 4]), tf.ones([1, 4]))
  first(streams)
  path = tf.train.Checkpoint(model=first).save(tmp_path / "checkpoint")
  tf.train.Checkpoint(model=second).restore(path)
  np.testing.assert_array_equal(second(streams), first(streams))


@pytest.mark.parametrize(
  ("kind", "expected"),
  [
    ("revnet", ["stem/bn/gamma", "unit_1_0/f/sub_1/bn/moving_mean", "unit_2_1/g/sub_0/conv/_kernel"]),
    ("bottlenecks", ["unit_2_0/skip1/layer/_kernel", "unit_1_0/g/sub_2/conv/_kernel", "final_bn/layer/beta"]),
    (
      "chain",
      [
        "function_0/_kernel",
        "function_2/layer/bias",
        "coupling_0/layer/bias",
        "coupling_1/a",
        "invertible_0/kernel",
      ],
    ),
  ],
)
def test_names_in_checkpoints_of_tensorflow_stay(kind, expected, tmp_path):
  path = tf.train.Checkpoint(model=NETWORKS[kind]()).save(tmp_path / "checkpoint")
  names = [name for name, _ in tf.train.list_variables(path)]
  assert {f"model/{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in expected} <= set(names)
