#!/usr/bin/env python3
"""Measures what the engine does on a GPU: time and memory of training steps, gradients, the exact mode.

PYTHONPATH=. python tests/gpu_check.py > results.jsonl
PYTHONPATH=. python tests/gpu_check.py --waves info,checks --small

Prints a line of JSON for each result: the seconds since the start, the wave, the case, and what was found.
docs/gpu.md says what came of it on one GPU.

A wave is a list of cases, each measured in a process of its own. The processes of a wave get ready side by
side: they import TensorFlow, build their graphs, compile, and take the first steps. When all are ready, they
measure their steps one after the other, so each is alone on the GPU. Cases that time nothing do not wait for
that. Where the GPU has too little memory for 14 processes, lower --together. Without a GPU everything runs on
the CPU, which --small makes bearable.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Settings = dict[str, Any]  # A case: "do" says what is done, the others are arguments of it.

MODES = (
  ("ordinary", "auto"),
  ("unrolled", "auto"),
  ("unrolled", "least"),
  ("while_loop", "auto"),
)  # mode, activation_memory
HALF = "mixed_bfloat16"
MEASURED_STEPS = 10
START = time.monotonic()


def step_cases(
  model: str, batch: int, units: tuple[int, ...] | None, dtype: str = "float32", jit: bool = False
) -> list[Settings]:
  """The training step of a network in every mode; units None: as many as its configuration says."""
  case = {"do": "step", "model": model, "batch": batch, "units": units, "dtype": dtype, "jit": jit}
  return [{**case, "mode": mode, "activation_memory": memory} for mode, memory in MODES]


def make_waves(small: bool) -> dict[str, list[Settings]]:
  """The cases of each wave, in the order in which the waves run; `small` ones are for a CPU."""
  cifar, imagenet = ("revnet-38" if small else "revnet-110"), "revnet-104"
  cifar_few, cifar_many, imagenet_few, imagenet_many = (4, 8, 2, 3) if small else (100, 500, 32, 64)  # images
  cifar_units, imagenet_units = ((1, 1, 1), (1, 1, 1, 1)) if small else ((9, 9, 9), None)
  depths = (1, 2) if small else (3, 18)
  # Of RevNet-104, in the order of MODES: about as much memory in each.
  batches_of_modes = ((1,), (1,), (1, 2), (2,)) if small else ((24,), (56, 64), (96, 120, 144), (120,))
  half = [
    (cifar, cifar_few, cifar_units),
    (cifar, cifar_many, cifar_units),
    (imagenet, imagenet_many, imagenet_units),
  ]
  arithmetics = [("float32", False), ("float32", True), (HALF, True)]  # dtype, tf32
  return {
    "info": [{"do": "info"}],
    "cifar": [
      *step_cases(cifar, cifar_few, cifar_units),
      *step_cases(cifar, cifar_many, cifar_units),
      {"do": "report", "batch": cifar_few},
    ],
    "imagenet": [
      *step_cases(imagenet, imagenet_few, imagenet_units),
      *step_cases(imagenet, imagenet_many, imagenet_units),
    ],
    "batch": [
      {**case, "batch": images}
      for case, batches in zip(step_cases(imagenet, 0, imagenet_units), batches_of_modes, strict=True)
      for images in batches
    ],
    "checks": [
      {"do": do, "model": cifar, "dtype": dtype, "tf32": tf32}
      for do in ("gradients", "exact", "grid")
      for dtype, tf32 in arithmetics
    ],
    "half": [case for network in half for case in step_cases(*network, dtype=HALF)],
    "depth": [case for units in depths for case in step_cases(cifar, cifar_many, (units,) * 3)],
    "jit": [
      case
      for dtype in ("float32", HALF)
      for case in step_cases(cifar, cifar_many, cifar_units, dtype, jit=True)
    ],
    "jit_imagenet": [
      case
      for dtype in ("float32", HALF)
      for case in step_cases(imagenet, imagenet_many, imagenet_units, dtype, jit=True)
    ],
  }


# In the process of a case. TensorFlow is imported here alone: the process that starts the others needs no GPU.


def check_installation() -> Iterator[Settings]:
  """The GPUs, the versions, and how far ops on the default device are from the CPU's, with and without XLA."""
  import keras
  import numpy as np
  import tensorflow as tf

  gpus = tf.config.list_physical_devices("GPU")
  yield {"gpus": [tf.config.experimental.get_device_details(gpu) for gpu in gpus]}
  yield {
    "tensorflow": tf.__version__,
    "keras": keras.__version__,
    "numpy": np.__version__,
    "python": sys.version,
  }
  x, kernel = tf.random.normal([64, 32, 32, 16]), tf.random.normal([3, 3, 16, 16])

  def compute():
    return {
      "conv": tf.nn.conv2d(x, kernel, 1, "SAME"),
      "matmul": x[:, 0, :16, 0] @ kernel[0, 0],
      "exp": tf.exp(x),
    }

  with tf.device("CPU"):
    expected = compute()
  for jit in (False, True):
    actual = tf.function(compute, jit_compile=jit)()
    errors = {
      name: float(tf.norm(actual[name] - expected[name]) / tf.norm(expected[name])) for name in expected
    }
    yield {"jit": jit, "device": actual["conv"].device, "relative_errors": errors}


