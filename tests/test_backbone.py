"""Networks as backbones: features by name, functional models, freezing, parts, saving, weights in one call."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, copy_of, make_batch, make_model, values
from parity_cases import FOLDER, case_config, restored

from resnet.configs import get_config
from resnet.experiments.experiment import Experiment
from resnet.models import get_model
from resnet.reversible import ReversibleChain, ordinary_backprop
from resnet.trained import pretrained_model
from resnet.training.checkpoint import Checkpoints
from resnet.utils.errors import UserError

NAMES = ("resnet-test", "revnet-test", "revnet-btl-test")


def make_backbone(name):
  """(a backbone, the whole network of the same weights)."""
  network = make_model(name)
  backbone = get_model(network.config, include_top=False)
  of_network = {variable.path: variable for variable in network.variables}
  for variable in backbone.variables:
    variable.assign(of_network[variable.path])
  return backbone, network


def make_task(backbone, eagerly=False):
  """A functional model of two of the backbone's outputs with a head of two classes, compiled."""
  config = backbone.config
  images = keras.Input([config.height, config.width, config.num_channel])
  pooled = [
    keras.layers.GlobalAveragePooling2D()(x) for x in (backbone(images), backbone.features(images)["stage_1"])
  ]
  model = keras.Model(images, keras.layers.Dense(2)(keras.layers.concatenate(pooled)))
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=eagerly)
  return model


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_outputs_of_the_stages(name):
  backbone, network = make_backbone(name)
  images, _ = make_batch(network)
  features = backbone.features(images)
  x, expected = network.stem(images), {}
  for stage, units in enumerate(network.stages, start=1):
    x = tf.split(x, 2, axis=-1) if "revnet" in name else x
    for unit in units:
      x = unit(x)
    x = expected[f"stage_{stage}"] = tf.concat(x, axis=-1) if "revnet" in name else x
  expected["final"] = tf.nn.relu(network.final_bn(x))
  assert list(features) == list(expected)
  assert_close(features.values(), expected.values(), 1e-5, features)
  np.testing.assert_array_equal(backbone(images), features["final"])
  assert_close(network.features(images).values(), expected.values(), 1e-5)
  assert_close([network.logit(tf.reduce_mean(features["final"], [1, 2]))], [network(images)], 1e-5)


def test_a_backbone_takes_images_of_another_size():
  backbone, _ = make_backbone("revnet-test")
  images = keras.Input([16, 24, 3])
  assert {name: tuple(x.shape[1:]) for name, x in backbone.features(images).items()} == {
    "stage_1": (16, 24, 16),
    "stage_2": (8, 12, 32),
    "final": (8, 12, 32),
  }
  model = keras.Model(images, backbone.features(images))
  assert model(np.zeros([2, 16, 24, 3], np.float32))["stage_2"].shape == (2, 8, 12, 32)


def test_fit_trains_a_backbone_as_ordinary_backpropagation_does():
  def trained():
    keras.utils.set_random_seed(3)
    model = make_task(make_backbone("revnet-test")[0])
    images, labels = make_batch(model.layers[1], size=6)
    before = values(model.variables)
    model.fit(images, labels % 2, batch_size=6, verbose=0)
    return [after - start for after, start in zip(values(model.variables), before, strict=True)], model

  changes, model = trained()
  with ordinary_backprop():
    expected, _ = trained()
  assert all(map(np.any, changes))
  assert_close(changes, expected, 1e-3, [variable.path for variable in model.variables])


def test_what_is_frozen_stays_and_stays_frozen_when_it_is_saved(tmp_path):
  backbone, _ = make_backbone("revnet-test")
  model = make_task(backbone, eagerly=True)
  images, labels = make_batch(backbone, size=6)
  head = model.layers[-1]

  def moved(model):
    before = values(model.variables)
    model.fit(images, labels % 2, batch_size=6, verbose=0)
    changed = (np.any(after != start) for after, start in zip(values(model.variables), before, strict=True))
    return {variable.path for variable, change in zip(model.variables, changed) if change}

  backbone.trainable = False
  assert moved(model) == {variable.path for variable in head.variables}
  model.save(tmp_path / "frozen.keras")
  loaded = keras.models.load_model(tmp_path / "frozen.keras")
  assert moved(loaded) == {variable.path for variable in loaded.layers[-1].variables}

  backbone.trainable = True
  for layer in backbone.layers[:3]:  # The stem and two units.
    layer.trainable = False
  model.save(tmp_path / "partly.keras")
  loaded = keras.models.load_model(tmp_path / "partly.keras")
  free = {
    "/".join(v.path.split("/")[1:])
    for layer in loaded.get_layer(backbone.name).layers[3:]
    for v in layer.variables
  }
  changed = {"/".join(path.split("/")[1:]) for path in moved(loaded) if path.startswith(backbone.name)}
  assert changed == free


