"""The devices, and machines, that a run trains on."""

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

from resnet.utils.errors import UserError


def make_strategy(num_gpu: int | None, batch_size: int) -> tf.distribute.Strategy:
  """Synchronous data parallelism over the GPUs of this machine, or of all machines that train together.

  Several machines run the same command each, and find each other by the environment variable TF_CONFIG
  or as the tasks of a Slurm job step. Call this before TensorFlow runs anything else.

  Args:
    num_gpu: the first so many GPUs of each machine; all for None; the CPU for 0.
    batch_size: of all replicas together.

  Raises:
    UserError: there are fewer GPUs, or the batch cannot be split evenly.
  """
  gpus = tf.config.list_physical_devices("GPU")
  if num_gpu is not None and num_gpu > len(gpus):
    raise UserError(f"--num_gpu is {num_gpu}, but {len(gpus)} GPUs are visible to TensorFlow")
  tf.config.set_visible_devices(gpus[:num_gpu], "GPU")
  resolver = _cluster()
  if resolver:
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
  else:
    devices = [device.name for device in tf.config.list_logical_devices("GPU")]
    strategy = tf.distribute.MirroredStrategy(devices or ["CPU:0"])
  replicas = strategy.num_replicas_in_sync
  if batch_size % replicas:
    raise UserError(f"batch_size must be a multiple of the {replicas} replicas, got {batch_size}")
  return strategy


def is_chief(strategy: tf.distribute.Strategy) -> bool:
  """Whether this process is the one, of all that train together, that writes results."""
  resolver = strategy.cluster_resolver
  if resolver is None or not resolver.task_type:
    return True
  if resolver.task_type == "chief":
    return True
  return (
    resolver.task_type == "worker" and resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs
  )


def num_workers(strategy: tf.distribute.Strategy) -> int:
  """How many processes train together."""
  resolver = strategy.cluster_resolver
  return max(1, sum(map(len, resolver.cluster_spec().as_dict().values()))) if resolver else 1


@contextlib.contextmanager
def lost_worker_errors() -> Iterator[None]:
  """Turns what TensorFlow raises when another process of the cluster ends into a UserError."""
  try:
    yield
  except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError) as error:
    reason = str(error).strip().splitlines()[0]
    raise UserError(
      f"another process of the cluster was lost ({reason}); start all of them again with --restore"
    ) from error


def _cluster() -> tf.distribute.cluster_resolver.ClusterResolver | None:
  """The processes that train together, or None if this one is alone."""
  if os.environ.get("TF_CONFIG"):
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()
  if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    # Slurm itself has given each task its GPUs; TensorFlow's own allocation needs them to be there.
    return tf.distribute.cluster_resolver.SlurmClusterResolver(
      gpus_per_node=1024, gpus_per_task=1, auto_set_gpu=False
    )
  return None