def measure_step(case: Settings, wait_until_alone: Callable[[], object]) -> Iterator[Settings]:
  """Time and memory of training steps.

  - first_s: seconds of the first step, the making of the graph in it, beside the other processes of the wave;
  - step_ms: median, least and greatest of ten steps, each waited for, and the mean of ten without waiting
    between them;
  - peak_mb, current_mb: what TensorFlow's allocator had handed out on the GPU, at once in these steps and after
    them; on a CPU the peak of the process alone.

  Args:
    case: the fields of the benchmark's Case; units may be None, for the configuration's.
    wait_until_alone: called when all is compiled.
  """
  import tensorflow as tf

  from resnet.configs import get_config
  from resnet.tools.benchmark.worker import Case, make_run, peak_bytes

  units = case["units"] or get_config(case["model"]).num_residual_units
  run = make_run(Case(**{**case, "units": tuple(units)}))
  first = run(1)
  run(3)  # What is done once only, as choosing algorithms on a GPU, may go on after the first step.
  wait_until_alone()
  run(2)
  gpus = tf.config.list_physical_devices("GPU")
  if gpus:
    tf.config.experimental.reset_memory_stats("GPU:0")
  seconds = [run(1) for _ in range(MEASURED_STEPS)]
  memory = tf.config.experimental.get_memory_info("GPU:0") if gpus else {"peak": peak_bytes()}
  times = {
    "median": statistics.median(seconds),
    "min": min(seconds),
    "max": max(seconds),
    "ten_in_a_row": run(MEASURED_STEPS) / MEASURED_STEPS,
  }
  yield {
    "first_s": first,
    "step_ms": {name: round(1000 * value, 3) for name, value in times.items()},
    **{f"{name}_mb": round(value / 1e6, 1) for name, value in memory.items()},
  }


def report_memory(batch: int) -> Iterator[Settings]:
  """The memory_report of RevNet-38 and of a chain of dense layers, which gets 100 examples for each image."""
  import keras
  import tensorflow as tf

  from resnet.configs import get_config
  from resnet.models import get_model
  from resnet.reversible import ReversibleChain, memory_report

  images = tf.ones([batch, 32, 32, 3])
  yield {"revnet-38": str(memory_report(get_model(get_config("revnet-38")), images))}

  def function():
    return keras.Sequential([keras.layers.Dense(512, "gelu"), keras.layers.Dense(128)])

  x = keras.Input([256])
  chain = ReversibleChain([(function(), function()) for _ in range(20)])
  model = keras.Model(x, keras.ops.concatenate(chain(keras.ops.split(x, 2, axis=-1)), axis=-1))
  yield {"20 units of dense layers": str(memory_report(model, tf.random.normal([100 * batch, 256])))}


def compare_gradients(
  model: str, dtype: str, tf32: bool, grid_bits: int, deterministic: bool
) -> Iterator[Settings]:
  """How far manual gradients are from ordinary ones, and activations from those that are rebuilt.

  For each form of the chain, on 32 images of noise at initial weights:

  - degrees: the angle between all gradients as one vector, then the median and the greatest of the angles
    variable by variable;
  - equal: the share of variables whose gradients are equal in every bit;
  - reconstruction_error: of each stage.

  Args:
    model: the name of a configuration.
    dtype: what its residual functions compute in.
    tf32: whether float32 products may be rounded to TensorFloat-32, which is TensorFlow's default.
    grid_bits: of the exact mode, 0 for none.
    deterministic: whether ops are told to give the same bits for the same input.
  """
  import numpy as np
  import tensorflow as tf

  from resnet.configs import get_config
  from resnet.models import get_model
  from resnet.tools.gradient_angles import angle, gradients

  if deterministic:
    tf.config.experimental.enable_op_determinism()
  tf.config.experimental.enable_tensor_float_32_execution(tf32)
  images = tf.random.stateless_normal([32, 32, 32, 3], [1, 2])
  labels = tf.random.stateless_uniform([32], [3, 4], maxval=10, dtype=tf.int32)
  config = dataclasses.replace(get_config(model), dtype=dtype, grid_bits=grid_bits)
  expected = gradients(dataclasses.replace(config, manual_gradients=False), images, labels)
  for chain in ("unrolled", "while_loop"):
    changed = dataclasses.replace(config, chain=chain)
    actual = gradients(changed, images, labels)
    degrees = [angle(a, e) for a, e in zip(actual, expected, strict=True)]
    equal = [np.array_equal(a, e) for a, e in zip(actual, expected, strict=True)]
    whole = angle(*(np.concatenate([gradient.ravel() for gradient in side]) for side in (actual, expected)))
    errors = get_model(changed).reconstruction_errors(images)
    yield {
      "chain": chain,
      "degrees": [whole, float(np.median(degrees)), float(max(degrees))],
      "equal": float(np.mean(equal)),
      "reconstruction_error": np.array(errors).tolist(),
    }


