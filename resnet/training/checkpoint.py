"""Checkpoints of a run: weights, moving statistics, momentum and step, all of them kept."""

import pathlib

import keras
import tensorflow as tf

from resnet.training.optimizer import Momentum
from resnet.utils.errors import UserError

PREFIX = "model.ckpt"


class Checkpoints:
  """The checkpoints model.ckpt-{step} of a folder, by `tf.train.Checkpoint`.

  Variables are kept by their names, not by their places in Python objects, so that a checkpoint outlives
  changes of the code: model/{scope}/kernel and so on, momentum/{scope}/kernel for its accumulator, step.

  Args:
    folder: of the experiment.
    model: built.
    optimizer: built for the model, or None to restore the model alone.
  """

  def __init__(self, folder: pathlib.Path, model: keras.Model, optimizer: Momentum | None = None):
    def name(variable):
      return variable.path.removeprefix(f"{model.name}/")

    parts = {"model": {name(variable): variable for variable in model.variables}}
    if optimizer is not None:
      trained = map(name, model.trainable_variables)
      parts["momentum"] = dict(zip(trained, optimizer.accumulators, strict=True))
      parts["step"] = optimizer.iterations
    self._complete = optimizer is not None
    self._folder = folder
    self._manager = tf.train.CheckpointManager(
      tf.train.Checkpoint(**parts), str(folder), max_to_keep=None, checkpoint_name=PREFIX
    )

  def save(self, step: int) -> None:
    """Writes model.ckpt-{step}. It appears under that name only when it is complete."""
    self._manager.save(checkpoint_number=step)

  def restore(self, step: int | None = None) -> None:
    """Reads the checkpoint of `step`, by default the newest.

    Raises:
      UserError: there is none, it is damaged, or it is of another model.
    """
    path = self._manager.latest_checkpoint if step is None else str(self._folder / f"{PREFIX}-{step}")
    if path is None or not pathlib.Path(f"{path}.index").is_file():
      raise UserError(f"no checkpoint {PREFIX}-{'*' if step is None else step} in {self._folder}")
    try:
      status = self._manager.checkpoint.restore(path)
      status.assert_existing_objects_matched()
      if self._complete:
        status.assert_consumed()
    except (AssertionError, ValueError, IndexError, tf.errors.OpError) as error:
      reason = str(error).strip().splitlines()[0]
      raise UserError(f"{path} is not a checkpoint of this model, or is damaged: {reason}") from error
