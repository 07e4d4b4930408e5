"""Reading and writing the original's checkpoints."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf
from parity_cases import CASES, FOLDER, restored
from tf1_files import read, write

from resnet.models import get_model
from resnet.original.checkpoint import load_tf1_checkpoint, save_tf1_checkpoint, variable_map
from resnet.training.optimizer import Momentum
from resnet.utils.errors import UserError

CASE = "revnet-btl-test"
PREFIX = FOLDER / CASE / "model.ckpt-0"


@pytest.fixture(scope="module")
def shared():
  """A model and its optimizer. The tests overwrite their variables."""
  return restored(CASE)


@pytest.fixture
def model(shared):
  _fill(shared, 0.0)
  return shared[0]


@pytest.fixture
def optimizer(shared, model):
  return shared[1]


def _fill(shared, value):
  for variable in [*shared[0].variables, *shared[1].variables]:
    variable.assign(np.full(variable.shape, value))


def _is_untouched(model, optimizer=None):
  variables = model.variables + (optimizer.accumulators + [optimizer.iterations] if optimizer else [])
  return all((variable.numpy() == 0).all() for variable in variables)


@functools.cache
def trained_values():
  """The checkpoint of CASE, with momentum and a step as after training."""
  random = np.random.RandomState(0)
  values = read(PREFIX)
  for name, value in values.items():
    if name.endswith("/Momentum"):
      values[name] = random.normal(size=value.shape).astype("float32")
  return {**values, "Model/global_step": np.float32(600000)}


@pytest.mark.parametrize("case", CASES)
def test_variable_map_has_the_originals_names_and_shapes(case):
  model, _ = restored(case)
  stored = {
    name.removeprefix("Model/"): value.shape
    for name, value in read(FOLDER / case / "model.ckpt-0").items()
    if not name.endswith(("/Momentum", "/global_step", "/learn_rate"))
  }
  assert {name: tuple(v.shape) for name, v in variable_map(model).items()} == stored


def _bare(name):
  return name.removeprefix("Model/").removeprefix("Model/")


NAMINGS = {
  "as the original names them": lambda name: name,
  "an old learn_rate": lambda name: name.replace("Model/learn_rate", "Train/Model/learn_rate"),
  "momentum under one Model": lambda name: name.replace("Model/Model/", "Model/"),
  "no Model": _bare,
}


@pytest.mark.parametrize("rename", NAMINGS.values(), ids=NAMINGS.keys())
def test_weights_statistics_momentum_and_step_are_read(tmp_path, model, optimizer, rename):
  values = trained_values()
  path = write(tmp_path / "model.ckpt-600000", {rename(name): value for name, value in values.items()})
  load_tf1_checkpoint(model, path, optimizer)
  for name, variable in variable_map(model).items():
    np.testing.assert_array_equal(variable.numpy(), values[f"Model/{name}"])
    if variable.trainable:
      momentum = values[f"Model/Model/{name}/Momentum"]
      np.testing.assert_array_equal(optimizer.accumulator(variable).numpy(), momentum)
  assert int(optimizer.iterations) == 600000


def test_an_optimizer_that_is_not_built_is_built(model):
  optimizer = Momentum(0.1)
  load_tf1_checkpoint(model, PREFIX, optimizer)
  assert len(optimizer.accumulators) == len(model.trainable_variables)


def test_without_an_optimizer_momentum_and_step_may_be_there_or_not(tmp_path, model):
  weights = {name: v for name, v in read(PREFIX).items() if re.match("Model/(init|unit|logit)", name)}
  for path in (PREFIX, write(tmp_path / "weights", weights)):
    model.variables[0].assign(model.variables[0] * 0)
    load_tf1_checkpoint(model, path)
    np.testing.assert_array_equal(model.variables[0], weights["Model/init/init_conv/w"])


def test_with_an_optimizer_momentum_and_step_must_be_there(tmp_path, model, optimizer):
  weights = {name: v for name, v in read(PREFIX).items() if re.match("Model/(init|unit|logit)", name)}
  path = write(tmp_path / "weights", weights)
  with pytest.raises(UserError, match=r"missing.*global_step.*logit/w/Momentum") as caught:
    load_tf1_checkpoint(model, path, optimizer)
  assert str(caught.value).count("/Momentum") == len(model.trainable_variables)
  assert _is_untouched(model, optimizer)


def test_all_that_does_not_fit_is_named_and_nothing_is_written(tmp_path, model, optimizer):
  values = dict(trained_values())
  del values["Model/logit/b"], values["Model/Model/unit_1_0/f/sub1/conv1/w/Momentum"]
  values["Model/unit_9_9/w"] = np.float32(1)
  values["Model/logit/w"] = values["Model/logit/w"][:, :-1]
  values["Model/init/init_bn/gamma"] = values["Model/init/init_bn/gamma"].astype("float64")
  path = write(tmp_path / "model.ckpt", values)
  with pytest.raises(UserError) as caught:
    load_tf1_checkpoint(model, path, optimizer)
  assert str(caught.value) == (
    f"checkpoint {path} does not fit the model. "
    "missing from the checkpoint: logit/b, unit_1_0/f/sub1/conv1/w/Momentum; "
    "not in the model: Model/unit_9_9/w; of another shape or type: "
    "Model/init/init_bn/gamma ([16] float64, not [16] float32), "
    "Model/logit/w ([128, 9] float32, not [128, 10] float32)"
  )
  assert _is_untouched(model, optimizer)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"Model/beta1_power": np.float32(1)}, "not in the model: Model/beta1_power"),
    ({"logit/b": np.zeros(10, "float32")}, "under two names: Model/logit/b, logit/b"),
    ({"Model/global_step": np.float32(1.5)}, "global_step must be a number of steps, got 1.5"),
    ({"Model/global_step": np.float32("nan")}, "global_step must be a number of steps, got nan"),
    ({"Model/learn_rate": np.zeros(2, "float32")}, r"Model/learn_rate \(\[2\] float32, not \[\] float32\)"),
  ],
)
def test_one_variable_too_many_or_wrong(tmp_path, model, optimizer, change, message):
  path = write(tmp_path / "model.ckpt", {**trained_values(), **change})
  with pytest.raises(UserError, match=message):
    load_tf1_checkpoint(model, path, optimizer)
  assert _is_untouched(model, optimizer)


@pytest.mark.parametrize("case", [case for case in CASES if case != CASE])
def test_the_checkpoint_of_another_model(model, optimizer, case):
  with pytest.raises(UserError, match=r"does not fit the model.*unit_"):
    load_tf1_checkpoint(model, FOLDER / case, optimizer)
  assert _is_untouched(model, optimizer)


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "changed"])
def test_a_damaged_file(tmp_path, model, optimizer, suffix, damage):
  prefix = write(tmp_path / "model.ckpt", trained_values())
  file = tmp_path / f"model.ckpt.{suffix}"
  content = bytearray(file.read_bytes())
  middle = len(content) // 2
  if damage == "changed":
    content[middle] ^= 0xFF
    middle = len(content)
  file.write_bytes(content[: 0 if damage == "emptied" else middle])
  with pytest.raises(UserError, match="damaged"):
    load_tf1_checkpoint(model, prefix, optimizer)
  assert _is_untouched(model, optimizer)


def test_the_data_file_is_gone(tmp_path, model):
  prefix = write(tmp_path / "model.ckpt", trained_values())
  (tmp_path / "model.ckpt.data-00000-of-00001").unlink()
  with pytest.raises(UserError, match="damaged"):
    load_tf1_checkpoint(model, prefix)
  assert _is_untouched(model)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_has_the_originals_names_and_is_read_back_exactly(tmp_path, case):
  model, optimizer = restored(case)
  random = np.random.RandomState(0)
  for variable in [*model.variables, *optimizer.accumulators]:
    variable.assign(random.normal(size=variable.shape))
  optimizer.iterations.assign(123457)
  save_tf1_checkpoint(model, optimizer, tmp_path)
  stored, original = read(tmp_path / "model.ckpt-123457"), read(FOLDER / case / "model.ckpt-0")
  assert {n: (v.shape, v.dtype) for n, v in stored.items()} == {
    n: (v.shape, v.dtype) for n, v in original.items()
  }
  again, optimizer_again = get_model(model.config), Momentum(0.1)
  load_tf1_checkpoint(again, tmp_path, optimizer_again)
  for ours, theirs in zip(
    [*again.variables, *optimizer_again.accumulators, optimizer_again.iterations],
    [*model.variables, *optimizer.accumulators, optimizer.iterations],
    strict=True,
  ):
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_the_rate_that_is_written_is_the_last_steps(tmp_path):
  model, optimizer = restored("resnet-test")  # 0.1, and 0.01 from iteration 39,999 on
  for steps, rate in ((0, 0.1), (39999, 0.1), (40000, 0.01)):
    optimizer.iterations.assign(steps)
    save_tf1_checkpoint(model, optimizer, tmp_path)
    assert read(tmp_path / f"model.ckpt-{steps}")["Model/learn_rate"] == np.float32(rate)


def test_a_graph_of_tensorflow_1_restores_what_is_written(tmp_path):
  model, optimizer = restored("resnet-test")
  save_tf1_checkpoint(model, optimizer, tmp_path)
  bias_written = variable_map(model)["logit/b"].numpy()
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    with tf.compat.v1.variable_scope("Model"):
      bias = tf.compat.v1.get_variable("logit/b", initializer=tf.zeros(10))
    latest = tf.train.latest_checkpoint(str(tmp_path))
    assert (tmp_path / "model.ckpt-0.meta").is_file()  # The original's evaluation asks for it.
    tf.compat.v1.train.Saver().restore(session, latest)
    np.testing.assert_array_equal(session.run(bias), bias_written)
