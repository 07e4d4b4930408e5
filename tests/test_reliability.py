"""What docs/reliability.md promises of a run: nothing lost, nothing hangs, every mistake one line."""

import csv
import dataclasses
import errno
import gc
import logging
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, values
from test_training import CONFIG, built, run, steps

from resnet.configs import get_config, override_config
from resnet.data import get_dataset
from resnet.experiments.curves import read_curve
from resnet.experiments.experiment import Experiment
from resnet.experiments.lock import locked
from resnet.experiments.logger import ExperimentLogger
from resnet.experiments.watch import begin_watching, end_watching
from resnet.training.checkpoint import CheckpointError, Checkpoints, NotFiniteError, SaveError
from resnet.training.saver import Saver
from resnet.training.step import make_train_step
from resnet.utils.app import run as run_main
from resnet.utils.errors import UserError, reason_of

# By ordinary backpropagation, which is soon traced.
SHORT = dataclasses.replace(
  CONFIG, max_train_iter=4, valid_iter=100, save_iter=1, disp_iter=1, manual_gradients=False
)


@pytest.fixture(scope="module")
def network():
  return built(SHORT)


@pytest.fixture
def checkpoints(network, tmp_path):
  """Of a folder whose name TensorFlow takes for a pattern, with steps 1, 2, 3, whose weights are 1, 2, 3."""
  folder = tmp_path / "data [new]*\\{a,b}?"
  folder.mkdir()
  opened = Checkpoints(folder, *network)
  for step in (1, 2, 3):
    for variable in network[0].variables:
      variable.assign(tf.fill(variable.shape, float(step)))
    opened.save(step)
  return folder, opened


@pytest.fixture
def no_space(monkeypatch):
  """A set of the numbers of the writes that fail, counted from 1."""
  fail: set[int] = set()
  count = 0
  write = tf.train.Checkpoint.write

  def failing(self, path, *args, **kwargs):
    nonlocal count
    count += 1
    if count in fail:
      pathlib.Path(f"{path}.data-00000-of-00001").write_bytes(b"half of it")
      raise OSError(errno.ENOSPC, "No space left on device")
    return write(self, path, *args, **kwargs)

  monkeypatch.setattr(tf.train.Checkpoint, "write", failing)
  return fail


def files(folder):
  return sorted(path.name for path in folder.iterdir() if path.name != "lock")


# What is not finite.


@pytest.mark.parametrize("part", ["weight", "statistic", "momentum"])
def test_nothing_that_is_not_finite_is_saved(part, tmp_path):
  model, optimizer = built(SHORT)
  variable = {
    "weight": model.trainable_variables,
    "statistic": model.non_trainable_variables,
    "momentum": optimizer.accumulators,
  }[part][1]
  variable.assign(tf.concat([variable.value[:-1], variable.value[-1:] * 0 + np.inf], 0))
  with pytest.raises(NotFiniteError, match=f"step 3: {variable.path} has values that are not finite"):
    Checkpoints(tmp_path, model, optimizer).save(3)
  assert not files(tmp_path)


def test_a_checkpoint_of_version_0_1_that_is_not_finite_is_passed_over(
  checkpoints, network, monkeypatch, caplog
):
  _, opened = checkpoints
  network[0].variables[0].assign(network[0].variables[0] * np.nan)
  with monkeypatch.context() as patched:
    patched.setattr(Checkpoints, "_require_finite", lambda *_: None)
    opened.save(4)
  assert opened.restore() == 3
  assert "passed over: " in caplog.text


def advised(error):
  """The flags that the message of a run that diverged advises: (overrides, whether to restore)."""
  flags = shlex.split(str(error.value).partition(" by ")[2])
  assert "--id=a" in flags
  return [flag.removeprefix("--override=") for flag in flags if "--override" in flag], "--restore" in flags


def test_a_diverged_run_names_the_newest_good_checkpoint_and_its_advice_works(tmp_path):
  run(tmp_path, "a", SHORT, max_num_steps=2)
  fast = override_config(SHORT, ["base_learn_rate=1e30", "lr_list=1e30,1e30"])
  with pytest.raises(
    UserError, match="diverged at step [34] with the learning rate 1e.30: .*of step 2,"
  ) as error:
    run(tmp_path, "a", fast, restore=True)
  overrides, restore = advised(error)
  assert restore
  experiment, _ = run(tmp_path, "a", override_config(fast, overrides), restore=True)
  assert steps(experiment, "train_ce") == [1, 2, 3, 4]


