"""Accuracy of a model on a dataset, and of an experiment's checkpoints."""

import time
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf
from absl import logging

from resnet.configs.config import Config
from resnet.data.get_dataset import EvaluationData
from resnet.experiments.curves import read_curve
from resnet.experiments.experiment import Experiment
from resnet.experiments.logger import ExperimentLogger
from resnet.experiments.watch import begin_watching, end_watching
from resnet.models import get_model
from resnet.training.checkpoint import CheckpointError, Checkpoints
from resnet.training.state import assign, values_of
from resnet.utils.errors import UserError

WATCH_INTERVAL = 10  # seconds between two looks for a new checkpoint


def make_evaluate(
  model: keras.Model, strategy: tf.distribute.Strategy, top: Sequence[int] = (1,)
) -> Callable[[tf.data.Dataset], list[float]]:
  """A function from a finite dataset of (images, labels) batches to the top-k accuracies, for k in `top`.

  It first sets each replica's moving statistics to their mean over the replicas, then splits the batches over
  the replicas. It is traced once, whatever the batches' sizes. It raises a UserError if the dataset is empty.
  """

  def count(images, labels):
    logits = model(images, training=False)
    # Not tf.math.in_top_k, which calls every class of a constant output correct.
    best = tf.math.top_k(logits, min(max(top), logits.shape[-1])).indices
    hits = tf.cast(best == tf.cast(labels, tf.int32)[:, None], tf.int32)
    return tf.stack([tf.reduce_sum(hits[:, :k]) for k in top] + [tf.size(labels)])

  @tf.function
  def count_next(iterator):
    counts = strategy.run(count, args=next(iterator))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, counts, axis=None)

  def evaluate(dataset):
    if strategy.num_replicas_in_sync > 1:
      state = model.non_trainable_variables
      assign(state, values_of(state))  # Outside the replicas a value is their mean.
    iterator = iter(strategy.experimental_distribute_dataset(dataset))
    total = 0
    while True:
      try:
        total += count_next(iterator)
      except tf.errors.OutOfRangeError:
        break
    if isinstance(total, int):
      raise UserError("there is no example to evaluate on")
    *correct, examples = total.numpy()
    return [float(hits / examples) for hits in correct]

  return evaluate


def use_one_gpu() -> None:
  """Makes the first GPU that is visible the only one. Call it before TensorFlow runs anything else."""
  tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:1], "GPU")
  tf.config.list_logical_devices()  # Makes the devices.


def evaluate_checkpoints(
  config: Config,
  experiment: Experiment,
  evaluation_data: Mapping[str, EvaluationData],
  step: int | None = None,
  watch: bool = False,
) -> None:
  """Measures top-1 and top-5 accuracy of an experiment's checkpoints; prints them and appends the curves.

  Args:
    config: of the experiment.
    experiment: names the folders of checkpoints and curves.
    evaluation_data: the data of each curve, "train_acc" and "valid_acc". Top-5 accuracy goes to the curves
      "train_acc5" and "valid_acc5".
    step: which checkpoint; None is the newest.
    watch: ignore `step`; measure every checkpoint that has no point in valid_acc.csv, and each one that
      appears, up to the last step, max_train_iter of the configuration that is in force then. A damaged
      checkpoint is a warning.

  Raises:
    UserError: the checkpoint is missing or damaged, or the data is damaged.
  """
  model = get_model(config)
  checkpoints = Checkpoints(experiment.folder, model)
  evaluate = make_evaluate(model, tf.distribute.get_strategy(), top=(1, 5))
  logger = ExperimentLogger(experiment.logs_folder)

  def measure(step):
    step = checkpoints.restore(step)
    for curve, part in evaluation_data.items():
      with part.dataset.data_errors():
        top1, top5 = evaluate(part.batches())
      logger.log(curve, step, acc=top1)
      logger.log(f"{curve}5", step, acc=top5)
      print(f"step {step}: {curve} top-1 {100 * top1:.3f} %, top-5 {100 * top5:.3f} %", flush=True)

  if not watch:
    measure(step)
    return
  begin_watching(experiment)
  done, damaged = set(read_curve(experiment.logs_folder / "valid_acc.csv")), set()
  while True:
    for new in sorted(set(checkpoints.steps()) - done):
      try:
        measure(new)
      except CheckpointError as error:
        if new not in damaged:  # Perhaps it is still being copied here: try it once more.
          damaged.add(new)
          continue
        logging.warning("passed over: %s", error)
      done.add(new)
    if max(done, default=0) >= experiment.load_config().max_train_iter:  # A later run may have changed it.
      end_watching(experiment)
      return
    time.sleep(WATCH_INTERVAL)
