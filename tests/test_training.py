"""The training loop and its checkpoints: resuming is exact, nothing is overwritten."""

import contextlib
import csv
import dataclasses
import math
import re
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, values

from resnet.configs import get_config
from resnet.data import EvaluationData, get_dataset
from resnet.experiments.curves import read_curve
from resnet.experiments.experiment import Experiment
from resnet.models import RevNet, get_model
from resnet.training.checkpoint import Checkpoints
from resnet.training.evaluate import make_evaluate
from resnet.training.loss_scale import INITIAL_LOSS_SCALE
from resnet.training.optimizer import make_optimizer
from resnet.training.step import averaged_over_passes, loss_and_gradients
from resnet.training.strategy import make_strategy
from resnet.training.train_loop import RunOptions, train
from resnet.utils.errors import UserError

CONFIG = dataclasses.replace(
  get_config("revnet-test"),
  dataset="digits",
  height=32,
  width=32,
  num_residual_units=(1, 1),  # What is trained matters little here, and is soon traced.
  filters=(8, 8, 16),
  lr_decay_steps=(3, 5),
  max_train_iter=6,
  disp_iter=2,
  valid_iter=3,
  save_iter=4,
)
DEEPER = dataclasses.replace(CONFIG, num_residual_units=(2, 2))


def run(folder, experiment_id, config=CONFIG, strategy=None, **kwargs):
  experiment = Experiment.named(experiment_id, str(folder / "results"), str(folder / "logs"))
  strategy = strategy or make_strategy(0, config.batch_size)
  data = get_dataset(config, "", "train")
  evaluated = {"train_acc": EvaluationData(data, 2), "valid_acc": EvaluationData(data, 1)}
  return experiment, train(config, experiment, strategy, data, evaluated, RunOptions(**kwargs))


def tensors(experiment, step):
  reader = tf.train.load_checkpoint(str(experiment.folder / f"model.ckpt-{step}"))
  names = [
    name
    for name in reader.get_variable_to_shape_map()
    if name.startswith(("model", "momentum", "step", "loss_scale"))
  ]
  return {name: reader.get_tensor(name) for name in names}


def steps(experiment, curve):
  with open(experiment.logs_folder / f"{curve}.csv", encoding="utf-8") as file:
    return [int(row["step"]) for row in csv.DictReader(file)]