@pytest.mark.parametrize(
  "rate", ["1e7", "1e30"]
)  # The loss of step 2 is finite and of no use, or not a number.
def test_a_run_that_diverged_before_any_good_checkpoint_can_be_started_again(tmp_path, rate):
  fast = override_config(SHORT, [f"base_learn_rate={rate}", f"lr_list={rate},{rate}"])
  with pytest.raises(
    UserError, match="no checkpoint is left .* start again by .*--config=.*results/a/conf.json --id=a "
  ) as error:
    run(tmp_path, "a", fast)
  assert not [*tmp_path.rglob("model.ckpt*")], "the loss after step 1 is not finite, whatever the rate"
  overrides, restore = advised(error)
  assert not restore
  experiment, _ = run(tmp_path, "a", override_config(fast, [*overrides, "max_train_iter=2"]))
  assert steps(experiment, "train_ce") == [1, 2]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_restored_checkpoint_that_no_rate_can_mend_is_said_to_be_so(tmp_path, earlier):
  experiment, _ = run(tmp_path, "a", SHORT, max_num_steps=1 + earlier)
  ruined = 1 + earlier
  model, optimizer = built(SHORT)
  checkpoints = Checkpoints(experiment.folder, model, optimizer)
  checkpoints.restore(ruined)
  model.trainable_variables[-1].assign(np.linspace(0, 1e9, 10))  # the classifier's biases
  checkpoints.save(ruined)
  slow = override_config(SHORT, ["base_learn_rate=1e-9", "lr_list=1e-9,1e-9"])
  message = (
    rf"the loss of the first step from .*model.ckpt-{ruined} is \d.*e\+0\d, which no learning rate will mend"
  )
  with pytest.raises(UserError, match=message) as error:
    run(tmp_path, "a", slow, restore=True)
  if earlier:
    assert str(error.value).endswith("model.ckpt-2.* to continue from the checkpoint before it")
  else:
    assert re.search(
      r"delete .*model.ckpt-1\.\*, and start again by --config=.*results/a/conf.json --id=a", str(error.value)
    )
  checkpoints.remove(ruined)
  overrides, restore = advised(error) if not earlier else ([], True)
  assert restore == earlier
  run(tmp_path, "a", override_config(slow, overrides), restore=restore, max_num_steps=1)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_step_that_overflows_float16_leaves_the_moving_statistics(replicas):
  strategy = tf.distribute.MirroredStrategy(
    [f"CPU:{index}" for index in range(replicas)], cross_device_ops=tf.distribute.ReductionToOneDevice()
  )
  with strategy.scope():
    model, optimizer = built(dataclasses.replace(SHORT, dtype="mixed_float16", manual_gradients=True))
  step = make_train_step(model, optimizer, strategy)
  data = get_dataset(SHORT, "", "train").training_batches(0).rebatch(10 // replicas)
  batches = iter(strategy.experimental_distribute_dataset(data.take(2 * replicas)))
  before = values(model.variables)
  optimizer.loss_scale.value.assign(3e38)
  step(batches)
  for value, variable in zip(before, model.variables, strict=True):
    np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)
  optimizer.loss_scale.value.assign(1.0)
  step(batches)
  moved = [
    np.any(variable.numpy() != value)
    for value, variable in zip(before, model.variables)
    if not variable.trainable
  ]
  assert all(moved)


def test_a_float16_run_whose_steps_all_overflow_ends_as_diverged(tmp_path, monkeypatch):
  monkeypatch.setattr("resnet.training.loss_scale.INITIAL_LOSS_SCALE", 1.0)
  config = override_config(SHORT, ["dtype=mixed_float16", "base_learn_rate=1e20", "lr_list=1e20,1e20"])
  with pytest.raises(
    UserError, match="diverged at step .*(overflow float16 at a loss scale of 1|the loss is|finite)"
  ):
    run(tmp_path, "a", config)


