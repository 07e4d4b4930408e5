"""The devices a run trains on."""

import tensorflow as tf

from resnet.utils.errors import UserError


def make_strategy(num_gpu: int | None, batch_size: int) -> tf.distribute.Strategy:
  """Synchronous data parallelism over the first `num_gpu` GPUs; all of them for None; the CPU for 0.

  Raises:
    UserError: there are fewer, or the batch cannot be split evenly.
  """
  gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
  if num_gpu is not None and num_gpu > len(gpus):
    raise UserError(f"--num_gpu is {num_gpu}, but {len(gpus)} GPUs are visible to TensorFlow")
  strategy = tf.distribute.MirroredStrategy(gpus[:num_gpu] or ["CPU:0"])
  replicas = strategy.num_replicas_in_sync
  if batch_size % replicas:
    raise UserError(f"batch_size must be a multiple of the {replicas} GPUs in use, got {batch_size}")
  return strategy