def times(experiment):
  """When each of its files was written last, except the lock's."""
  return {path: path.stat().st_mtime_ns for path in experiment.folder.iterdir() if path.name != "lock"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  return run(tmp_path_factory.mktemp("uninterrupted"), "a")


def test_curves_and_checkpoints_come_when_they_are_due(uninterrupted):
  experiment, accuracies = uninterrupted
  assert steps(experiment, "train_ce") == [1, 2, 4, 6]
  assert steps(experiment, "train_acc") == steps(experiment, "valid_acc") == [1, 3, 6]
  assert steps(experiment, "learn_rate") == [1, 3, 4, 5, 6]
  assert {path.name for path in experiment.folder.glob("*.index")} == {
    f"model.ckpt-{k}.index" for k in (1, 4, 6)
  }
  assert experiment.load_config() == dataclasses.replace(CONFIG, num_replicas=1)
  assert set(accuracies) == {"train_acc", "valid_acc"}
  header = (experiment.logs_folder / "learn_rate.csv").read_text().splitlines()
  assert header[0] == "step,time,lr"
  rates = [line.split(",")[2] for line in header[1:]]
  assert rates == ["1.000000e-01", "1.000000e-02", "1.000000e-02", "1.000000e-03", "1.000000e-03"]


def test_the_curves_are_in_tensorboard_too(uninterrupted):
  experiment, _ = uninterrupted
  (events,) = experiment.logs_folder.glob("events.out.tfevents.*")
  points = {}
  for record in tf.data.TFRecordDataset(str(events)):
    event = tf.compat.v1.Event.FromString(record.numpy())
    for value in event.summary.value:
      points.setdefault(value.tag, []).append(event.step)
      assert value.metadata.plugin_data.plugin_name == "scalars"
  assert points == {
    curve: steps(experiment, curve) for curve in ("train_ce", "train_acc", "valid_acc", "learn_rate")
  }


def test_a_log_has_a_line_at_each_evaluation_and_change_of_rate(tmp_path, monkeypatch, capsys):
  evaluated = []

  def make_evaluate_counted(*args):
    evaluate = make_evaluate(*args)

    def counted(dataset):
      evaluated.append(dataset)
      return evaluate(dataset)

    return counted

  monkeypatch.setattr("resnet.training.train_loop.make_evaluate", make_evaluate_counted)
  experiment, accuracies = run(tmp_path, "a")
  log = capsys.readouterr()
  assert not log.err
  lines = log.out.partition("\ncompiling ...\ncompiled, ")[2].splitlines()[1:]
  found = [
    re.match(r"step (\d)/6 .* loss (\S+) .*train acc +(\S+) .*test acc +(\S+) .*rate (\S+) ", line)
    for line in lines
  ]
  losses = {step: f"{loss:.4f}" for step, loss in read_curve(experiment.logs_folder / "train_ce.csv").items()}
  rates = read_curve(experiment.logs_folder / "learn_rate.csv")
  assert [int(line[1]) for line in found] == [1, 3, 5, 6], "evaluations at 1, 3 and 6, new rates at 3 and 5"
  assert [float(line[5]) for line in found] == pytest.approx([0.1, rates[3], rates[5], rates[6]])
  assert found[-1][2] == losses[6]
  for group, curve in ((3, "train_acc"), (4, "valid_acc")):
    points = read_curve(experiment.logs_folder / f"{curve}.csv")
    assert [line[group] for line in found] == [
      f"{100 * points[k]:.2f}" if k in points else "-" for k in (1, 3, 5, 6)
    ]
    assert accuracies[curve] == pytest.approx(points[6])
  assert len(evaluated) == 6, "two data sets after steps 1, 3 and 6; none again at the end"


@pytest.mark.parametrize("stop", [1, 5])
def test_a_resumed_run_ends_bit_identical(uninterrupted, tmp_path, stop):
  experiment, _ = run(tmp_path, "a", max_num_steps=stop)
  assert max(int(path.stem.split("-")[-1]) for path in experiment.folder.glob("*.index")) == stop
  experiment, accuracies = run(tmp_path, "a", restore=True)
  actual, expected = tensors(experiment, 6), tensors(uninterrupted[0], 6)
  assert actual.keys() == expected.keys()
  model, _ = built(CONFIG)
  assert len(expected) == len(model.variables) + len(model.trainable_variables) + 1
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value, err_msg=name)
  assert accuracies == uninterrupted[1]
  assert steps(experiment, "train_ce") == [1, 2, 4, 6]


def test_float16_keeps_its_loss_scale(tmp_path):
  config = dataclasses.replace(CONFIG, dtype="mixed_float16")
  model, optimizer = built(config)
  optimizer.loss_scale.value.assign(8.0)
  optimizer.loss_scale.finite_steps.assign(5.0)
  Checkpoints(tmp_path, model, optimizer).save(3)
  model, optimizer = built(config)
  assert optimizer.loss_scale.value.numpy() == INITIAL_LOSS_SCALE
  Checkpoints(tmp_path, model, optimizer).restore(3)
  assert (optimizer.loss_scale.value.numpy(), optimizer.loss_scale.finite_steps.numpy()) == (8, 5)


def test_compiled_training_agrees(tmp_path):
  expected, actual = (
    tensors(run(tmp_path, name, dataclasses.replace(DEEPER, max_train_iter=1, jit=jit))[0], 1)
    for name, jit in (("a", False), ("b", True))
  )
  assert_close([actual[name] for name in expected], list(expected.values()), 5e-3, list(expected))


@pytest.mark.parametrize(
  ("grid_bits", "first", "second", "message"),
  [
    (
      0,
      (1e-6, 1e-4),
      (1e-6, 2e-2),
      "step 2: stage 2 is rebuilt with a relative error of 2.0e-02, and its",
    ),
    (
      16,
      (0, 0),
      (0, 1e-6),
      "step 2: stage 2 .* of 1.0e-06, where grid_bits=16 .* grid, .-256, .* smaller",
    ),
  ],
)
def test_the_reconstruction_is_monitored_and_warned_of(
  tmp_path, monkeypatch, caplog, grid_bits, first, second, message
):
  measured = []

  def errors(images):
    """Of stages 1 and 2, the second of which drifts when it is measured again."""
    measured.append(images.shape)
    return tf.where(times.assign_add(1) == 1, tf.constant(first, tf.float32), tf.constant(second, tf.float32))

  times = tf.Variable(0)
  monkeypatch.setattr(RevNet, "reconstruction_errors", lambda self, images: errors(images))
  experiment, _ = run(
    tmp_path,
    "a",
    dataclasses.replace(CONFIG, max_train_iter=2, grid_bits=grid_bits),
    monitors_reconstruction=True,
  )
  with open(experiment.logs_folder / "reconstruction_error.csv", encoding="utf-8") as file:
    rows = [[float(row[column]) for column in ("step", "stage_1", "stage_2")] for row in csv.DictReader(file)]
  np.testing.assert_allclose(rows, [[1, *first], [2, *second]])
  assert measured == [(100, 32, 32, 3)]
  (warning,) = [record.getMessage() for record in caplog.records if "rebuilt" in record.getMessage()]
  assert re.match(message, warning)