def test_the_loss_scale_stays_at_least_one(network):
  config = dataclasses.replace(SHORT, dtype="mixed_float16")
  model, optimizer = built(config)
  optimizer.loss_scale.value.assign(1.5)
  overflow = [tf.fill(variable.shape, np.inf) for variable in model.trainable_variables]
  assert not optimizer.loss_scale.overflows_always()
  optimizer.apply(overflow, model.trainable_variables)
  assert optimizer.loss_scale.value.numpy() == 1
  assert optimizer.loss_scale.overflows_always()


# What is kept.


@pytest.mark.parametrize("keep", [None, 1, 2])
def test_older_checkpoints_go_but_never_the_newest_good_one(checkpoints, network, tmp_path, keep):
  folder, opened = checkpoints
  opened.save(9)  # Of a run that was continued from step 3 then; it is none of the newest now.
  opened.save(4)
  opened.remove(4)
  saver = Saver(opened, SHORT, Experiment("a", folder, tmp_path / "logs"), restored=3, keep=keep)
  left = []
  for step, loss in ((4, 2.0), (5, 2.0), (6, np.nan)):
    if loss == loss:
      saver.check(step, loss)
      left.append(opened.steps())
      saver.save(step)
    else:
      with pytest.raises(UserError, match="continue from the newest checkpoint"):
        saver.check(step, loss)
    left.append(opened.steps())
  assert (
    left
    == {
      None: [[1, 2, 3, 9], [1, 2, 3, 4, 9], [1, 2, 3, 4, 9], [1, 2, 3, 4, 5, 9], [1, 2, 3, 4, 9]],
      # A checkpoint is good when the loss after it is known: until then the one before it stays.
      1: [[3, 9], [3, 4, 9], [4, 9], [4, 5, 9], [4, 9]],
      2: [[2, 3, 9], [3, 4, 9], [3, 4, 9], [4, 5, 9], [4, 9]],
    }[keep]
  )


def test_a_checkpoint_that_waits_to_be_evaluated_stays(checkpoints, network, tmp_path):
  folder, opened = checkpoints
  experiment = Experiment("a", folder, tmp_path / "logs")
  begin_watching(experiment)
  curves = ExperimentLogger(experiment.logs_folder)
  curves.log("valid_acc", 1, acc=0.5)
  saver = Saver(opened, SHORT, experiment, restored=3, keep=1)
  saver.check(4, 2.0)
  assert opened.steps() == [2, 3]
  curves.log("valid_acc", 2, acc=0.5)
  saver.check(4, 2.0)
  assert opened.steps() == [3]
  saver.save(4)
  saver.check(5, 2.0)
  assert opened.steps() == [3, 4]
  end_watching(experiment)
  saver.check(5, 2.0)
  assert opened.steps() == [4]


def test_what_is_said_of_a_checkpoint_s_size_is_true(checkpoints):
  folder, opened = checkpoints
  size = sum(path.stat().st_size for path in folder.glob("model.ckpt-3.*"))
  assert 0.5 * size < opened.num_bytes <= size


# Opening checkpoints.


def test_the_folder_is_the_truth_whatever_the_file_checkpoint_says(checkpoints, network):
  folder, opened = checkpoints
  assert 'model_checkpoint_path: "model.ckpt-3"' in (folder / "checkpoint").read_text()
  for damage in (
    b"\xff\xfe",
    b'model_checkpoint_path: "elsewhere/weights"',
    b'model_checkpoint_path: "model.ckpt-9"',
    None,
  ):
    (folder / "checkpoint").unlink()
    if damage is not None:
      (folder / "checkpoint").write_bytes(damage)
    else:
      (folder / "checkpoint").mkdir()
    assert opened.steps() == [1, 2, 3]
    assert opened.restore() == 3
    assert float(tf.reduce_max(network[0].variables[0])) == 3


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
@pytest.mark.parametrize("size", [0, 50])
def test_a_damaged_newest_checkpoint_is_passed_over_and_said(checkpoints, network, caplog, suffix, size):
  folder, opened = checkpoints
  file = folder / f"model.ckpt-3{suffix}"
  file.write_bytes(file.read_bytes()[:size])
  assert opened.restore() == 2
  np.testing.assert_array_equal(network[0].variables[5], tf.fill(network[0].variables[5].shape, 2.0))
  (warning,) = [record.getMessage() for record in caplog.records]
  assert re.match("passed over: .*model.ckpt-3 is not a checkpoint of this model, or is damaged", warning)
  with pytest.raises(CheckpointError, match="model.ckpt-3 is not a checkpoint of this model, or is damaged"):
    opened.restore(3)
  with pytest.raises(CheckpointError, match=r"model.ckpt-7; there are those of the steps \[1, 2, 3\]"):
    opened.restore(7)


