"""Checkpoints of a run: weights, moving statistics, momentum and step, all of them kept."""

import pathlib
import tempfile

import keras
import tensorflow as tf

from resnet.training.optimizer import Momentum
from resnet.utils.errors import UserError

PREFIX = "model.ckpt"


class Checkpoints:
  """The checkpoints model.ckpt-{step} of a folder, by `tf.train.Checkpoint`.

  Variables are kept by their names, not by their places in Python objects, so that a checkpoint outlives
  changes of the code: model/{scope}/kernel and so on, momentum/{scope}/kernel for its accumulator, step;
  for a model of mixed_float16 loss_scale/value and loss_scale/finite_steps.

  Args:
    folder: of the experiment.
    model: built.
    optimizer: built for the model, or None to restore the model alone.
    writes: False for a process that takes part in saving, as all must whose replicas hold parts of the
      moving statistics, but is not the one to leave a file.
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
    if optimizer is not None:
      trained = map(name, model.trainable_variables)
      parts["momentum"] = dict(zip(trained, optimizer.accumulators, strict=True))
      parts["step"] = optimizer.iterations
      if optimizer.scales_loss:
        parts["loss_scale"] = {"value": optimizer.loss_scale, "finite_steps": optimizer.finite_steps}
    self._complete = optimizer is not None
    self._folder = folder
    self._writes = writes
    self._checkpoint = tf.train.Checkpoint(**parts)

  def save(self, step: int) -> None:
    """Writes model.ckpt-{step}. The folder's file `checkpoint` lists it only when it is complete."""
    if not self._writes:
      with tempfile.TemporaryDirectory() as folder:
        self._checkpoint.write(f"{folder}/{PREFIX}")
      return
    manager = tf.train.CheckpointManager(
      self._checkpoint, str(self._folder), max_to_keep=None, checkpoint_name=PREFIX
    )
    manager.save(checkpoint_number=step)

  def steps(self) -> list[int]:
    """The steps of the checkpoints that are complete, the newest last."""
    state = tf.train.get_checkpoint_state(str(self._folder))
    return [int(path.rpartition("-")[2]) for path in state.all_model_checkpoint_paths] if state else []

  def latest_step(self) -> int:
    """The step of the newest checkpoint.

    Raises:
      UserError: there is none.
    """
    steps = self.steps()
    if not steps:
      raise UserError(f"no checkpoint in {self._folder}")
    return steps[-1]

  def restore(self, step: int) -> None:
    """Reads the checkpoint of `step`.

    Raises:
      UserError: there is none, it is damaged, or it is of another model.
    """
    path = self._folder / f"{PREFIX}-{step}"
    if step not in self.steps():
      raise UserError(f"no checkpoint {path}; there are those of the steps {self.steps()}")
    try:
      status = self._checkpoint.restore(str(path))
      status.assert_existing_objects_matched()
      if self._complete:
        status.assert_consumed()
    except (AssertionError, ValueError, IndexError, tf.errors.OpError) as error:
      reason = str(error).strip().splitlines()[0]
      raise UserError(f"{path} is not a checkpoint of this model, or is damaged: {reason}") from error