def test_a_finished_run_only_evaluates(uninterrupted):
  experiment, accuracies = uninterrupted
  before = times(experiment)
  assert run(experiment.folder.parent.parent, "a", restore=True)[1] == accuracies
  assert times(experiment) == before


def test_an_experiment_that_exists_is_not_overwritten(uninterrupted):
  experiment, _ = uninterrupted
  before = times(experiment)
  with pytest.raises(UserError, match="experiment a exists in .*continue it with --restore, or choose another"):
    run(experiment.folder.parent.parent, "a")
  assert times(experiment) == before


def test_a_missing_damaged_or_foreign_checkpoint_is_one_clear_error(uninterrupted, tmp_path):
  experiment = Experiment.named("b", str(tmp_path / "results"), str(tmp_path / "logs"))
  experiment.create(CONFIG)
  with pytest.raises(UserError, match="no checkpoint in .*results/b"):
    run(tmp_path, "b", restore=True)
  for file in uninterrupted[0].folder.glob("*"):
    (experiment.folder / file.name).write_bytes(file.read_bytes())
  with pytest.raises(UserError, match=r"model.ckpt-6 is not a checkpoint of this model"):
    run(tmp_path, "b", restore=True, config=dataclasses.replace(CONFIG, filters=(8, 8, 24)))
  with pytest.raises(UserError, match=r"model.ckpt-6 is not a checkpoint of this model"):
    run(tmp_path, "b", restore=True, config=dataclasses.replace(CONFIG, num_residual_units=(2, 1)))
  data = experiment.folder / "model.ckpt-6.data-00000-of-00001"
  data.write_bytes(data.read_bytes()[:1000])
  with pytest.raises(UserError, match=r"model.ckpt-6 is not a checkpoint of this model, or is damaged"):
    Checkpoints(experiment.folder, *built(CONFIG)).restore(6)


def test_ctrl_c_saves_and_says_how_to_continue(tmp_path, capsys):
  class Interrupting:
    """Training data during whose third batch Ctrl-C is pressed."""

    class_names = None
    preprocessing = get_dataset(CONFIG, "", "train").preprocessing

    def training_batches(self, *args):
      def interrupt(step, batch):
        if step == 2:
          signal.raise_signal(signal.SIGINT)
        return batch

      def batches():
        for step, batch in enumerate(get_dataset(CONFIG, "", "train").training_batches(*args)):
          yield interrupt(step, batch)

      spec = get_dataset(CONFIG, "", "train").training_batches(*args).element_spec
      return tf.data.Dataset.from_generator(batches, output_signature=spec)

    num_examples = 1500

    def data_errors(self):
      return contextlib.nullcontext()

  experiment = Experiment.named("c", str(tmp_path / "results"), str(tmp_path / "logs"))
  handler = signal.getsignal(signal.SIGINT)
  with pytest.raises(SystemExit) as exit_info:
    train(CONFIG, experiment, make_strategy(0, 10), Interrupting(), {})
  assert exit_info.value.code == 128 + signal.SIGINT
  assert signal.getsignal(signal.SIGINT) == handler
  stopped = max(steps(experiment, "learn_rate"))
  assert f"stopped at step {stopped}; continue with --restore --id=c" in capsys.readouterr().out
  assert (experiment.folder / f"model.ckpt-{stopped}.index").exists()