def test_half_a_checkpoint_is_none(checkpoints):
  folder, opened = checkpoints
  (folder / "model.ckpt-3.data-00000-of-00001").unlink()
  (folder / "model.ckpt-2.index").unlink()
  assert opened.steps() == [1]


def test_left_over_files_are_removed_by_the_next_run(tmp_path):
  experiment, _ = run(tmp_path, "a", SHORT, max_num_steps=1)
  before = files(experiment.folder)
  for folder in ("writing", "model.ckpt-2_temp"):
    (experiment.folder / folder).mkdir()
    (experiment.folder / folder / "part-00000-of-00001.data-00000-of-00001").touch()
  for file in ("model.ckpt-2.index.tempstate123", "conf.json.tmp", "checkpoint.tmp"):
    (experiment.folder / file).touch()
  (experiment.folder / "my.tmp").touch()
  run(tmp_path, "a", SHORT, max_num_steps=0, restore=True)
  assert files(experiment.folder) == sorted([*before, "my.tmp"])


@pytest.mark.parametrize("conf", [None, b""])
def test_an_experiment_without_checkpoints_can_be_started_again(tmp_path, conf):
  experiment, _ = run(tmp_path, "a", SHORT, max_num_steps=0)
  if conf is not None:
    experiment.config_file.write_bytes(conf)
  run(tmp_path, "a", SHORT, max_num_steps=1)
  assert experiment.load_config() == dataclasses.replace(SHORT, num_replicas=1)
  assert steps(experiment, "train_ce") == [1]


def test_evaluating_a_checkpoint_prints_nothing_about_momentum(checkpoints, network):
  folder, _ = checkpoints
  records = []
  handler = logging.Handler()
  handler.emit = records.append
  logger = logging.getLogger("tensorflow")
  logger.addHandler(handler)
  Checkpoints(folder, network[0]).restore()
  gc.collect()
  logger.removeHandler(handler)
  assert not records


# One writer.


def test_a_second_run_restore_or_import_is_refused(tmp_path):
  experiment = Experiment.named("a", str(tmp_path / "results"), str(tmp_path / "logs"))
  holder = f"process {os.getpid()} on {re.escape(socket.gethostname())}"
  with locked(experiment.folder):
    for kwargs in ({}, {"restore": True}):
      with pytest.raises(UserError, match=f"results/a is being written to by {holder}; wait for it to end"):
        run(tmp_path, "a", SHORT, **kwargs)
    with pytest.raises(UserError, match=holder), locked(experiment.folder):
      pass
  assert not experiment.logs_folder.exists()
  with locked(experiment.folder):
    pass


def test_the_lock_ends_with_its_process(tmp_path):
  program = (
    "import pathlib, time\nfrom resnet.experiments.lock import locked\n"
    f"with locked(pathlib.Path({str(tmp_path)!r})):\n  print(1, flush=True)\n  time.sleep(99)"
  )
  with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as holder:
    holder.stdout.readline()
    with pytest.raises(UserError, match=f"process {holder.pid} on "), locked(tmp_path):
      pass
    holder.kill()
  with locked(tmp_path):
    pass


def test_a_full_disk_is_no_reason_not_to_lock(tmp_path):
  program = (
    "import pathlib, resource\nfrom resnet.experiments.lock import locked\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    f"with locked(pathlib.Path({str(tmp_path)!r})):\n  pass"
  )
  process = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert process.returncode == 0, process.stderr


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
  def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr("fcntl.flock", no_locks)
  with locked(tmp_path):
    assert "no locks on this file system" in caplog.text


