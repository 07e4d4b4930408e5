"""Saving during a run: what to keep, what to do when a save fails, and when the run has diverged."""

from absl import logging

from resnet.configs.config import Config
from resnet.experiments.experiment import Experiment
from resnet.experiments.watch import to_be_evaluated
from resnet.training.checkpoint import PREFIX, Checkpoints, NotFiniteError, SaveError
from resnet.training.hooks import comes_every
from resnet.training.loss_scale import LossScale
from resnet.training.lr_schedule import learning_rate
from resnet.utils.errors import UserError

# A tiny RevNet had one of 97 after a step at the rate 100, and of guessing 500 steps later; after a step at the
# rate 10,000 it had one of 740,000, and still of 800 after 1,500 steps.
MAX_LOSS = 1e5


class Saver:
  """Saves a run's checkpoints, and says what to do when it has diverged.

  A loss depends on the weights and the batch alone, not on the learning rate. So a checkpoint after which the
  loss is not finite, or beyond MAX_LOSS, is of no use, whatever the rate. It is removed if this run has written
  it. One after which the loss is none of these is good.

  Args:
    checkpoints, config, experiment: of the run.
    restored: the step that the run continues from; None for a new run.
    keep: how many checkpoints to keep, the newest; the newest good one stays, and so do those that
      run_imagenet_eval.py --watch has yet to evaluate. None: all.
    loss_scale: of the optimizer, if it has one.
  """

  def __init__(
    self,
    checkpoints: Checkpoints,
    config: Config,
    experiment: Experiment,
    restored: int | None,
    keep: int | None = None,
    loss_scale: LossScale | None = None,
  ):
    self._checkpoints = checkpoints
    self._config = config
    self._experiment = experiment
    self._restored = restored
    self._keep = keep
    self._loss_scale = loss_scale
    self._saved: int | None = None
    self._good: int | None = None
    self.failure: SaveError | None = None  # of the latest save

  def due(self, step: int) -> bool:
    """Whether a checkpoint is to be saved after `step`: every config.save_iter steps."""
    return comes_every(self._config.save_iter, step)

  def wants_loss(self, step: int) -> bool:
    """Whether `step` is the first after a checkpoint, so that its loss shows if the checkpoint is usable."""
    return step - 1 in (self._saved, self._restored)

  def check(self, step: int, loss: float) -> None:
    """Raises a UserError if the run has diverged."""
    if self._loss_scale and self._loss_scale.overflows_always():
      raise self._diverged(step, "gradients overflow float16 at a loss scale of 1")
    if abs(loss) <= MAX_LOSS:  # Not if it is no number.
      if self.wants_loss(step):
        self._good = step - 1
        self._remove_older(step - 1)
      return
    if step - 1 == self._restored:
      raise self._ruined(step - 1, loss)
    if step - 1 == self._saved:
      self._checkpoints.remove(step - 1)
    raise self._diverged(step, f"the loss is {loss:g}")

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
      self._remove_older(step)

  def _remove_older(self, step: int) -> None:
    """Removes what need not be kept of the checkpoints up to `step`, the one just written or found good."""
    if self._keep is None or self._good is None:
      return
    steps = [older for older in self._checkpoints.steps() if older <= step]
    kept = {*steps[-self._keep :], self._good} | to_be_evaluated(self._experiment, steps)
    for older in steps:
      if older not in kept:
        self._checkpoints.remove(older)

  def _ruined(self, restored: int, loss: float) -> UserError:
    """The first loss after the restored checkpoint is beyond anything that training can mend."""
    bad = self._experiment.folder / f"{PREFIX}-{restored}"
    if self._checkpoints.steps()[0] < restored:
      advice = f"delete {bad}.* to continue from the checkpoint before it"
    else:
      advice = f"delete {bad}.*, and start again by {self._command(restore=False)}"
    return UserError(
      f"the loss of the first step from {bad} is {loss:g}, which no learning rate will mend; {advice}"
    )

  def _command(self, restore: bool) -> str:
    """That goes on with a lower rate."""
    lower = [f"{min(rate / 10, 0.01):g}" for rate in (self._config.base_learn_rate, *self._config.lr_list)]
    overrides = [f"--override=base_learn_rate={lower[0]}"]
    if lower[1:]:
      overrides.append(f"--override=lr_list={','.join(lower[1:])}")
    return self._experiment.command(*overrides, restore=restore)

  def _diverged(self, step: int, reason: str) -> UserError:
    rate = learning_rate(self._config, step)
    steps = self._checkpoints.steps()
    if steps:
      advice = (
        f"continue from the newest checkpoint, that of step {steps[-1]}, by {self._command(restore=True)}"
      )
    else:
      advice = f"no checkpoint is left to continue from, so start again by {self._command(restore=False)}"
    return UserError(
      f"training has diverged at step {step} with the learning rate {rate:g}: {reason}. Lower the rate: "
      f"{advice}"
    )