def results_of(case: Settings, wait_until_alone: Callable[[], object]) -> Iterator[Settings]:
  """What a case finds, result by result."""
  import tensorflow as tf

  for gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(gpu, True)  # The other processes of the wave need memory too.
  do, arguments = case["do"], {name: value for name, value in case.items() if name != "do"}
  if do == "info":
    return check_installation()
  if do == "step":
    return measure_step(arguments, wait_until_alone)
  if do == "report":
    return report_memory(**arguments)
  return compare_gradients(**arguments, grid_bits=0 if do == "gradients" else 14, deterministic=do == "exact")


def run_case(case: Settings) -> None:
  """Prints the results of a case; before a measurement says "ready", and waits for a line on standard input."""
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # Whatever libraries print is no answer.

  def answer(line: object) -> None:
    print(json.dumps(line, default=str), file=answers, flush=True)

  def wait_until_alone() -> None:
    answer("ready")
    sys.stdin.readline()

  for result in results_of(case, wait_until_alone):
    answer(result)


# In the process that starts the others.


def run_wave(name: str, cases: list[Settings], deadline: float, logs: pathlib.Path) -> None:
  """Runs cases side by side until they are ready to measure, then each alone, and prints what they find.

  Args:
    name: of the wave.
    cases: each gets a process.
    deadline: by time.monotonic(). Processes that run then are killed, and their results are errors.
    logs: an existing folder for what the processes say on standard error.
  """
  log_files = [logs / f"{name}.{number}.log" for number in range(len(cases))]
  processes = []
  for case, log_file in zip(cases, log_files, strict=True):
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    with log_file.open("w", encoding="utf-8") as log:
      processes.append(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
      )

  def report(number: int, result: Settings) -> None:
    line = {"at": seconds_since_start(), "wave": name, "case": cases[number], "result": result}
    print(json.dumps(line), flush=True)

  def listen(number: int) -> bool:
    """Reports results until the process is ready to measure (True) or has ended (False)."""
    for line in map(json.loads, processes[number].stdout):
      if line == "ready":
        return True
      report(number, line)
    if status := processes[number].wait():
      words = log_files[number].read_text(encoding="utf-8", errors="replace").split("\n")
      report(number, {"error": status, "log": " ".join(words[-4:])[-400:]})
    return False

  def kill_all() -> None:
    for process in processes:
      process.kill()

  timer = threading.Timer(deadline - time.monotonic(), kill_all)
  timer.start()
  try:
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
      ready = list(pool.map(listen, range(len(cases))))
    for number, process in enumerate(processes):
      if ready[number]:
        with contextlib.suppress(OSError):  # It was killed while it waited.
          print("go", file=process.stdin, flush=True)
        listen(number)
  finally:
    timer.cancel()
    kill_all()


def seconds_since_start() -> float:
  return round(time.monotonic() - START, 1)


def main() -> None:
  parser = argparse.ArgumentParser(description="What the engine does on a GPU, a line of JSON per result.")
  names = list(make_waves(small=False))
  parser.add_argument("--waves", default=",".join(names), help="which, and in what order: %(default)s")
  parser.add_argument("--small", action="store_true", help="small networks and batches, for a CPU")
  parser.add_argument(
    "--budget", type=float, default=3600, help="seconds, then what runs is killed: %(default)s"
  )
  parser.add_argument("--together", type=int, help="processes that get ready side by side: 14, or 2 if --small")
  parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("logs/gpu_check"), help="%(default)s")
  parser.add_argument("--case", type=json.loads, help="JSON: measure this alone, in this process")
  arguments = parser.parse_args()
  if arguments.case:
    run_case(arguments.case)
    return
  chosen = arguments.waves.split(",")
  if unknown := set(chosen) - set(names):
    parser.error(f"--waves has {', '.join(sorted(unknown))}; there are {', '.join(names)}")
  together = arguments.together or (2 if arguments.small else 14)
  arguments.logs.mkdir(parents=True, exist_ok=True)
  waves = make_waves(arguments.small)
  for name in chosen:
    for first in range(0, len(waves[name]), together):
      if time.monotonic() - START < arguments.budget - 20:  # Less is too little for a process to get ready.
        cases = waves[name][first : first + together]
        run_wave(f"{name}-{first}", cases, START + arguments.budget, arguments.logs)
  print(json.dumps({"at": seconds_since_start(), "done": True}), flush=True)


if __name__ == "__main__":
  main()