def test_a_network_that_is_frozen_whole_has_a_loss_and_no_gradients():
  model, _ = built(CONFIG)
  model.trainable = False
  images, labels = next(iter(get_dataset(CONFIG, "", "train").training_batches(0)))
  for num_pass in (1, 2):
    loss, gradients = averaged_over_passes(model, images, labels, num_pass)
    assert np.isfinite(loss)
    assert gradients == []


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  with pytest.raises(UserError, match="diverged at step 2 with the learning rate 1e.30: the loss is nan"):
    run(tmp_path, "d", config=dataclasses.replace(CONFIG, base_learn_rate=1e30))
  assert not (tmp_path / "results" / "d" / "model.ckpt-2.index").exists()


@pytest.fixture(scope="module")
def two_halves(tmp_path_factory):
  """Three steps by the mean of the gradients, and of the moving statistics, of the batch's halves."""
  model, optimizer = built(DEEPER)
  for images, labels in get_dataset(DEEPER, "", "train").training_batches(0).take(3):
    gradients, statistics = [], []
    state = values(model.non_trainable_variables)
    for half in (slice(0, 5), slice(5, 10)):
      for variable, value in zip(model.non_trainable_variables, state, strict=True):
        variable.assign(value)
      gradients.append(loss_and_gradients(model, images[half], labels[half])[1])
      statistics.append(values(model.non_trainable_variables))
    optimizer.apply([(a + b) / 2 for a, b in zip(*gradients, strict=True)], model.trainable_variables)
    for variable, *halves in zip(model.non_trainable_variables, *statistics, strict=True):
      variable.assign(np.mean(halves, axis=0))
  return model


@pytest.mark.parametrize(("devices", "num_pass", "memory"), [(2, 1, "1.8MB"), (1, 2, "auto")])
def test_replicas_and_passes_train_as_parts_of_the_batch(two_halves, tmp_path, devices, num_pass, memory):
  # Without collectives: TensorFlow knows these by numbers that every strategy of a process counts from 100, and
  # takes those of another test for the same.
  strategy = tf.distribute.MirroredStrategy(
    [f"CPU:{index}" for index in range(devices)], cross_device_ops=tf.distribute.ReductionToOneDevice()
  )
  config = dataclasses.replace(DEEPER, max_train_iter=3, activation_memory=memory, num_pass=num_pass)
  experiment, _ = run(tmp_path, "e", config=config, strategy=strategy)
  model, optimizer = built(config)
  Checkpoints(experiment.folder, model, optimizer).restore(3)
  for ours, expected in zip(model.variables, two_halves.variables, strict=True):
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-5, err_msg=expected.path)


def test_the_memory_of_the_images_of_a_pass_must_be_there(tmp_path, capfd):
  least = get_model(CONFIG).activation_plan(5).least
  config = dataclasses.replace(CONFIG, max_train_iter=1, num_pass=2, activation_memory=f"{least - 1:.0f}B")
  message = f"must be at least {math.ceil(least / 1e6)} MB, which 5 images .* got {config.activation_memory}"
  with pytest.raises(UserError, match=message):
    run(tmp_path, "e", config)
  assert not (tmp_path / "results").exists()

  config = dataclasses.replace(config, activation_memory=f"{least:.0f}B")
  experiment, _ = run(tmp_path, "e", config)
  plan = get_model(config).activation_plan(5)
  assert f"{plan}, for the 5 images that a device takes at a time" in capfd.readouterr().out
  assert experiment.load_config() == dataclasses.replace(config, num_replicas=1)

  ordinary = dataclasses.replace(config, manual_gradients=False, activation_memory="1B")
  run(tmp_path, "o", ordinary)  # It chooses nothing.


def test_passes_that_do_not_divide_the_batch_are_refused(tmp_path):
  with pytest.raises(UserError, match="--num_pass must divide the 10 images of a replica, got 3"):
    run(tmp_path, "f", dataclasses.replace(CONFIG, num_pass=3))
  assert not (tmp_path / "results").exists()


def built(config):
  keras.utils.set_random_seed(config.seed)
  model = get_model(config)
  optimizer = make_optimizer(config, model)
  return model, optimizer


def test_devices_that_are_not_there_are_refused():
  with pytest.raises(UserError, match="--num_gpu is 3, but 0 GPUs .* give --num_gpu 0 to train on the CPU"):
    make_strategy(3, 12)
  with pytest.raises(UserError, match="the default of --num_gpu is 4, but 0 GPUs .* give --num_gpu 0 to train"):
    make_strategy(None, 12, default=4)
