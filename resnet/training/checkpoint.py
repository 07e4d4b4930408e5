"""Checkpoints of a run: weights, moving statistics, momentum and step. Older checkpoints are kept."""

import contextlib
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

import keras
import tensorflow as tf
from absl import logging

from resnet.training.optimizer import Momentum
from resnet.utils.errors import UserError, reason_of

PREFIX = "model.ckpt"
DATA_SUFFIX = ".data-00000-of-00001"


class CheckpointError(UserError):
  """A checkpoint is missing, damaged, or of another model."""


class NotFiniteError(CheckpointError):
  """A variable to be saved, or just restored, has values that are infinite or not a number."""


class SaveError(UserError):
  """A checkpoint could not be written: the disk is full or read-only."""


class Checkpoints:
  """The checkpoints model.ckpt-{step} of a folder, by `tf.train.Checkpoint`.

  Variables are stored by name, not by their place in Python objects, so that a checkpoint outlives changes of
  the code: model/{scope}/kernel and so on, momentum/{scope}/kernel for the kernel's accumulator, and step; with
  mixed_float16 also loss_scale/value and loss_scale/finite_steps.

  A checkpoint exists when both of its files are in the folder; the index is moved there last. The file
  `checkpoint` is written for `tf.train.latest_checkpoint` and never read here.

  Args:
    folder: of the experiment.
    model: built.
    optimizer: built for the model, or None to restore the model alone.
    writes: False for a process that leaves no file. Its `save` must be called all the same if its replicas hold
      parts of the moving statistics.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    model: keras.Model,
    optimizer: Momentum | None = None,
    writes: bool = True,
  ):
    def name(variable):
      return variable.path.removeprefix(f"{model.name}/")

    parts = {"model": {name(variable): variable for variable in model.variables}}
    checked = [*model.variables]
    if optimizer is not None:
      trained = map(name, model.trainable_variables)
      parts["momentum"] = dict(zip(trained, optimizer.accumulators, strict=True))
      parts["step"] = optimizer.iterations
      checked += optimizer.accumulators
      if optimizer.loss_scale:
        parts["loss_scale"] = optimizer.loss_scale.saved
    self._complete = optimizer is not None
    self._folder = folder
    self._writes = writes
    self._checkpoint = tf.train.Checkpoint(**parts)
    self._checkpoint.save_counter  # noqa: B018  # Creates it: written files have it, read files must.
    self._checked = [v for v in checked if tf.as_dtype(v.dtype).is_floating]

  @property
  def num_bytes(self) -> int:
    """The size of a checkpoint, but for a few kB that name its tensors."""
    return sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in self._checked)

  def save(self, step: int) -> None:
    """Writes model.ckpt-{step}, whole or not at all.

    Raises:
      NotFiniteError: a value is not finite; nothing is written.
      SaveError: the disk is full or read-only; nothing is left behind.
    """
    self._require_finite(f"step {step}")
    if not self._writes:
      with tempfile.TemporaryDirectory() as folder:
        self._checkpoint.write(f"{folder}/{PREFIX}")
      return
    writing = self._folder / "writing"
    name = f"{PREFIX}-{step}"
    try:
      _remove(writing)
      writing.mkdir()
      self._checkpoint.write(str(writing / name))
      for suffix in (DATA_SUFFIX, ".index"):
        with open(writing / f"{name}{suffix}", "rb") as file:
          os.fsync(file.fileno())
        os.replace(writing / f"{name}{suffix}", self._folder / f"{name}{suffix}")
      self._write_list(step)
    except (OSError, tf.errors.OpError) as error:
      raise SaveError(f"cannot write {self._folder / name}: {reason_of(error)}") from error
    finally:
      _remove(writing)

  def steps(self) -> list[int]:
    """The steps of the checkpoints in the folder, the newest last."""
    names = {path.name for path in self._folder.iterdir()} if self._folder.is_dir() else set()
    found = (re.fullmatch(rf"{re.escape(PREFIX)}-(\d{{1,18}})\.index", name) for name in names)
    return sorted(int(m[1]) for m in found if m and m[0].removesuffix(".index") + DATA_SUFFIX in names)

  def restore(self, step: int | None = None) -> int:
    """Reads the checkpoint of `step`, or the newest that is intact, with a warning for each one passed over.

    Returns:
      The step.

    Raises:
      CheckpointError: there is none, or it is damaged, or of another model.
    """
    if step is not None:
      self._restore(step)
      return step
    problems: list[CheckpointError] = []
    for candidate in reversed(self.steps()):
      try:
        self._restore(candidate)
      except CheckpointError as error:
        problems.append(error)
        continue
      for problem in problems:
        logging.warning("passed over: %s", problem)
      return candidate
    raise problems[0] if problems else CheckpointError(f"no checkpoint in {self._folder}")

  def remove(self, step: int) -> None:
    """Removes the checkpoint of `step`; with `writes` False, nothing."""
    if self._writes:
      for suffix in (".index", DATA_SUFFIX):
        _remove(self._folder / f"{PREFIX}-{step}{suffix}")
      with contextlib.suppress(OSError):
        self._write_list(max(self.steps(), default=None))

  def remove_leftovers(self) -> None:
    """Removes the leftovers of a process that was killed during a save. Call it while holding the lock."""
    names = (
      "writing",
      "checkpoint.tmp",
      "conf.json.tmp",
      "conf-*.json.tmp",
      f"{PREFIX}-*_temp",
      f"{PREFIX}-*.tempstate*",
    )
    for pattern in names:
      for path in self._folder.glob(pattern):
        _remove(path)

  def _write_list(self, newest: int | None) -> None:
    names = [f"{PREFIX}-{step}" for step in self.steps()]
    lines = [f'all_model_checkpoint_paths: "{name}"\n' for name in names]
    if newest is not None:
      lines.insert(0, f'model_checkpoint_path: "{PREFIX}-{newest}"\n')
    temporary = self._folder / "checkpoint.tmp"
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, self._folder / "checkpoint")

  def _restore(self, step: int) -> None:
    path = self._folder / f"{PREFIX}-{step}"
    if step not in self.steps():
      raise CheckpointError(f"no checkpoint {path}; there are those of the steps {self.steps()}")
    try:
      with _plain_path(self._folder) as folder:
        status = self._checkpoint.restore(f"{folder}/{PREFIX}-{step}")
        status.expect_partial()  # No warning for each value that stays unused, such as momentum.
        status.assert_existing_objects_matched()
        if self._complete:
          status.assert_consumed()
    except (AssertionError, ValueError, IndexError, OSError, tf.errors.OpError) as error:
      raise CheckpointError(
        f"{path} is not a checkpoint of this model, or is damaged: {reason_of(error)}"
      ) from error
    self._require_finite(str(path))

  def _require_finite(self, what: str) -> None:
    """Checks each variable on its device; of values that differ between replicas the mean, which is saved."""
    for variable in self._checked:
      try:
        tf.debugging.check_numerics(variable.value, "")
      except tf.errors.InvalidArgumentError as error:
        raise NotFiniteError(f"{what}: {variable.path} has values that are not finite") from error


@contextlib.contextmanager
def _plain_path(folder: pathlib.Path) -> Iterator[str]:
  """A path to `folder` without [, ], * and so on, which TensorFlow would take for a glob pattern."""
  with tempfile.TemporaryDirectory() as scratch:
    link = os.path.join(scratch, "folder")
    os.symlink(folder.resolve(), link)
    yield link


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):
      path.unlink()
