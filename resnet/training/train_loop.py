"""The story of a training run."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from resnet.configs.config import Config
from resnet.data.get_dataset import Dataset, EvaluationData
from resnet.experiments.experiment import Experiment
from resnet.experiments.lock import locked
from resnet.experiments.logger import ExperimentLogger
from resnet.models import get_model
from resnet.training.announcement import announcement, changes_since_last_run, space
from resnet.training.checkpoint import Checkpoints
from resnet.training.evaluate import make_evaluate
from resnet.training.hooks import (
  AccuracyCurves,
  Hook,
  LossCurve,
  RateCurve,
  ReconstructionCurve,
  StateLine,
)
from resnet.training.optimizer import make_optimizer
from resnet.training.progress import Progress
from resnet.training.saver import Saver
from resnet.training.step import make_train_step
from resnet.training.strategy import is_chief, lost_worker_errors, num_workers
from resnet.utils.errors import UserError
from resnet.utils.interrupt import deferred_signals


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """What is chosen for one run, and no part of the experiment's configuration."""

  restore: bool = False  # continue the experiment from its newest checkpoint
  max_num_steps: int = -1  # that the run may take; -1: all up to config.max_train_iter
  keep_checkpoints: int | None = None  # how many, see `Saver`; None: all
  monitors_reconstruction: bool = False  # log with the loss how well a RevNet's activations are rebuilt

  def last_step(self, config: Config, start: int) -> int:
    """The step that a run from step `start` ends with."""
    last = config.max_train_iter
    return last if self.max_num_steps < 0 else min(last, start + self.max_num_steps)


DEFAULT_OPTIONS = RunOptions()


def train(
  config: Config,
  experiment: Experiment,
  strategy: tf.distribute.Strategy,
  train_data: Dataset,
  evaluation_data: Mapping[str, EvaluationData],
  options: RunOptions = DEFAULT_OPTIONS,
) -> dict[str, float]:
  """Trains a model; returns the final accuracy, in [0, 1], for each curve of evaluation_data.

  What is logged, shown and saved after which steps, hooks.py and saver.py say: all of it after step 1. What
  cannot be written is a warning; the next save of a checkpoint tries again.

  Args:
    config: network and training. It is put in force for the experiment, with the number of replicas; another
      one that was in force until now is kept beside it.
    experiment: where checkpoints and curves go. Its folder is made here, unless the run continues it.
    strategy: the devices.
    train_data, evaluation_data: to train on, and of each curve, "train_acc" and "valid_acc".
    options: of this run.

  Raises:
    UserError: the experiment has checkpoints (or none, to continue from), another process writes to it, the
      batch cannot be split, activation_memory is too little, data is damaged, training has diverged, another
      machine is lost, or the last save fails.
    SystemExit: Ctrl-C or SIGTERM came; the checkpoint has been written.
  """
  run = _Run(config, experiment, strategy, options)
  config, chief = run.config, run.chief
  with locked(experiment.folder) if chief else contextlib.nullcontext():
    start = run.open(train_data)
    stop = options.last_step(config, start)
    logger = ExperimentLogger(experiment.logs_folder if chief else None, start)
    progress = Progress(config, train_data.num_examples, start, stop, evaluation_data, shows=chief)
    if chief:
      run.announce(progress, start, stop)
    accuracies = AccuracyCurves(config, logger, make_evaluate(run.model, strategy), evaluation_data)
    hooks = [*run.curves(logger, train_data), accuracies, StateLine(config, progress, accuracies)]
    rate_curve, saver = RateCurve(config, logger), run.saver(start)
    train_step = make_train_step(run.model, run.optimizer, strategy, config.num_pass, config.jit)
    # Stopping a single process of several would block the others.
    deferred = deferred_signals(enabled=num_workers(strategy) == 1)
    with deferred as signal_received, train_data.data_errors(), lost_worker_errors(experiment), progress:
      batches = iter(distribute(train_data, strategy, config, start))
      steps, take_step = range(start + 1, stop + 1), lambda: train_step(batches)
      step, loss = _take_steps(steps, take_step, progress, hooks, rate_curve, saver, signal_received)
    if saver.failure:
      raise saver.failure
    if number := signal_received():  # Perhaps one that came while the last checkpoint was written.
      progress.write(f"stopped at step {step}; {experiment.how_to_continue()}")
      raise SystemExit(128 + number)
    if (measured := accuracies.of_step(step)) is None:
      with lost_worker_errors(experiment):
        measured = accuracies.measure()
      if step > start:
        progress.line(step, loss, measured)
    return measured