@pytest.mark.parametrize("name", NAMES)
def test_parts_can_be_saved(name, tmp_path):
  network = make_model(name)
  config = network.config
  images = keras.Input([config.height, config.width, 3])
  x = network.get_layer("init")(images)
  if "revnet" in name:
    streams = keras.ops.split(x, 2, axis=-1)
    streams = network.get_layer("unit_1_0")(streams)
    chain, first = network.reversible_chain, len(network.stages[0])
    second_stage = ReversibleChain(chain.units[first:], chain.couplings[2 * first :])
    streams = second_stage(network.get_layer("unit_1_1")(streams))
    x = keras.ops.concatenate(streams, axis=-1)
  else:
    for unit in itertools.chain(*network.stages):
      x = unit(x)
  model = keras.Model(images, network.get_layer("unit_last")(x))
  network.get_layer("init").trainable = False
  model.save(tmp_path / "parts.keras")
  loaded = keras.models.load_model(tmp_path / "parts.keras")
  batch, _ = make_batch(network)
  np.testing.assert_array_equal(loaded(batch), model(batch))
  assert len(loaded.trainable_variables) == len(model.trainable_variables) < len(model.variables)
  before = values(loaded.get_layer("init").variables)
  loaded(batch, training=True)
  np.testing.assert_equal(values(loaded.get_layer("init").variables), before)


@pytest.mark.parametrize("include_top", [True, False])
def test_weights_of_an_experiment_in_one_call(tmp_path, include_top):
  network = make_model("revnet-test")
  experiment = Experiment.named("a", str(tmp_path), "")
  experiment.create(network.config)
  Checkpoints(experiment.folder, network).save(7)
  other = copy_of(network)
  other.variables[0].assign(other.variables[0] * 2)
  Checkpoints(experiment.folder, other).save(9)
  for step, expected in ((7, network), (None, other)):
    loaded = pretrained_model(tmp_path / "a", include_top=include_top, step=step)
    weights = {variable.path: variable.numpy() for variable in expected.variables}
    assert ("revnet-test/logit/kernel" in [variable.path for variable in loaded.variables]) == include_top
    for variable in loaded.variables:
      np.testing.assert_array_equal(variable, weights[variable.path])


def test_weights_of_the_original_in_one_call():
  network, _ = restored("revnet-test")
  images, _ = make_batch(network)
  config = case_config("revnet-test")
  np.testing.assert_array_equal(pretrained_model(FOLDER / "revnet-test", config)(images), network(images))
  backbone = pretrained_model(FOLDER / "revnet-test", config, include_top=False)
  np.testing.assert_array_equal(backbone(images), network.features(images)["final"])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({}, "no experiment nowhere in .*conf.json is missing"),
    ({"config": get_config("revnet-test")}, "no checkpoint at .*nowhere"),
  ],
)
def test_nothing_to_take_weights_from_is_one_line(tmp_path, arguments, message):
  with pytest.raises(UserError, match=message):
    pretrained_model(tmp_path / "nowhere", **arguments)


def test_what_a_network_is_not_is_said():
  network = make_model("revnet-test")
  with pytest.raises(AttributeError, match="revnet-test has no inputs, .* keras.Input"):
    keras.Model(network.inputs, network.get_layer("unit_1_0")(network.inputs))
  with pytest.raises(ValueError, match="unit_2_1 takes two streams, .* halve a tensor"):
    network.get_layer("unit_2_1")(tf.zeros([1, 4, 4, 16]))
