"""The story of a training run."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf
from absl import logging

from resnet.configs.config import Config
from resnet.data.get_dataset import Dataset, EvaluationData
from resnet.experiments.experiment import Experiment
from resnet.experiments.lock import locked
from resnet.experiments.logger import ExperimentLogger
from resnet.models import RevNet, get_model
from resnet.models.storage import fit_memory
from resnet.training.announcement import announcement, changes_since_last_run, space
from resnet.training.checkpoint import Checkpoints
from resnet.training.evaluate import make_evaluate
from resnet.training.lr_schedule import learning_rate
from resnet.training.optimizer import make_optimizer
from resnet.training.progress import Progress
from resnet.training.saver import Saver
from resnet.training.step import make_train_step
from resnet.training.strategy import is_chief, lost_worker_errors, num_workers
from resnet.utils.errors import UserError
from resnet.utils.interrupt import deferred_signals

MAX_RECONSTRUCTION_ERROR = 1e-2  # relative; beyond it there is a warning.


def train(
  config: Config,
  experiment: Experiment,
  strategy: tf.distribute.Strategy,
  train_data: Dataset,
  evaluation_data: Mapping[str, EvaluationData],
  restore: bool = False,
  max_num_steps: int = -1,
  keep_checkpoints: int | None = None,
  monitors_reconstruction: bool = False,
) -> dict[str, float]:
  """Trains a model, from its initial weights or from the experiment's newest checkpoint.

  Logs the loss every config.disp_iter steps, the accuracies every config.valid_iter, and the learning rate
  where it changes. Writes a checkpoint, and logs the learning rate, every config.save_iter steps and at the
  end. After step 1 it does all of this. Where it evaluates or the rate changes, it shows a line.

  Args:
    config: network and training. It is put in force for the experiment, with the number of replicas.
    experiment: where checkpoints and curves go. Its folder is made here, unless `restore`.
    strategy: the devices.
    train_data: to train on.
    evaluation_data: the data of each curve, "train_acc" and "valid_acc".
    restore: continue the experiment. A configuration that was in force until now is kept beside the new one.
    max_num_steps: how many steps this run may take; -1 for all up to config.max_train_iter.
    keep_checkpoints: how many, see `Saver`; None: all.
    monitors_reconstruction: log with the loss how well a RevNet's activations are rebuilt, and warn when
      they are not.

  Returns:
    The final accuracy, in [0, 1], for each curve of evaluation_data.

  Raises:
    UserError: the experiment has checkpoints (or none, with `restore`), another process writes to it, the batch
      cannot be split, activation_memory is too little or for a network that cannot choose, data is damaged,
      training has diverged, or another machine is lost.
    SystemExit: Ctrl-C or SIGTERM came; the checkpoint has been written.

  A checkpoint that cannot be written is a warning, and the next save tries again. If the last save
  fails, `train` raises a UserError. Curves that cannot be written are a warning.
  """
  config = dataclasses.replace(config, num_replicas=strategy.num_replicas_in_sync)
  chief = is_chief(strategy)
  with strategy.scope():
    keras.utils.set_random_seed(config.seed)
    model = get_model(_with_memory_used(config))
    optimizer = make_optimizer(config, model)
  checkpoints = Checkpoints(experiment.folder, model, optimizer, writes=chief)
  with locked(experiment.folder) if chief else contextlib.nullcontext():
    if chief:
      checkpoints.remove_leftovers()
    if restore:
      experiment.require_classes(train_data.class_names)
      checkpoints.restore()
    elif chief:
      experiment.make_logs_folder()
      experiment.create(config, train_data.class_names)
      if train_data.preprocessing.mean_image is not None:
        experiment.save_mean_image(train_data.preprocessing.mean_image)
    start = int(optimizer.iterations.numpy())
    logger = ExperimentLogger(experiment.logs_folder if chief else None, start)
    stop = config.max_train_iter if max_num_steps < 0 else min(config.max_train_iter, start + max_num_steps)
    progress = Progress(config, train_data.num_examples, start, stop, evaluation_data, shows=chief)
    if chief:
      progress.write(announcement(config, experiment, strategy, model, start, stop))
      progress.write(space(checkpoints, config, experiment.folder, start, stop, keep_checkpoints))
    if chief and restore:
      changes = experiment.change_config(config, start)
      progress.write(changes_since_last_run(changes, experiment, start))

    train_step = make_train_step(model, optimizer, strategy, config.num_pass, config.jit)
    evaluate = make_evaluate(model, strategy)
    evaluation_batches = {curve: part.batches() for curve, part in evaluation_data.items()}
    saver = Saver(checkpoints, config, experiment, start if restore else None, keep_checkpoints)
    reconstruction_errors = None
    if monitors_reconstruction:
      images, _ = next(iter(train_data.evaluation_batches(1)))
      reconstruction_errors = make_reconstruction_monitor(model, strategy, images)

    def accuracies() -> dict[str, float]:
      return {curve: evaluate(dataset)[0] for curve, dataset in evaluation_batches.items()}

    # Stopping a single process of several would block the others.
    deferred = deferred_signals(enabled=num_workers(strategy) == 1)
    step, value, measured = start, 0.0, None
    with deferred as signal_received, train_data.data_errors(), lost_worker_errors(experiment), progress:
      batches = iter(distribute(train_data, strategy, config, start))
      for step in range(start + 1, stop + 1):
        progress.begin_step()
        loss = train_step(batches)
        shown = progress.end_step()
        logs, validates, saves = (
          step == 1 or step % every == 0 for every in (config.disp_iter, config.valid_iter, config.save_iter)
        )
        new_rate, measured = step in config.lr_decay_steps, None
        if shown or logs or validates or saves or new_rate or step == stop or saver.wants_loss(step):
          value = float(loss)  # It waits for the device.
          saver.check(step, value, optimizer)
          with progress.known_loss(value):
            if logs:
              logger.log("train_ce", step, ce=value)
              if reconstruction_errors:
                _log_reconstruction(logger, step, reconstruction_errors(), config.grid_bits)
            if validates:
              measured = accuracies()
              for curve, accuracy in measured.items():
                logger.log(curve, step, acc=accuracy)
            if validates or new_rate or progress.is_silent():
              progress.line(step, value, measured or {})
        interrupted = signal_received()
        writes = saves or interrupted or step == stop
        if writes or new_rate:
          # Curves first: when a run is killed before the checkpoint, its restart writes these points again.
          logger.log("learn_rate", step, lr=learning_rate(config, step))
        if writes:
          with progress.pause():
            saver.save(step)
        if interrupted:
          break
    if saver.failure:
      raise saver.failure
    if number := signal_received():  # Perhaps one that came while the last checkpoint was written.
      progress.write(f"stopped at step {step}; {experiment.how_to_continue()}")
      raise SystemExit(128 + number)
    if measured is None:
      with lost_worker_errors(experiment):
        measured = accuracies()
      if step > start:
        progress.line(step, value, measured)
    return measured


def _with_memory_used(config: Config) -> Config:
  """`config`, its kept_units such that the activations of a pass take config.activation_memory.

  Raises:
    UserError: the batch cannot be split, the memory is too little, or the network cannot choose.
  """
  per_replica = config.batch_size // config.num_replicas
  if per_replica % config.num_pass:
    raise UserError(f"--num_pass must divide the {per_replica} images of a replica, got {config.num_pass}")
  if not config.activation_memory:
    return config
  memory, images = config.activation_memory, per_replica // config.num_pass
  return fit_memory(dataclasses.replace(config, activation_memory=0.0), memory, images)


def make_reconstruction_monitor(
  model: RevNet, strategy: tf.distribute.Strategy, images: tf.Tensor
) -> Callable[[], list[float]]:
  """A function without arguments: `model.reconstruction_errors(images)` for the weights at its call."""

  @tf.function
  def measure():
    return strategy.reduce(
      tf.distribute.ReduceOp.MEAN, strategy.run(model.reconstruction_errors, args=(images,)), axis=None
    )

  return lambda: [float(error) for error in measure()]


def _log_reconstruction(logger: ExperimentLogger, step: int, errors: Sequence[float], grid_bits: int) -> None:
  logger.log(
    "reconstruction_error", step, **{f"stage_{stage}": error for stage, error in enumerate(errors, start=1)}
  )
  if grid_bits:
    most = 0.0
    why = (
      f"where grid_bits={grid_bits} promises none: activations have left the range of the grid, "
      f"+-{2 ** (24 - grid_bits)}, or a function does not repeat itself; continue with a smaller grid_bits"
    )
  else:
    most = MAX_RECONSTRUCTION_ERROR
    why = (
      "and its gradients are as inexact; continue with --override manual_gradients=false, or with "
      "--override grid_bits=14"
    )
  for stage, error in enumerate(errors, start=1):
    if not error <= most:
      logging.warning("step %d: stage %d is rebuilt with a relative error of %.1e, %s", step, stage, error, why)


def distribute(
  data: Dataset, strategy: tf.distribute.Strategy, config: Config, start_step: int
) -> tf.distribute.DistributedDataset:
  """The training batches from `start_step` on, each split over the replicas."""
  per_replica = config.batch_size // strategy.num_replicas_in_sync

  def worker_batches(context):
    batches = data.training_batches(start_step, context.num_input_pipelines, context.input_pipeline_id)
    return batches.rebatch(per_replica, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

  return strategy.distribute_datasets_from_function(worker_batches)
