"""Time and memory of training steps, by the way in which gradients are computed.

python -m resnet.tools.benchmark --model revnet-110 --batch 100,300 --units 3,9,18 --output benchmark
python -m resnet.tools.benchmark --mode ordinary,unrolled --batch 100,300 --activation_memory least,auto,all
python -m resnet.tools.benchmark --model revnet-104 --mode ordinary,unrolled --memory 4GB

- ordinary: backpropagation that stores all activations.
- recompute: every unit keeps its input and runs again in the backward pass.
- unrolled, while_loop: the reversible chain in its two forms, see resnet/reversible/chain.py. With
  --activation_memory the unrolled form is measured at each of these settings.
- exact: unrolled, with activations on a grid (grid_bits=14), which is to be asked for by --mode.

With --memory it finds the largest batch whose training step stays within that memory, for each mode.

Each case runs in a process of its own, on the first GPU or, without one, the CPU. Cases that differ in mode, or
in what it keeps, take turns, round by round, so that a machine that is slower at times slows all of them; their
processes are alive together, and their memory must fit together. On a virtual machine the
same case took up to 15 % longer in the process that was started first. Many --starts are fairer than many
--rounds: each time all processes are started anew, in another order.
"""

import dataclasses
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Iterable, Sequence

from absl import flags

# TensorFlow stays out of this process: a child counts in its peak what its parent held when starting it.
from resnet.configs import get_config
from resnet.configs.config import DTYPES
from resnet.tools.benchmark.largest_batch import largest_batches
from resnet.tools.benchmark.measure import measure
from resnet.tools.benchmark.pictures import plot
from resnet.tools.benchmark.report import MODES, Case, summarize, table
from resnet.tools.figures import require_matplotlib
from resnet.utils.app import run
from resnet.utils.errors import UserError
from resnet.utils.quantities import define_bytes

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_multi_string("model", ["revnet-110"], "Model: one of resnet/configs. Repeatable.")
  flags.DEFINE_list(
    "mode", list(MODES[:4]), f"Of {', '.join(MODES)}. A ResNet is measured in mode ordinary only."
  )
  flags.DEFINE_list("batch", ["100"], "Images of a step. Memory per image needs two sizes, e.g. 100,300.")
  flags.DEFINE_list("units", ["0"], "Residual units of each stage, e.g. 3,9,18; 0: as many as the model has.")
  flags.DEFINE_list("activation_memory", ["auto"], "Settings of mode unrolled, as of the run scripts.")
  define_bytes("memory", "Instead of --batch: find the largest batch of each mode in this memory, e.g. 8GB.")
  flags.DEFINE_enum("dtype", "float32", DTYPES, "As of the run scripts.")
  flags.DEFINE_bool("jit", False, "As of the run scripts.")
  flags.DEFINE_integer("steps", 6, "Steps of a case in a round.", lower_bound=1)
  flags.DEFINE_integer("rounds", 3, "How many times the cases take turns after each start.", lower_bound=1)
  flags.DEFINE_integer("starts", 1, "How many times all processes are started anew.", lower_bound=1)
  flags.DEFINE_string("output", "benchmark", "Where to write the results: to this path and .json, and .png.")


def main() -> None:
  require_matplotlib()  # Before the hours of measuring.
  folder = pathlib.Path(FLAGS.output).parent
  if not folder.is_dir() or not os.access(folder, os.W_OK):
    raise UserError(f"--output is in {folder}, which is not a folder that can be written to")
  batches = [1] if FLAGS.memory is not None else _numbers("batch", FLAGS.batch, 1)
  units = _numbers("units", FLAGS.units, 0)
  cases = make_cases(FLAGS.model, FLAGS.mode, batches, units, FLAGS.activation_memory)
  cases = [dataclasses.replace(case, dtype=FLAGS.dtype, jit=FLAGS.jit) for case in cases]
  if FLAGS.memory is not None:
    results, machine = largest_batches(cases, FLAGS.memory, FLAGS.steps, FLAGS.rounds, FLAGS.starts)
  else:
    results, machine = measure(cases, FLAGS.steps, FLAGS.rounds, starts=FLAGS.starts)
  rows = summarize(results)
  print(table(rows))
  report = {
    "command": shlex.join(["python", "-m", "resnet.tools.benchmark", *sys.argv[1:]]),
    "machine": machine,
    "steps": FLAGS.steps,
    "rounds": FLAGS.rounds,
    "starts": FLAGS.starts,
    "memory_bytes": FLAGS.memory,
    "cases": rows,
  }
  pathlib.Path(f"{FLAGS.output}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
  device = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
  software = f"TensorFlow {machine['tensorflow']}, {FLAGS.dtype}{', XLA' if FLAGS.jit else ''}"
  plot(rows, f"{device}; {software}", f"{FLAGS.output}.png", largest=FLAGS.memory is not None)
  if any(result.error for result in results):
    sys.exit(1)


def make_cases(
  models: Iterable[str],
  modes: Sequence[str],
  batches: Sequence[int],
  units: Sequence[int],
  activation_memory: Sequence[str] = ("auto",),
) -> list[Case]:
  """The cases of all models x units x batches x modes x settings of mode unrolled, in this order.

  ResNets have the mode `ordinary` alone.

  Args:
    models: names of configurations.
    modes: of MODES.
    batches: images of a step.
    units: of each stage; 0 for as many as the model has.
    activation_memory: a configuration's, in mode unrolled.

  Raises:
    UserError (a ValueError): a model, a mode or a setting is unknown, or no mode is left.
  """
  for mode in modes:
    if mode not in MODES:
      raise UserError(f"--mode must be of {', '.join(MODES)}; got {mode!r}")
  cases = []
  for model in models:
    config = get_config(model)
    possible = modes if config.model_class == "revnet" else [mode for mode in modes if mode == "ordinary"]
    if not possible:
      raise UserError(f"--mode must have ordinary for {model}, which is not reversible; got {','.join(modes)}")
    own = config.num_residual_units
    depths = [(number,) * len(own) if number else own for number in units]
    for depth in depths:
      for memory in activation_memory if "unrolled" in possible else ():
        # Raises where the setting is impossible.
        dataclasses.replace(config, num_residual_units=depth, chain="unrolled", activation_memory=memory)
    cases += [
      Case(model, mode, batch, depth, activation_memory=memory)
      for depth in depths
      for batch in batches
      for mode in possible
      for memory in (activation_memory if mode == "unrolled" else ["auto"])
    ]
  return list(dict.fromkeys(cases))


def _numbers(flag: str, items: Iterable[str], least: int) -> list[int]:
  try:
    numbers = [int(item) for item in items]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) < least:
    raise UserError(f"--{flag} must be whole numbers of at least {least}, got {','.join(items)!r}")
  return numbers


def cli() -> None:
  run(define_flags, main)


if __name__ == "__main__":
  cli()
