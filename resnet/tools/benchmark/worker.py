"""One case of resnet.tools.benchmark, measured in a process of its own.

Reads lines of JSON from standard input and answers each by a line of JSON on standard output: first the
case, whose first step is taken, then {"steps": N} for N steps more, any number of times.
"""

import dataclasses
import itertools
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from resnet.configs import get_config
from resnet.configs.config import Config
from resnet.models import RevNet, get_model
from resnet.reversible import ReversibleChain, Store, recompute
from resnet.tools.benchmark.report import Case
from resnet.training.optimizer import make_optimizer
from resnet.training.step import make_train_step
from resnet.training.strategy import make_strategy


class RecomputedRevNet(RevNet):
  """A RevNet that keeps the input of every unit, and runs the unit again in the backward pass."""

  def _build_stages(self, shape):
    shape = super()._build_stages(shape)
    # Each unit on its own, by ordinary backpropagation, for `recompute`.
    self.units = [
      ReversibleChain([(unit.f, unit.g)], unit.couplings(), Store()) for unit in itertools.chain(*self.stages)
    ]
    streams = self.reversible_chain.get_build_config()["input_shape"]
    for unit in self.units:
      unit.build(streams)
      streams = unit.compute_output_shape(streams)
    return shape

  def _run_stages(self, images, training, outputs):
    streams = tf.split(recompute(self.stem, images, training), 2, axis=-1)
    for unit in self.units:
      streams = recompute(unit, streams, training)
    return tf.concat(streams, axis=-1)


def config_of(case: Case) -> Config:
  """The configuration that a case trains."""
  return dataclasses.replace(
    get_config(case.model),
    batch_size=case.batch,
    num_residual_units=case.units,
    dtype=case.dtype,
    manual_gradients=case.mode != "ordinary",
    chain="while_loop" if case.mode == "while_loop" else "unrolled",
    activation_memory=case.activation_memory,
    grid_bits=14 if case.mode == "exact" else 0,
  )


def model_of(case: Case) -> keras.Model:
  """The network of a case, built."""
  config = config_of(case)
  if case.mode != "recompute":
    return get_model(config)
  model = RecomputedRevNet(config)
  model.build((None, config.height, config.width, config.num_channel))
  return model


def make_run(case: Case) -> Callable[[int], float]:
  """A function that takes so many training steps, and returns the seconds from start to the last loss.

  The step is that of training, on one device: the first GPU, or the CPU where there is none. All steps
  take the same batch of noise.
  """
  config = config_of(case)
  gpus = tf.config.list_physical_devices("GPU")
  for gpu in gpus:
    tf.config.experimental.set_memory_growth(gpu, True)  # The processes of the other modes need memory too.
  strategy = make_strategy(min(1, len(gpus)), case.batch)
  with strategy.scope():
    keras.utils.set_random_seed(config.seed)
    model = model_of(case)
    optimizer = make_optimizer(config, model)
  images = tf.random.normal([case.batch, config.height, config.width, config.num_channel])
  labels = tf.random.uniform([case.batch], maxval=config.num_classes, dtype=tf.int32)
  # Distributed datasets hand over batches that have been copied to the device in the background.
  batches: Iterator = iter(
    strategy.distribute_datasets_from_function(
      lambda _: tf.data.Dataset.from_tensors((images, labels)).repeat().prefetch(1)
    )
  )
  train_step = make_train_step(model, optimizer, strategy, jit=case.jit)

  def run(steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
      loss = train_step(batches)
    float(loss)  # Waits for the device.
    return time.perf_counter() - start

  return run


def peak_bytes() -> int:
  """The GPU's memory that was allocated at once, without one the process's resident memory: the most so far."""
  if tf.config.list_logical_devices("GPU"):
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux kilobytes.


def main() -> None:
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # Whatever libraries print is no answer.

  def answer(seconds: float, **more) -> None:
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(), **more}), file=answers, flush=True)

  try:
    run = make_run(Case(**json.loads(sys.stdin.readline())))
    gpus = tf.config.list_logical_devices("GPU")
    physical = tf.config.list_physical_devices("GPU")[:1] if gpus else []
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in physical]
    seconds = run(1)
    run(1)  # What is done once only, as choosing algorithms on a GPU, may go on after the first step.
    answer(seconds, gpu=", ".join(names) or None, tensorflow=tf.__version__)
    for line in sys.stdin:
      answer(run(json.loads(line)["steps"]))
  except Exception as error:
    traceback.print_exc()
    reason = " ".join(str(error).split())[:200]
    print(json.dumps({"error": f"{type(error).__name__}: {reason}"}), file=answers, flush=True)
    sys.exit(1)


if __name__ == "__main__":
  main()
