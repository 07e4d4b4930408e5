"""Networks: sizes, names, and gradients that do not depend on how they are computed."""

import dataclasses
import functools
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, copy_of, make_batch, make_model, values

from resnet.configs import get_config
from resnet.models import get_model
from resnet.models.residual import ResidualFunction
from resnet.reversible import ReversibleChain
from resnet.training.optimizer import make_optimizer
from resnet.training.step import loss_and_gradients

PARAMETERS = {
  "resnet-32": 464_154,
  "resnet-110": 1_727_962,
  "resnet-164": 1_703_258,
  "revnet-38": 464_890,
  "revnet-110": 1_729_194,
  "revnet-164": 1_748_778,
  "resnet-50": 25_549_352,
  "resnet-101": 44_541_480,
  "revnet-56": 27_553_128,
  "revnet-104": 45_428_072,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_original_ones(name):
  variables = get_model(get_config(name)).trainable_variables
  assert sum(int(np.prod(variable.shape)) for variable in variables) == PARAMETERS[name]


def names(name, **fields):
  model = get_model(dataclasses.replace(get_config(name), **fields))
  return [variable.path.removeprefix(model.name + "/") for variable in model.variables]


def test_resnet_variables_are_named_by_the_original_scopes():
  batch_norm = ["gamma", "beta", "moving_mean", "moving_variance"]
  found = names("resnet-test", num_residual_units=(1, 1), filters=(4, 4, 8), strides=(1, 2))
  assert found == [
    "init/init_conv/kernel",
    *(f"init/init_bn/{name}" for name in batch_norm),
    "unit_1_0/sub1/conv1/kernel",
    *(f"unit_1_0/sub2/bn2/{name}" for name in batch_norm),
    "unit_1_0/sub2/conv2/kernel",
    *(f"unit_2_0/sub1/bn1/{name}" for name in batch_norm),
    "unit_2_0/sub1/conv1/kernel",
    *(f"unit_2_0/sub2/bn2/{name}" for name in batch_norm),
    "unit_2_0/sub2/conv2/kernel",
    *(f"unit_last/final_bn/{name}" for name in batch_norm),
    "logit/kernel",
    "logit/bias",
  ]


def test_revnet_bottleneck_variables_are_named_by_the_original_scopes():
  found = [name for name in names("revnet-btl-test") if name.endswith("kernel")]
  functions = [f"unit_{stage}_{unit}/{f}" for stage in (1, 2) for unit in (0, 1) for f in "fg"]
  expected = [f"{function}/sub{k}/conv{k}/kernel" for function in functions for k in (1, 2, 3)]
  expected += [f"unit_{stage}_0/x{k}_bottleneck/project/kernel" for stage in (1, 2) for k in (1, 2)]
  assert sorted(found) == sorted(["init/init_conv/kernel", "logit/kernel", *expected])
  assert "unit_1_0/f/sub1/bn1/gamma" not in names("revnet-btl-test")
  assert "unit_1_0/g/sub1/bn1/gamma" in names("revnet-btl-test")


def train_once(model, images, labels, run=lambda function: function):
  """(loss, gradients, moving statistics afterwards) of one step; the statistics are put back."""
  before = values(model.non_trainable_variables)
  loss, gradients = run(lambda x, y: loss_and_gradients(model, x, y))(images, labels)
  after = values(model.non_trainable_variables)
  for variable, value in zip(model.non_trainable_variables, before, strict=True):
    variable.assign(value)
  return [loss], gradients, after


def paths(variables):
  return [variable.path for variable in variables]


@pytest.mark.parametrize("name", ["revnet-test", "revnet-btl-test"])
@pytest.mark.parametrize(
  ("dtype", "tolerance"),
  [("float64", 1e-12), ("float32", 1e-4), ("mixed_bfloat16", 1e-3)],
)
def test_manual_and_ordinary_gradients_agree(name, dtype, tolerance):
  model = make_model(name, dtype, num_residual_units=(3, 2))
  images, labels = make_batch(model)
  manual = train_once(model, images, labels)
  ordinary = train_once(copy_of(model, manual_gradients=False), images, labels)
  assert_close(manual[0], ordinary[0], tolerance)
  assert_close(manual[1], ordinary[1], tolerance, paths(model.trainable_variables))
  # Moved, once, and by the true batch: equal to a forward pass without any backward pass.
  model(images, training=True)
  assert_close(manual[2], ordinary[2], tolerance, paths(model.non_trainable_variables))
  assert_close(manual[2], values(model.non_trainable_variables), tolerance)


@pytest.mark.parametrize(("dtype", "half"), [("mixed_bfloat16", tf.bfloat16), ("mixed_float16", tf.float16)])
def test_mixed_precision_is_in_the_functions_alone(dtype, half, monkeypatch):
  model = make_model("revnet-btl-test", dtype)
  images, labels = make_batch(model)
  computed, streams = set(), set()
  call_function, call_chain = ResidualFunction.call, ReversibleChain.call

  def function(self, x, training=False):
    y = call_function(self, x, training=training)
    computed.update({x.dtype, y.dtype})
    return y

  def chain(self, inputs, **kwargs):
    outputs = call_chain(self, inputs, **kwargs)
    streams.update(x.dtype for x in (*inputs, *outputs))
    return outputs

  monkeypatch.setattr(ResidualFunction, "call", function)
  monkeypatch.setattr(ReversibleChain, "call", chain)
  loss, gradients = loss_and_gradients(model, images, labels)
  assert computed == {half}
  assert streams == {tf.float32}
  assert {tensor.dtype for tensor in [loss, *gradients]} == {tf.float32}
  assert {variable.dtype for variable in model.variables} == {"float32"}


def batch_norms(model):
  subs = [sub for unit in itertools.chain(*model.stages) for sub in unit.f.subs + unit.g.subs]
  return [model.stem.bn, *(sub.bn for sub in subs if sub.bn), model.final_bn.layer]


FROZEN = {
  "batch norms": batch_norms,
  "stem": lambda model: [model.stem],
  "stage": lambda model: model.stages[0],
  "unit": lambda model: [model.stages[1][1]],
  "function": lambda model: [model.stages[0][0].g],
  "all but the classifier": lambda model: model.layers[:-1],
}


def freeze(model, part, trainable=False):
  for layer in FROZEN[part](model):
    layer.trainable = trainable


@functools.cache
def trained_whole():
  """As of `train_once`, of the network that the next test freezes parts of."""
  model = make_model("revnet-test", "float64")
  return train_once(model, *make_batch(model, 6))


@pytest.mark.parametrize(
  ("part", "dtype", "tolerance"),
  [*((part, "float64", 1e-11) for part in FROZEN), ("batch norms", "float32", 1e-4)],  # A fused kernel's.
)
def test_manual_and_ordinary_gradients_of_a_partly_frozen_network_agree(part, dtype, tolerance):
  model = make_model("revnet-test", dtype)
  images, labels = make_batch(model, 6)
  networks = [model, copy_of(model, manual_gradients=False)]
  statistics = {
    variable.path: variable.numpy() for norm in batch_norms(model) for variable in norm.non_trainable_variables
  }
  for network in networks:
    freeze(network, part)
  manual, ordinary = (train_once(network, images, labels) for network in networks)
  assert_close(manual[0], ordinary[0], tolerance)
  assert_close(manual[1], ordinary[1], tolerance, paths(model.trainable_variables))
  assert_close(manual[2], ordinary[2], tolerance, paths(model.non_trainable_variables))
  after = dict(zip(paths(model.non_trainable_variables), manual[2], strict=True))
  moved = {path for path, before in statistics.items() if np.any(after[path] != before)}
  assert moved == {
    variable.path for norm in batch_norms(model) if norm.trainable for variable in norm.non_trainable_variables
  }
  freeze(model, part, trainable=True)
  if dtype == "float64":
    assert_close(train_once(model, images, labels)[1], trained_whole()[1], 1e-12)


def test_fit_leaves_a_frozen_stage_as_it_is():
  model = make_model("revnet-test")
  images, labels = make_batch(model)
  freeze(model, "stage")
  frozen = [variable for unit in model.stages[0] for variable in unit.variables]
  before, others_before = values(frozen), values(model.trainable_variables)
  model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
  model.fit(images, labels, batch_size=5, verbose=0)
  np.testing.assert_equal(values(frozen), before)
  assert all(np.any(a != b) for a, b in zip(values(model.trainable_variables), others_before, strict=True))


def test_a_loss_scale_leaves_gradients_as_they_are():
  model = make_model("revnet-test", "float64")
  images, labels = make_batch(model)
  _, plain = loss_and_gradients(model, images, labels)
  loss, scaled = loss_and_gradients(copy_of(model), images, labels, tf.constant(2.0**15, tf.float64))
  assert_close(scaled, plain, 1e-12)
  assert 1 < loss < 10


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
def test_reconstruction_errors_are_those_of_the_stages(dtype, tolerance, monkeypatch):
  model = make_model("revnet-test", dtype, num_residual_units=(3, 5), activation_memory="least")
  images, _ = make_batch(model)
  before = values(model.variables)
  errors = model.reconstruction_errors(images).numpy()
  assert errors.shape == (2,)
  assert np.all((errors > 0) & (errors < tolerance))
  for variable, value in zip(model.variables, before, strict=True):
    np.testing.assert_array_equal(variable, value)
  # x1 of the second stage is rebuilt as three quarters of what it was, by an inverse that is wrong.
  coupling = model.reversible_chain.couplings[2 * 3 + 2]
  assert coupling.invertible
  monkeypatch.setattr(coupling, "uncouple", lambda y, change: 0.75 * (y - change))
  errors = model.reconstruction_errors(images).numpy()
  assert errors[0] < tolerance
  assert 0.1 < errors[1] < 0.25


def test_eager_and_graph_agree():
  model = make_model("revnet-test", "float64")
  images, labels = make_batch(model)
  eager = train_once(model, images, labels)
  graph = train_once(model, images, labels, tf.function)
  for actual, expected in zip(graph, eager, strict=True):
    assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize(("name", "jit_compile"), [("revnet-test", True), ("revnet-btl-test", False)])
def test_both_forms_of_the_chain_agree(name, jit_compile):
  model = make_model(name, "float64", num_residual_units=(3, 3))
  images, labels = make_batch(model)
  expected = train_once(model, images, labels)
  loop = copy_of(model, chain="while_loop")
  actual = train_once(loop, images, labels, lambda f: tf.function(f, jit_compile=jit_compile))
  for one, other in zip(actual, expected, strict=True):
    assert_close(one, other, 1e-11)


def test_weight_decay_is_in_the_gradients_of_kernels_only():
  model = make_model("revnet-test", "float64", wd=0.0)
  images, labels = make_batch(model)
  _, plain, _ = train_once(model, images, labels)
  _, decayed, _ = train_once(copy_of(model, wd=0.25), images, labels)
  for variable, without, with_decay in zip(model.trainable_variables, plain, decayed, strict=True):
    decay = 0.25 * variable.numpy() if variable.path.endswith("kernel") else 0
    np.testing.assert_allclose(with_decay, without + decay, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_moving_statistics_take_the_biased_variance(dtype):
  model = make_model("resnet-test", dtype, batch_size=2, height=4, width=4)
  images, labels = make_batch(model, size=2)
  bn = model.stem.bn
  before = [np.array(bn.moving_mean), np.array(bn.moving_variance)]
  x = model.stem.conv(images).numpy()
  loss_and_gradients(model, images, labels)
  np.testing.assert_allclose(bn.moving_mean, 0.99 * before[0] + 0.01 * x.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(bn.moving_variance, 0.99 * before[1] + 0.01 * x.var((0, 1, 2)), rtol=1e-5)


def test_initial_weights_follow_the_original_distributions():
  model = get_model(get_config("revnet-110"))
  kernels = [v for v in model.trainable_variables if v.name == "kernel" and v.shape[0] == 3]
  for variable in kernels:
    limit = 2 * np.sqrt(2 / (9 * variable.shape[-1]))
    assert np.abs(variable.numpy()).max() <= limit
  # A normal distribution truncated at two standard deviations has 0.88 of its standard deviation.
  big = kernels[-1].numpy()
  np.testing.assert_allclose(big.std(), 0.8796 * np.sqrt(2 / (9 * big.shape[-1])), rtol=0.02)
  logit = model.logit.kernel.numpy()
  np.testing.assert_allclose(np.abs(logit).max(), np.sqrt(3 / 128), rtol=0.05)
  np.testing.assert_allclose(logit.std(), np.sqrt(1 / 128), rtol=0.1)


def test_models_survive_saving(tmp_path):
  for name in ("resnet-test", "revnet-btl-test"):
    model = make_model(name)
    images, _ = make_batch(model)
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert copy.config == model.config
    np.testing.assert_array_equal(copy(images), model(images))


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize("name", ["resnet-test", "revnet-btl-test"])
def test_models_convert_to_tflite(name, tmp_path):
  model = make_model(name)
  images, _ = make_batch(model, 3)
  logits = model(images)
  model.export(tmp_path, verbose=False)
  converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path))
  interpreter = tf.lite.Interpreter(model_content=converter.convert())
  (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
  interpreter.resize_tensor_input(given["index"], images.shape)
  interpreter.allocate_tensors()
  interpreter.set_tensor(given["index"], images)
  interpreter.invoke()
  assert_close([interpreter.get_tensor(result["index"])], [logits], 1e-5)


@pytest.mark.parametrize(("num_replicas", "chain"), [(1, "unrolled"), (2, "unrolled"), (2, "while_loop")])
def test_replicas_agree_with_parts_of_the_batch(num_replicas, chain):
  model = make_model("revnet-test", num_residual_units=(3, 3), chain=chain)
  images, labels = make_batch(model, size=8)
  parts = list(zip(tf.split(images, num_replicas), tf.split(labels, num_replicas)))
  single = [train_once(model, *part) for part in parts]
  expected = [np.mean(arrays, axis=0) for arrays in zip(*(loss + g + s for loss, g, s in single))]

  strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(num_replicas)])
  with strategy.scope():
    mirrored = copy_of(model)

  @tf.function
  def step(images, labels):
    def mean(x):
      return strategy.reduce(tf.distribute.ReduceOp.MEAN, x, axis=None)

    loss, gradients = strategy.run(lambda x, y: loss_and_gradients(mirrored, x, y), (images, labels))
    return [mean(loss)] + [mean(gradient) for gradient in gradients]

  distributed = [
    strategy.experimental_distribute_values_from_function(lambda c, k=k: parts[c.replica_id_in_sync_group][k])
    for k in (0, 1)
  ]
  actual = step(*distributed) + [tf.convert_to_tensor(v.value) for v in mirrored.non_trainable_variables]
  assert_close(actual, expected, 1e-5)


