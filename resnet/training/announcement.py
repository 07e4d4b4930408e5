"""What a run says at its start."""

import math
import pathlib
import shutil
from collections.abc import Sequence

import keras
import tensorflow as tf

from resnet.configs.config import Config
from resnet.experiments.experiment import Experiment
from resnet.training.checkpoint import Checkpoints
from resnet.utils.quantities import show_bytes


def announcement(
  config: Config,
  experiment: Experiment,
  strategy: tf.distribute.Strategy,
  model: keras.Model,
  start: int,
  stop: int,
) -> str:
  """Network and devices, folders, what is kept of the forward pass, and the schedule to come; lines."""
  parameters = sum(math.prod(variable.shape) for variable in model.trainable_variables)
  devices = ", ".join(device.split("device:")[-1] for device in strategy.extended.worker_devices)
  lines = [
    f"{config.name} on {config.dataset}: {parameters:,} parameters, batch {config.batch_size} on {devices}",
    f"experiment {experiment.id}: steps {start + 1} to {stop}, checkpoints in {experiment.folder}, curves in "
    f"{experiment.logs_folder}",
  ]
  if config.manual_gradients:
    images = config.batch_size // config.num_replicas // config.num_pass
    lines.append(f"{model.activation_plan(images)}, for the {images} images that a device takes at a time")
  return "\n".join([*lines, schedule(config, start)])


def schedule(config: Config, start: int) -> str:
  """The learning rates that come after step `start`, and the end of the training."""
  rates = zip((1, *config.lr_decay_steps), (config.base_learn_rate, *config.lr_list), strict=True)
  taken = [(step, rate) for step, rate in rates if step <= config.max_train_iter]
  passed = sum(step <= start + 1 for step, _ in taken) - 1  # The first is from step 1.
  words = ", ".join(f"{rate:g} from step {step:,}" for step, rate in taken[passed:])
  return f"learning rate {words}; the training ends after step {config.max_train_iter:,}"


def changes_since_last_run(changes: Sequence[str], experiment: Experiment, start: int) -> str:
  """What `Experiment.change_config` found, in a line."""
  if not changes:
    return "configured as the last run"
  kept = experiment.earlier_configs().get(start)
  until = f"; the configuration until step {start} is kept in {kept}" if kept else ""
  return f"changed since the last run: {', '.join(changes)}{until}"


def space(
  checkpoints: Checkpoints, config: Config, folder: pathlib.Path, start: int, stop: int, keep: int | None
) -> str:
  """The disk space that the checkpoints of steps start + 1 to stop will take in their folder, in a line."""
  steps = {step for step in (1, stop) if start < step <= stop}
  every = config.save_iter
  number = len(steps | {*range(start - start % every + every, stop + 1, every)})
  size = checkpoints.num_bytes
  free = shutil.disk_usage(folder).free
  words = f"checkpoints: {number} to come, of {show_bytes(size)} each"
  if keep is not None and keep < number:
    number = keep + 1  # One more is there while it is written.
    words += f", the newest {keep} kept"
  words += f": {show_bytes(number * size)}, where {show_bytes(free)} are free"
  return words + (", too little; --keep_checkpoints N keeps the newest N alone" if number * size > free else "")