# Disks.


def test_a_save_that_fails_is_tried_again_at_the_next(tmp_path, no_space, caplog):
  no_space.update({1, 3})
  experiment, _ = run(tmp_path, "a", SHORT)
  assert [name for name in files(experiment.folder) if name.endswith(".index")] == [
    "model.ckpt-2.index",
    "model.ckpt-4.index",
  ]
  assert "writing" not in files(experiment.folder)
  assert re.findall(r"cannot write .*model.ckpt-(\d): .*No space left .*; training goes on", caplog.text) == [
    "1",
    "3",
  ]


def test_a_last_save_that_fails_is_the_error_of_the_run(tmp_path, no_space):
  no_space.add(2)
  with pytest.raises(SaveError, match="cannot write .*model.ckpt-2: .*No space left on device"):
    run(tmp_path, "a", SHORT, max_num_steps=2)
  assert run(tmp_path, "a", SHORT, restore=True)[0].folder.joinpath("model.ckpt-4.index").exists()


def test_curves_that_cannot_be_written_are_one_warning(tmp_path, caplog):
  experiment = Experiment.named("a", str(tmp_path / "results"), str(tmp_path / "logs"))
  (experiment.logs_folder / "train_ce.csv").mkdir(parents=True)
  run(tmp_path, "a", SHORT)
  assert caplog.text.count("cannot write curves to") == 1
  assert steps(experiment, "learn_rate") == [1, 2, 3, 4]