def test_summary_lists_each_unit_once_with_its_shape():
  lines = []
  make_model("revnet-test", num_residual_units=(2, 3)).summary(print_fn=lines.append)
  text = "\n".join(lines)
  names = [
    "init",
    *(f"unit_{s}_{u}" for s, units in ((1, 2), (2, 3)) for u in range(units)),
    "unit_last",
    "logit",
  ]
  assert re.findall(r"^│ (\w+) \(", text, re.MULTILINE) == names
  shapes = "".join(line.split("│")[2].strip() for line in text.splitlines() if line.startswith("│"))
  assert shapes.count("[(None, 8, 8, 8),(None, 8, 8, 8)]") == 2
  assert shapes.count("[(None, 4, 4, 16),(None, 4, 4, 16)]") == 3
  assert "?" not in text


@pytest.mark.parametrize("name", ["resnet-test", "revnet-test"])
def test_fit_takes_the_step_of_the_run_scripts(name):
  model = make_model(name, wd=0.1)
  images, labels = make_batch(model)
  copy = copy_of(model)
  optimizer = make_optimizer(copy.config, copy)
  optimizer.apply(loss_and_gradients(copy, images, labels)[1], copy.trainable_variables)
  before = values(model.trainable_variables)
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  model.compile(make_optimizer(model.config, model), loss)
  model.fit(images, labels, batch_size=len(images), verbose=0)
  changes, expected = (
    [after - start for after, start in zip(values(network.trainable_variables), before, strict=True)]
    for network in (model, copy)
  )
  assert_close(changes, expected, 1e-3, paths(model.trainable_variables))


def test_weight_decay_is_not_computed_before_the_gradients():
  model = make_model("revnet-test")
  images, labels = make_batch(model, 2)
  step = tf.function(lambda images, labels: loss_and_gradients(model, images, labels))
  graph = step.get_concrete_function(images, labels).graph
  late = {graph.inputs[0].op}  # What waits for the images.
  for op in graph.get_operations():  # Each after those that it waits for.
    if any(before in late for before in (*(tensor.op for tensor in op.inputs), *op.control_inputs)):
      late.add(op)
  products = [op for op in graph.get_operations() if op.type == "Mul" and op.outputs[0].shape.rank > 1]
  assert not [op.name for op in products if op not in late]
  assert len(products) >= sum(variable.regularizer is not None for variable in model.trainable_variables)
