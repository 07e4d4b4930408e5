"""Saving during a run: what to do when a save fails, and when the run has diverged."""

import math

from absl import logging

from resnet.configs.config import Config
from resnet.experiments.experiment import Experiment
from resnet.training.checkpoint import PREFIX, Checkpoints, NotFiniteError, SaveError
from resnet.training.lr_schedule import learning_rate
from resnet.training.optimizer import Momentum
from resnet.utils.errors import UserError


class Saver:
  """Saves a run's checkpoints, and says what to do when it has diverged.

  A loss depends on the weights and the batch alone, not on the learning rate. So a checkpoint after which the
  loss is not finite is of no use, whatever the rate. It is removed if this run has written it.

  Args:
    checkpoints, config, experiment: of the run.
    restored: the step that the run continues from; None for a new run.
  """

  def __init__(self, checkpoints: Checkpoints, config: Config, experiment: Experiment, restored: int | None):
    self._checkpoints = checkpoints
    self._config = config
    self._experiment = experiment
    self._restored = restored
    self._saved: int | None = None
    self.failure: SaveError | None = None  # of the latest save

  def wants_loss(self, step: int) -> bool:
    """Whether `step` is the first after a checkpoint, so that its loss shows if the checkpoint is usable."""
    return step - 1 in (self._saved, self._restored)

  def check(self, step: int, loss: float, optimizer: Momentum) -> None:
    """Raises a UserError if the run has diverged."""
    if optimizer.overflows_always():
      raise self._diverged(step, "gradients overflow float16 at a loss scale of 1")
    if math.isfinite(loss):
      return
    if step - 1 == self._restored:
      bad = self._experiment.folder / f"{PREFIX}-{self._restored}"
      raise UserError(
        f"the loss of the first step from {bad} is {loss}, whatever the learning rate; delete {bad}.* to "
        "continue from the checkpoint before it"
      )
    if step - 1 == self._saved:
      self._checkpoints.remove(step - 1)
    raise self._diverged(step, f"the loss is {loss}")

  def save(self, step: int) -> None:
    """Writes the checkpoint of `step`. If it cannot be written, warns, and keeps the error in `failure`.

    Raises:
      UserError: the run has diverged.
    """
    try:
      self._checkpoints.save(step)
    except NotFiniteError as error:
      raise self._diverged(step, str(error)) from error
    except SaveError as error:
      self.failure = error
      logging.warning("%s; training goes on, and the next save is tried", error)
    else:
      self.failure = None
      self._saved = step

  def _diverged(self, step: int, reason: str) -> UserError:
    config = self._config
    rate = learning_rate(config, step)
    lower = [f"{min(rate / 10, 0.01):g}" for rate in (config.base_learn_rate, *config.lr_list)]
    overrides = f"--override base_learn_rate={lower[0]}"
    if lower[1:]:
      overrides += f" --override lr_list={','.join(lower[1:])}"
    steps = self._checkpoints.steps()
    if steps:
      advice = f"continue from the newest checkpoint, that of step {steps[-1]}, by --restore"
    else:
      advice = "no checkpoint is left to continue from, so start again by"
    return UserError(
      f"training has diverged at step {step} with the learning rate {rate:g}: {reason}. Lower the rate: "
      f"{advice} --id {self._experiment.id} {overrides}"
    )
