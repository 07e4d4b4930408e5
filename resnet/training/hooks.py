"""What a run does after some of its steps."""

from collections.abc import Callable, Mapping
from typing import Protocol

import tensorflow as tf
from absl import logging

from resnet.configs.config import Config
from resnet.data.get_dataset import EvaluationData
from resnet.experiments.logger import ExperimentLogger
from resnet.models import RevNet
from resnet.training.lr_schedule import learning_rate
from resnet.training.progress import Progress

MAX_RECONSTRUCTION_ERROR = 1e-2  # relative; beyond it there is a warning.


class Hook(Protocol):
  """Acts after the steps at which it is due."""

  def due(self, step: int) -> bool:
    """Whether it acts after `step`."""

  def act(self, step: int, loss: float) -> None:
    """Acts; `loss` is that of the step."""


def comes_every(interval: int, step: int) -> bool:
  """Whether `step` is the first, or a multiple of `interval`."""
  return step == 1 or step % interval == 0


class LossCurve:
  """Logs the loss, every config.disp_iter steps."""

  def __init__(self, config: Config, logger: ExperimentLogger):
    self._config = config
    self._logger = logger

  def due(self, step: int) -> bool:
    return comes_every(self._config.disp_iter, step)

  def act(self, step: int, loss: float) -> None:
    self._logger.log("train_ce", step, ce=loss)


class ReconstructionCurve:
  """Logs with the loss how well a RevNet's activations are rebuilt, and warns when they are not.

  Args:
    config, logger, model, strategy: of the run.
    images: [N, H, W, C] that it is measured on.
  """

  def __init__(
    self,
    config: Config,
    logger: ExperimentLogger,
    model: RevNet,
    strategy: tf.distribute.Strategy,
    images: tf.Tensor,
  ):
    self._config = config
    self._logger = logger

    @tf.function
    def measure():
      errors = strategy.run(model.reconstruction_errors, args=(images,))
      return strategy.reduce(tf.distribute.ReduceOp.MEAN, errors, axis=None)

    self._measure = measure

  def due(self, step: int) -> bool:
    return comes_every(self._config.disp_iter, step)

  def act(self, step: int, loss: float) -> None:
    errors = {stage: float(error) for stage, error in enumerate(self._measure(), start=1)}
    self._logger.log("reconstruction_error", step, **{f"stage_{stage}": errors[stage] for stage in errors})
    bits = self._config.grid_bits
    most = 0.0 if bits else MAX_RECONSTRUCTION_ERROR
    if bits:
      why = (
        f"where grid_bits={bits} promises none: activations have left the range of the grid, "
        f"+-{2 ** (24 - bits)}, or a function does not repeat itself; continue with a smaller grid_bits"
      )
    else:
      why = (
        "and its gradients are as inexact; continue with --override manual_gradients=false, or with "
        "--override grid_bits=14"
      )
    for stage, error in errors.items():
      if not error <= most:  # Perhaps it is no number.
        logging.warning(
          "step %d: stage %d is rebuilt with a relative error of %.1e, %s", step, stage, error, why
        )


class AccuracyCurves:
  """Measures the accuracies and logs them, every config.valid_iter steps.

  Args:
    config, logger: of the run.
    evaluate: of `make_evaluate`.
    evaluation_data: the data of each curve.
  """

  def __init__(
    self,
    config: Config,
    logger: ExperimentLogger,
    evaluate: Callable[[tf.data.Dataset], list[float]],
    evaluation_data: Mapping[str, EvaluationData],
  ):
    self._config = config
    self._logger = logger
    self._evaluate = evaluate
    self._batches = {curve: part.batches() for curve, part in evaluation_data.items()}
    self._latest: tuple[int, dict[str, float]] | None = None

  def due(self, step: int) -> bool:
    return comes_every(self._config.valid_iter, step)

  def act(self, step: int, loss: float) -> None:
    self._latest = step, self.measure()
    for curve, accuracy in self._latest[1].items():
      self._logger.log(curve, step, acc=accuracy)

  def measure(self) -> dict[str, float]:
    """The accuracies of the weights now, in [0, 1], by curve."""
    return {curve: self._evaluate(dataset)[0] for curve, dataset in self._batches.items()}

  def of_step(self, step: int) -> dict[str, float] | None:
    """The accuracies measured after `step`, the last one taken; None if they were not."""
    return self._latest[1] if self._latest and self._latest[0] == step else None


class StateLine:
  """Shows a line, after each evaluation, where the rate changes, and where nothing has been shown for long."""

  def __init__(self, config: Config, progress: Progress, accuracies: AccuracyCurves):
    self._config = config
    self._progress = progress
    self._accuracies = accuracies

  def due(self, step: int) -> bool:
    return self._accuracies.due(step) or step in self._config.lr_decay_steps or self._progress.is_silent()

  def act(self, step: int, loss: float) -> None:
    self._progress.line(step, loss, self._accuracies.of_step(step) or {})


class RateCurve:
  """Logs the learning rate, with each checkpoint and where it changes."""

  def __init__(self, config: Config, logger: ExperimentLogger):
    self._config = config
    self._logger = logger

  def due(self, step: int) -> bool:
    return comes_every(self._config.save_iter, step) or step in self._config.lr_decay_steps

  def act(self, step: int, loss: float) -> None:
    self._logger.log("learn_rate", step, lr=learning_rate(self._config, step))