class _Run:
  """What the parts of a run share: its configuration, network and checkpoints.

  Args: of `train`.
  """

  def __init__(
    self, config: Config, experiment: Experiment, strategy: tf.distribute.Strategy, options: RunOptions
  ):
    self.config = dataclasses.replace(config, num_replicas=strategy.num_replicas_in_sync)
    self.chief = is_chief(strategy)
    self._experiment = experiment
    self._strategy = strategy
    self._options = options
    images = _images_at_a_time(self.config)
    with strategy.scope():
      keras.utils.set_random_seed(config.seed)
      self.model = get_model(self.config)
      self.optimizer = make_optimizer(config, self.model)
    _require_memory(self.config, self.model, images)
    self._checkpoints = Checkpoints(experiment.folder, self.model, self.optimizer, writes=self.chief)

  def open(self, train_data: Dataset) -> int:
    """Makes the experiment's files, or restores its newest checkpoint; returns the step to start from.

    Call it while holding the lock.
    """
    experiment, names = self._experiment, train_data.class_names
    if self.chief:
      self._checkpoints.remove_leftovers()
    if self._options.restore:
      experiment.require_classes(names)
      self._checkpoints.restore()
    elif self.chief:
      experiment.make_logs_folder()
      experiment.create(self.config, names)
      if train_data.preprocessing.mean_image is not None:
        experiment.save_mean_image(train_data.preprocessing.mean_image)
    return int(self.optimizer.iterations.numpy())

  def announce(self, progress: Progress, start: int, stop: int) -> None:
    """Says what is to come, and puts the configuration in force if the run continues the experiment."""
    config, experiment, options = self.config, self._experiment, self._options
    progress.write(announcement(config, experiment, self._strategy, self.model, start, stop))
    progress.write(space(self._checkpoints, config, experiment.folder, start, stop, options.keep_checkpoints))
    if options.restore:
      changes = experiment.change_config(config, start)
      progress.write(changes_since_last_run(changes, experiment, start))

  def curves(self, logger: ExperimentLogger, train_data: Dataset) -> list[Hook]:
    """The curves of the loss, and of the reconstruction if it is monitored."""
    curves: list[Hook] = [LossCurve(self.config, logger)]
    if self._options.monitors_reconstruction:
      images, _ = next(iter(train_data.evaluation_batches(1)))
      curves.append(ReconstructionCurve(self.config, logger, self.model, self._strategy, images))
    return curves

  def saver(self, start: int) -> Saver:
    """For the steps after `start`."""
    restored = start if self._options.restore else None
    keep, loss_scale = self._options.keep_checkpoints, self.optimizer.loss_scale
    return Saver(self._checkpoints, self.config, self._experiment, restored, keep, loss_scale)


def _images_at_a_time(config: Config) -> int:
  """How many images go through the network of a replica together.

  Raises:
    UserError: the passes do not divide the batch.
  """
  per_replica = config.batch_size // config.num_replicas
  if per_replica % config.num_pass:
    raise UserError(f"--num_pass must divide the {per_replica} images of a replica, got {config.num_pass}")
  return per_replica // config.num_pass


def _require_memory(config: Config, model: keras.Model, images: int) -> None:
  """Raises a UserError if so many images at a time need more than config.activation_memory, an amount."""
  if not config.manual_gradients or isinstance(config.keep, str):
    return
  least = model.activation_plan(images).least
  if least > config.keep:
    raise UserError(
      f"--activation_memory must be at least {math.ceil(least / 1e6)} MB, which {images} images of "
      f"{config.name} need if all is rebuilt; got {config.activation_memory}. "
      "Lower batch_size, or use more GPUs"
    )


def _take_steps(
  steps: range,
  take_step: Callable[[], tf.Tensor],
  progress: Progress,
  hooks: Sequence[Hook],
  rate_curve: RateCurve,
  saver: Saver,
  signal_received: Callable[[], int | None],
) -> tuple[int, float]:
  """Takes the steps, up to the last one or to a signal, and lets the hooks act. It ends with a checkpoint.

  Returns:
    The step reached, and the last loss that was looked at.
  """
  step, loss = steps.start - 1, 0.0
  for step in steps:
    progress.begin_step()
    tensor = take_step()
    shown, is_last = progress.end_step(), step == steps[-1]
    if shown or is_last or saver.wants_loss(step) or any(hook.due(step) for hook in (*hooks, rate_curve)):
      loss = float(tensor)  # It waits for the device.
      saver.check(step, loss)
      with progress.known_loss(loss):
        for hook in hooks:
          if hook.due(step):
            hook.act(step, loss)
    ends = is_last or signal_received() is not None
    # Curves first: when a run is killed before the checkpoint, its restart writes these points again.
    if ends or rate_curve.due(step):
      rate_curve.act(step, loss)
    if ends or saver.due(step):
      with progress.pause():
        saver.save(step)
    if ends:
      break
  return step, loss


def distribute(
  data: Dataset, strategy: tf.distribute.Strategy, config: Config, start_step: int
) -> tf.distribute.DistributedDataset:
  """The training batches from `start_step` on, each split over the replicas."""
  per_replica = config.batch_size // strategy.num_replicas_in_sync

  def worker_batches(context):
    batches = data.training_batches(start_step, context.num_input_pipelines, context.input_pipeline_id)
    return batches.rebatch(per_replica, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

  return strategy.distribute_datasets_from_function(worker_batches)
