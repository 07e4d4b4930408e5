"""Time and memory of training steps, by the way in which gradients are computed.

python -m resnet.tools.benchmark --model revnet-110 --batch 100,300 --units 3,9,18 --output benchmark

- ordinary: backpropagation that stores all activations.
- recompute: every unit keeps its input and runs again in the backward pass.
- unrolled, while_loop: the reversible chain in its two forms, see resnet/reversible/chain.py.
- exact: unrolled, with activations on a grid (grid_bits=14), which is to be asked for by --mode.

Each case runs in a process of its own, on the first GPU or, without one, the CPU. Cases that differ in mode
alone take turns, round by round, so that a machine that is slower at times slows all of them; their
processes are alive together, and their memory must fit together.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

# TensorFlow stays out of this process: a child counts in its peak what its parent held when starting it.
from resnet.configs import get_config
from resnet.configs.config import DTYPES
from resnet.tools.benchmark.report import MODES, Case, Result, plot, summarize, table
from resnet.tools.figures import require_matplotlib
from resnet.utils.app import run
from resnet.utils.errors import UserError

FLAGS = flags.FLAGS
WORKER = [sys.executable, "-m", "resnet.tools.benchmark.worker"]


def define_flags() -> None:
  flags.DEFINE_multi_string("model", ["revnet-110"], "Model: one of resnet/configs. Repeatable.")
  flags.DEFINE_list(
    "mode", list(MODES[:4]), f"Of {', '.join(MODES)}. A ResNet is measured in mode ordinary only."
  )
  flags.DEFINE_list("batch", ["100"], "Images of a step. Memory per image needs two sizes, e.g. 100,300.")
  flags.DEFINE_list("units", ["0"], "Residual units of each stage, e.g. 3,9,18; 0: as many as the model has.")
  flags.DEFINE_enum("dtype", "float32", DTYPES, "As of the run scripts.")
  flags.DEFINE_bool("jit", False, "As of the run scripts.")
  flags.DEFINE_integer("steps", 6, "Steps of a case in a round.", lower_bound=1)
  flags.DEFINE_integer("rounds", 3, "How many times the cases take turns.", lower_bound=1)
  flags.DEFINE_string("output", "benchmark", "Where to write the results: to this path and .json, and .png.")


def main() -> None:
  require_matplotlib()  # Before the hours of measuring.
  folder = pathlib.Path(FLAGS.output).parent
  if not folder.is_dir() or not os.access(folder, os.W_OK):
    raise UserError(f"--output is in {folder}, which is not a folder that can be written to")
  cases = make_cases(
    FLAGS.model, FLAGS.mode, _numbers("batch", FLAGS.batch, 1), _numbers("units", FLAGS.units, 0)
  )
  cases = [dataclasses.replace(case, dtype=FLAGS.dtype, jit=FLAGS.jit) for case in cases]
  results, machine = measure(cases, FLAGS.steps, FLAGS.rounds)
  rows = summarize(results)
  print(table(rows))
  report = {
    "command": shlex.join(["python", "-m", "resnet.tools.benchmark", *sys.argv[1:]]),
    "machine": machine,
    "steps": FLAGS.steps,
    "rounds": FLAGS.rounds,
    "cases": rows,
  }
  pathlib.Path(f"{FLAGS.output}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
  device = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
  software = f"TensorFlow {machine['tensorflow']}, {FLAGS.dtype}{', XLA' if FLAGS.jit else ''}"
  plot(rows, f"{device}; {software}", f"{FLAGS.output}.png")
  if any(result.error for result in results):
    sys.exit(1)


def make_cases(
  models: Iterable[str], modes: Sequence[str], batches: Sequence[int], units: Sequence[int]
) -> list[Case]:
  """The cases of all models x units x batches x modes, in this order. ResNets have the mode `ordinary` alone.

  Args:
    models: names of configurations.
    modes: of MODES.
    batches: images of a step.
    units: of each stage; 0 for as many as the model has.

  Raises:
    UserError (a ValueError): a model or a mode is unknown, or no mode is left.
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
    cases += [Case(model, mode, batch, depth) for depth in depths for batch in batches for mode in possible]
  return list(dict.fromkeys(cases))


def measure(cases: Sequence[Case], steps: int, rounds: int) -> tuple[list[Result], dict[str, Any]]:
  """Measures the cases, and goes on to the next where one fails.

  Args:
    cases: those that differ in mode alone take turns if they follow each other.
    steps: of a case in a round.
    rounds: how many times cases take turns.

  Returns:
    A result for each case, in order, and what the machine is.
  """
  results = [Result(case) for case in cases]
  machine = {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": None, "tensorflow": None}
  groups: dict[Case, list[Result]] = {}
  for result in results:
    groups.setdefault(dataclasses.replace(result.case, mode=""), []).append(result)
  for group in groups.values():
    with contextlib.ExitStack() as processes:
      workers = {}
      for result in group:
        worker = workers[result.case] = processes.enter_context(Worker())
        reply = worker.ask(dataclasses.asdict(result.case), result)
        if reply:
          result.first_step_seconds = reply["seconds"]
          machine |= {key: reply[key] for key in ("gpu", "tensorflow")}
          _log(f"{result.case}: first step {reply['seconds']:.2f} s")
      for number in range(1, rounds + 1):
        for result in group:
          reply = workers[result.case].ask({"steps": steps}, result) if result.error is None else None
          if reply:
            result.step_seconds.append(reply["seconds"] / steps)
            _log(f"{result.case}: round {number} of {rounds}, {1000 * result.step_seconds[-1]:.4g} ms a step")
  return results, machine


class Worker:
  """A process that measures one case; a context that it ends with."""

  def __init__(self):
    # In a session of its own Ctrl-C does not reach it, but ends it by way of this process.
    self.process = subprocess.Popen(
      WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )

  def ask(self, message: dict[str, Any], result: Result) -> dict[str, Any] | None:
    """The answer to `message`, its peak noted in `result`; None, and the reason noted, if the case failed."""
    assert self.process.stdin
    assert self.process.stdout
    try:
      self.process.stdin.write(json.dumps(message) + "\n")
      self.process.stdin.flush()
      line = self.process.stdout.readline()
    except BrokenPipeError:
      line = ""
    reply: dict[str, Any] = json.loads(line) if line else {"error": self._end()}
    if "error" not in reply:
      result.peak_bytes = reply["peak_bytes"]
      return reply
    result.error = reply["error"]
    self.close()  # The others may need its memory.
    _log(f"{result.case}: failed, {result.error}")
    return None

  def _end(self) -> str:
    status = self.process.wait()
    if status == -signal.SIGKILL:
      return "killed, as processes are that take too much memory"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

  def close(self) -> None:
    self.process.kill()
    self.process.wait()
    for pipe in (self.process.stdin, self.process.stdout):
      with contextlib.suppress(BrokenPipeError):
        pipe.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _numbers(flag: str, items: Iterable[str], least: int) -> list[int]:
  try:
    numbers = [int(item) for item in items]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) < least:
    raise UserError(f"--{flag} must be whole numbers of at least {least}, got {','.join(items)!r}")
  return numbers


def _cpu() -> str:
  """The CPU's model."""
  with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
    for line in file:
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def _log(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def cli() -> None:
  run(define_flags, main)


if __name__ == "__main__":
  cli()
