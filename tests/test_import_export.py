"""From a checkpoint of the original code to an experiment, and back."""

import dataclasses
import errno
import filecmp
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from parity_cases import FOLDER, case_config, expected, restored
from tf1_files import read, write, write_archive

import resnet
from resnet.data import get_dataset
from resnet.experiments.experiment import Experiment
from resnet.models import get_model
from resnet.original.checkpoint import save_tf1_checkpoint
from resnet.tools.export_checkpoint import export_checkpoint
from resnet.tools.import_checkpoint import import_checkpoint
from resnet.training.checkpoint import Checkpoints
from resnet.training.optimizer import make_optimizer
from resnet.training.strategy import make_strategy
from resnet.training.train_loop import RunOptions, train
from resnet.utils.errors import UserError

CASE = "revnet-test"
MEAN = 100.0  # the mean image's pixels


def experiment_in(folder: pathlib.Path, experiment_id: str = "imported") -> Experiment:
  return Experiment.named(experiment_id, str(folder / "results"), str(folder / "logs"))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  """CASE as an experiment, which the tests only read."""
  experiment = experiment_in(tmp_path_factory.mktemp("imported"))
  assert import_checkpoint(FOLDER / CASE, experiment, case_config(CASE)) == 0
  return experiment


@pytest.fixture(scope="module")
def exported(imported, tmp_path_factory):
  """`imported` in all formats, with a mean image of its own: CIFAR may not be there."""
  output = tmp_path_factory.mktemp("exported") / "revnet"
  imported.save_mean_image(np.full([8, 8, 3], MEAN))
  assert export_checkpoint(imported, output) == 0
  return output


def test_importing_training_exporting_and_importing_is_exact(tmp_path):
  config = dataclasses.replace(case_config(CASE), dataset="digits", height=32, width=32)
  _write_training_state(config, tmp_path / "original", step=37)
  experiment = experiment_in(tmp_path)
  import_checkpoint(tmp_path / "original", experiment, config)
  start = read(tmp_path / "original" / "model.ckpt-37")
  assert _exported(experiment, tmp_path / "untrained", 37) == _bits(start)

  data = get_dataset(config, "", "train")
  options = RunOptions(restore=True, max_num_steps=2)
  train(config, experiment, make_strategy(0, config.batch_size), data, {}, options)

  trained = _exported(experiment, tmp_path / "trained", 39)
  assert {name for name in trained if trained[name] == _bits(start)[name]} == {"Model/learn_rate"}
  again = experiment_in(tmp_path, "again")
  assert import_checkpoint(tmp_path / "trained" / "tf1", again, config) == 39
  assert _exported(again, tmp_path / "trained again", 39) == trained


def _write_training_state(config, folder, step):
  """A checkpoint of the original's form, as in the middle of training."""
  keras.utils.set_random_seed(0)
  model = get_model(config)
  optimizer = make_optimizer(config, model)
  random = np.random.RandomState(0)
  for accumulator in optimizer.accumulators:
    accumulator.assign(random.normal(scale=0.01, size=accumulator.shape))
  optimizer.iterations.assign(step)
  folder.mkdir()
  save_tf1_checkpoint(model, optimizer, folder)


def _exported(experiment, output, step):
  export_checkpoint(experiment, output, ["tf1"])
  return _bits(read(output / "tf1" / f"model.ckpt-{step}"))


def _bits(values):
  return {name: value.tobytes() for name, value in values.items()}


def test_the_experiment_has_the_weights_and_the_configuration(imported):
  assert imported.load_config() == case_config(CASE)
  model, optimizer = restored(CASE)
  for variable in [*model.variables, *optimizer.accumulators]:
    variable.assign(variable * 0)
  Checkpoints(imported.folder, model, optimizer).restore(0)
  x, probabilities = expected(CASE)["x"], expected(CASE)["eval_probabilities"]
  np.testing.assert_allclose(tf.nn.softmax(model(x)), probabilities, rtol=1e-5, atol=1e-7)


def test_an_experiment_that_exists_is_refused_and_kept(imported):
  before = {file.name: file.read_bytes() for file in imported.folder.iterdir()}
  with pytest.raises(UserError, match="experiment imported exists"):
    import_checkpoint(FOLDER / CASE, imported, case_config(CASE))
  assert {file.name: file.read_bytes() for file in imported.folder.iterdir()} == before


def _truncated(folder):
  prefix = write(folder / "model.ckpt", read(FOLDER / CASE / "model.ckpt-0"))
  data = folder / "model.ckpt.data-00000-of-00001"
  data.write_bytes(data.read_bytes()[:-1000])
  return prefix


def _one_variable_too_many(folder):
  values = {**read(FOLDER / CASE / "model.ckpt-0"), "Model/unit_3_0/f/sub1/conv1/w": np.float32(0)}
  return write(folder / "model.ckpt", values)


