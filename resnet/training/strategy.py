"""The devices, and machines, that a run trains on."""

import contextlib
import itertools
import json
import os
import re
import reprlib
from collections.abc import Iterator

import tensorflow as tf

from resnet.experiments.experiment import Experiment
from resnet.utils.errors import UserError, reason_of


def make_strategy(num_gpu: int | None, batch_size: int, default: int | None = None) -> tf.distribute.Strategy:
  """Synchronous data parallelism over the GPUs of this machine, or of all machines that train together.

  Several machines each run the same command, and find each other by the environment variable TF_CONFIG
  or as the tasks of a Slurm job step. Call this before TensorFlow runs anything else.

  Args:
    num_gpu: how many GPUs of each machine to use, the first ones; None: `default`; 0: the CPU.
    batch_size: of all replicas together.
    default: None: all.

  Raises:
    UserError: there are fewer GPUs, the batch cannot be split evenly, or TF_CONFIG or Slurm's variables are
      malformed.
  """
  gpus = tf.config.list_physical_devices("GPU")
  number, named = (default, "the default of --num_gpu") if num_gpu is None else (num_gpu, "--num_gpu")
  if number is not None and number > len(gpus):
    raise UserError(
      f"{named} is {number}, but {len(gpus)} GPUs are visible to TensorFlow; give --num_gpu {len(gpus)}"
      + (" to train on the CPU" if not gpus else "")
    )
  tf.config.set_visible_devices(gpus[:number], "GPU")
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
  """Whether this process is the chief: of all that train together, the one that writes results."""
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
def lost_worker_errors(experiment: Experiment) -> Iterator[None]:
  """Turns the errors that TensorFlow raises when another process of the cluster is lost into a UserError."""
  try:
    yield
  except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError) as error:
    raise UserError(
      f"another process of the cluster was lost ({reason_of(error)}); start all of them again by "
      f"{experiment.command()}"
    ) from error


def _cluster() -> tf.distribute.cluster_resolver.ClusterResolver | None:
  """The processes that train together, or None if this one is alone.

  Raises:
    UserError: TF_CONFIG or Slurm's variables are malformed.
  """
  if os.environ.get("TF_CONFIG"):
    if not _check_tf_config(os.environ["TF_CONFIG"]):
      return None
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()
  tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or "1"
  if not tasks.isdecimal():
    raise UserError(f"SLURM_STEP_NUM_TASKS must be a number, got {tasks!r}")
  if int(tasks) > 1:
    # Slurm has given each task its GPUs; TensorFlow's own allocation would fail on machines without GPUs.
    return tf.distribute.cluster_resolver.SlurmClusterResolver(
      gpus_per_node=1024, gpus_per_task=1, auto_set_gpu=False
    )
  return None


def _check_tf_config(text: str) -> bool:
  """Whether TF_CONFIG names a cluster.

  Raises:
    UserError: it is malformed; the error shows the right form.
  """
  form = '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
  try:
    config = json.loads(text)
    cluster = config.get("cluster")
    if not cluster:
      return False
    kind, index = config["task"]["type"], config["task"]["index"]
    are_lists = all(isinstance(addresses, list) for addresses in cluster.values())
    count = len(cluster.get(kind, ()))
  except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"TF_CONFIG must be like {form}, got {reprlib.repr(text)}") from error
  if not are_lists:
    raise UserError(f"TF_CONFIG must be like {form}, got {reprlib.repr(text)}")
  if not set(cluster) <= {"chief", "worker"} or not all(map(_is_address, itertools.chain(*cluster.values()))):
    raise UserError(
      f"TF_CONFIG must name addresses host:port of chief and worker alone, like {form}, "
      f"got {reprlib.repr(text)}"
    )
  if len(cluster.get("chief", ())) > 1:
    raise UserError(f"TF_CONFIG must name one chief at most, got {len(cluster['chief'])}; see {form}")
  if type(index) is not int or not 0 <= index < count:
    raise UserError(f"TF_CONFIG has no task {kind!r} with index {index!r} in its cluster; see {form}")
  return True


def _is_address(value: object) -> bool:
  """Whether `value` is "host:port"."""
  match = re.fullmatch(r"\S+:([0-9]{1,5})", value) if isinstance(value, str) else None
  return match is not None and 0 < int(match[1]) < 2**16