def test_a_full_disk_at_the_start_is_one_line(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr("resnet.experiments.experiment.save_config", full)
  with pytest.raises(UserError, match="cannot write to .*results/a: No space left on device"):
    run(tmp_path, "a", SHORT)


# Curves.


def test_every_point_of_a_step_is_written_before_its_checkpoint(tmp_path, monkeypatch):
  def killed(self, step):
    raise SystemExit(9)

  with monkeypatch.context() as patched:
    patched.setattr(Checkpoints, "save", killed)
    with pytest.raises(SystemExit):
      run(tmp_path, "a", SHORT)
  for curve in ("train_ce", "train_acc", "valid_acc", "learn_rate"):
    assert (tmp_path / f"logs/a/{curve}.csv").read_text().count("\n1,") == 1


def test_after_a_resume_curves_have_each_step_once(tmp_path):
  logger = ExperimentLogger(tmp_path)
  for step in (1, 2, 3, 2, 3, 4):
    logger.log("train_ce", step, ce=step)
  with open(tmp_path / "train_ce.csv", "ab") as file:
    file.write(b"5,2026-01-01T00:00:00.1,1.0e")  # killed while it wrote
  logger = ExperimentLogger(tmp_path, start=3)
  logger.log("train_ce", 4, ce=40)
  with open(tmp_path / "train_ce.csv", encoding="utf-8") as file:
    rows = [(int(row["step"]), float(row["ce"])) for row in csv.DictReader(file)]
  assert rows == [(1, 1), (2, 2), (3, 3), (4, 40)]
  assert [line.split(",")[0] for line in (tmp_path / "train_ce.csv.dropped").read_text().splitlines()] == list(
    "2345"
  )


def test_a_cut_or_binary_line_is_no_point(tmp_path):
  logger = ExperimentLogger(tmp_path)
  logger.log("valid_acc", 7, acc=0.5)
  with open(tmp_path / "valid_acc.csv", "ab") as file:
    file.write(b"\x00\xff\n9,now\n8,2026-01-01T00:0")
  assert read_curve(tmp_path / "valid_acc.csv") == {7: 0.5}
  logger.log("valid_acc", 9, acc=0.5)
  assert read_curve(tmp_path / "valid_acc.csv") == {7: 0.5, 9: 0.5}


# Signals.


def test_a_second_signal_ends_a_process_that_is_stuck():
  program = (
    "import ctypes\nfrom resnet.utils.interrupt import deferred_signals\n"
    "with deferred_signals():\n  print(1, flush=True)\n  while True:\n    ctypes.CDLL(None).sleep(99)"
  )
  pipe = subprocess.PIPE
  with subprocess.Popen(
    [sys.executable, "-c", program], cwd=ROOT, stdout=pipe, stderr=pipe, text=True
  ) as process:
    process.stdout.readline()
    process.terminate()
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline() == "stopping after this step; once more to stop at once\n"
    assert process.poll() is None
    process.terminate()
    try:
      assert process.wait(20) == 128 + signal.SIGTERM
    finally:
      process.kill()


@pytest.mark.parametrize("script", ["run_cifar_train.py", "run_imagenet_train.py", "run_imagenet_eval.py"])
def test_ctrl_c_while_the_modules_load_is_no_traceback(script, tmp_path):
  if script == "run_imagenet_eval.py":
    Experiment.named("a", str(tmp_path / "results/imagenet"), "").create(get_config("revnet-56"))
  command = [sys.executable, "-X", "importtime", str(ROOT / script), "--id=a"]
  with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
    while "google.protobuf" not in process.stderr.readline():  # TensorFlow is being loaded.
      assert process.poll() is None
    process.send_signal(signal.SIGINT)
    error = process.stderr.read()
  assert process.returncode == -signal.SIGINT
  assert "Traceback" not in error


def test_a_signal_during_the_last_save_ends_the_run_and_one_in_the_final_evaluation_acts_at_once(
  tmp_path, monkeypatch
):
  came = []
  handler = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
  try:
    save = Checkpoints.save

    def interrupted(self, step):
      save(self, step)
      signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
      patched.setattr(Checkpoints, "save", interrupted)
      with pytest.raises(SystemExit) as exit_info:
        run(tmp_path, "a", SHORT, max_num_steps=1)
    assert exit_info.value.code == 128 + signal.SIGTERM
    assert not came

    def evaluate(dataset):
      signal.raise_signal(signal.SIGTERM)
      return [0.0]

    monkeypatch.setattr("resnet.training.train_loop.make_evaluate", lambda *_: evaluate)
    run(tmp_path, "a", SHORT, max_num_steps=0, restore=True)
    assert came, "nothing is left to save: the signal is not held back"
  finally:
    signal.signal(signal.SIGTERM, handler)


# One line.


@pytest.mark.parametrize(
  ("error", "message", "has_traceback"),
  [
    (UserError("x must be y,\n got z"), "error: x must be y, got z", False),
    (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device", False),
    (PermissionError(errno.EACCES, "Permission denied", "there"), "error: there: Permission denied", False),
    (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), "lower batch_size (OOM when", False),
    (
      tf.errors.ResourceExhaustedError(None, None, "{{function_node __wrapped__Cast}} OOM [Op:Cast]"),
      "lower batch_size (OOM)",
      False,
    ),
    (OSError("without a number"), "please report it", True),
    (ZeroDivisionError("division by zero"), "please report it, with the lines above and the command", True),
  ],
)
def test_every_error_ends_in_one_line(monkeypatch, capsys, error, message, has_traceback):
  def main():
    raise error

  monkeypatch.setattr(sys, "argv", ["program"])
  with pytest.raises(SystemExit) as exit_info:
    run_main(lambda: None, main)
  assert message in exit_info.value.code
  assert "\n" not in exit_info.value.code
  assert ("Traceback" in capsys.readouterr().err) == has_traceback


@pytest.mark.parametrize(
  ("message", "reason"),
  [
    (
      "Graph execution error:\n\nDetected at node CollectiveReduceV2 defined at (most recent call last):\n"
      '<stack traces unavailable>\n  File "a.py", line 3, in main\n    train()\n'
      "Connection reset by peer\n\t [[{{node CollectiveReduceV2}}]] [Op:__inference_train_step_1234]",
      "Connection reset by peer",
    ),
    (
      "{{function_node __wrapped__SaveV2}} /d/part.data; No space left on device [Op:SaveV2]",
      "/d/part.data; No space left on device",
    ),
    ("plain", "plain"),
    ("\n [[{{node a}}]]", "ValueError"),
    ("", "ValueError"),
  ],
)
def test_tensorflow_s_messages_come_down_to_the_reason(message, reason):
  assert reason_of(ValueError(message)) == reason