BAD = {
  "truncated": (_truncated, "damaged"),
  "of another model": (lambda folder: FOLDER / "revnet-btl-test", "does not fit the model"),
  "one variable too many": (_one_variable_too_many, "not in the model: Model/unit_3_0/f/sub1/conv1/w"),
  "malicious": (lambda folder: write_archive(folder / "a.tar.gz", [("../evil", b"x")]), "is refused"),
  "not there": (lambda folder: folder / "model.ckpt", "no checkpoint"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_nothing_is_left_of_an_import_that_fails(tmp_path, make, message):
  (tmp_path / "checkpoint").mkdir()
  experiment = experiment_in(tmp_path)
  with pytest.raises(UserError, match=message):
    import_checkpoint(make(tmp_path / "checkpoint"), experiment, case_config(CASE))
  assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_an_import_or_export_that_cannot_be_written_may_be_tried_again(tmp_path, imported, monkeypatch):
  def fail(*_):
    raise OSError(errno.ENOSPC, "no space left")

  with monkeypatch.context() as patched:
    patched.setattr(tf.train.Checkpoint, "write", fail)
    patched.setattr("resnet.original.checkpoint.save_tf1_checkpoint", fail)
    with pytest.raises(UserError, match=r"cannot write .*no space left"):
      import_checkpoint(FOLDER / CASE, experiment_in(tmp_path), case_config(CASE))
    with pytest.raises(UserError, match=r"cannot write to .*no space left"):
      export_checkpoint(imported, tmp_path / "exported")
  assert not (tmp_path / "exported").exists()
  assert not [*tmp_path.rglob("model.ckpt*")]
  assert import_checkpoint(FOLDER / CASE, experiment_in(tmp_path), case_config(CASE)) == 0


def test_a_keras_file(exported):
  on_pixels = keras.models.load_model(exported / "model.keras")
  x, probabilities = expected(CASE)["x"], expected(CASE)["eval_probabilities"]
  np.testing.assert_allclose(tf.nn.softmax(on_pixels(x + MEAN)), probabilities, rtol=1e-3, atol=1e-4)
  model = on_pixels.get_layer("revnet-test")
  ours, _ = restored(CASE)
  for loaded, variable in zip(model.variables, ours.variables, strict=True):
    assert loaded.path == variable.path
    np.testing.assert_array_equal(loaded.numpy(), variable.numpy())
  assert model.config == ours.config


def test_a_saved_model_takes_any_number_of_images(exported):
  network = tf.saved_model.load(exported / "saved_model").signatures["network"]
  x, probabilities = expected(CASE)["x"], expected(CASE)["eval_probabilities"]
  for n in (1, 3, 10):
    logits = network(tf.constant(x[:n]))["logits"]
    np.testing.assert_allclose(tf.nn.softmax(logits), probabilities[:n], rtol=1e-5, atol=1e-7)


def test_an_export_of_the_original_s_checkpoint_is_that_checkpoint(exported):
  stored, original = read(exported / "tf1" / "model.ckpt-0"), read(FOLDER / CASE / "model.ckpt-0")
  assert _bits(stored) == _bits(original)
  assert filecmp.cmp(exported / "tf1" / "checkpoint", FOLDER / CASE / "checkpoint")


def test_an_export_over_something_or_of_nothing_is_refused(tmp_path, imported):
  (tmp_path / "there").mkdir()
  for output, step, message in (
    ("there", None, "there exists"),
    ("new", 5, "no checkpoint .*model.ckpt-5"),
  ):
    with pytest.raises(UserError, match=message):
      export_checkpoint(imported, tmp_path / output, ["tf1"], step)
  with pytest.raises(UserError, match="no experiment missing"):
    export_checkpoint(experiment_in(tmp_path, "missing"), tmp_path / "new")
  assert [entry.name for entry in tmp_path.rglob("*")] == ["there"]


def _tool(name, *arguments):
  return subprocess.run(
    [sys.executable, "-m", f"resnet.tools.{name}", *map(str, arguments)],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": str(pathlib.Path(resnet.__file__).parents[1])},
  )


def test_the_commands(tmp_path):
  files = ("checkpoint", "model.ckpt-0.index", "model.ckpt-0.data-00000-of-00001")
  archive = write_archive(
    tmp_path / "revnet.tar.gz", [(f"revnet/{name}", (FOLDER / CASE / name).read_bytes()) for name in files]
  )
  place = ["--id", "mine", "--results", tmp_path / "results"]
  conf = FOLDER / CASE / "conf.json"
  done = _tool("import_checkpoint", "--checkpoint", archive, "--config", conf, *place)
  assert (done.returncode, done.stdout) == (
    0,
    f"experiment mine: revnet-test at step 0, in {tmp_path / 'results' / 'mine'}\n",
  )
  done = _tool("export_checkpoint", *place, "--output", tmp_path / "out", "--format", "tf1")
  assert done.returncode == 0
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["class_names.txt", "conf.json", "tf1"]


def test_a_mistake_is_one_line(tmp_path):
  done = _tool("import_checkpoint", "--checkpoint", "x", "--id", "mine", "--results", tmp_path)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1] == (
    "import_checkpoint.py: error: one of --model and --config must be given: what the checkpoint is of"
  )
  assert "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())
