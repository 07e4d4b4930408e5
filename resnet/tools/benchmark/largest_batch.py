"""The largest batch whose training step stays within a given memory."""

import dataclasses
import functools
import math
import signal
from collections.abc import Callable, Sequence
from typing import Any

from resnet.tools.benchmark.measure import Worker, log, measure
from resnet.tools.benchmark.report import Case, Result
from resnet.utils.errors import UserError
from resnet.utils.quantities import show_bytes

PRECISION = 0.02  # of the batch


def largest_batches(
  cases: Sequence[Case], memory: float, steps: int, rounds: int, starts: int
) -> tuple[list[Result], dict[str, Any]]:
  """For each case the largest batch in the memory, measured as by `measure`.

  Args:
    cases: their batches do not count.
    memory: bytes. On a GPU it is what TensorFlow allocates there at once. On a CPU it is the process's resident
      memory; a process that goes beyond it is killed.
    steps, rounds, starts: see `measure`. Cases take turns as far as the machine's memory has room for them
      together.

  Raises:
    UserError: the machine has not that much memory.
  """
  with Worker() as worker:
    reply = worker.ask(dataclasses.asdict(cases[0]), Result(cases[0]))
  on_gpu = bool(reply and reply["gpu"])
  free = None if on_gpu else _available()
  if free is not None and memory > 0.9 * free:
    raise UserError(
      f"--memory must leave a tenth of the machine's free {show_bytes(free)}, got {show_bytes(memory)}"
    )
  found = []
  failed = []
  for case in cases:
    result = Result(case)
    peak_of = functools.partial(_peak, case, math.inf if on_gpu else memory, result)
    batch = largest_batch(peak_of, memory)
    if result.error is None and batch == 0:
      result.error = f"a batch of 1 takes more than {show_bytes(memory)}"
    if result.error is None:
      found.append(dataclasses.replace(case, batch=batch))
    else:
      failed.append(result)
  together = free is not None and len(found) * memory < 0.9 * free
  results, machine = measure(
    found, steps, rounds, (lambda case: case.model) if together else (lambda case: case), starts
  )
  return results + failed, machine


def largest_batch(peak_of: Callable[[int], float | None], memory: float) -> int:
  """The largest batch whose peak is within `memory`, but for 2 %; 0 if there is none.

  Args:
    peak_of: batch -> the peak in bytes, or None for one that is too high to be measured.
    memory: bytes.
  """
  fits = previous = (0, 0.0)  # (batch, peak), and the one before it that fitted
  too_large = None
  batch = 1
  while too_large is None or too_large - fits[0] > max(1, PRECISION * fits[0]):
    peak = peak_of(batch)
    if peak is None or peak > memory:
      too_large = batch
    else:
      fits, previous = (batch, peak), fits
    if too_large is None:
      batch = 4 * fits[0]
      continue
    batch = (fits[0] + too_large) // 2
    if fits[1] > previous[1]:
      # Rather just below, then just above, where the line through the last two meets the memory.
      slope = (fits[1] - previous[1]) / (fits[0] - previous[0])
      meets = fits[0] + (memory - fits[1]) / slope
      # At least by the precision: peaks have steps, next to which the line would creep.
      least = int(max(1, PRECISION * fits[0])) + fits[0]
      nears = (max(int(factor * meets), least) for factor in (0.995, 1.01))
      inside = [near for near in nears if near < too_large]
      batch = next(iter(inside), batch)
  return fits[0]


def _peak(case: Case, most_resident: float, result: Result, batch: int) -> float | None:
  """The peak of three steps; None if there is not enough memory. Other failures are noted in `result`."""
  if result.error is not None:
    return None
  case = dataclasses.replace(case, batch=batch)
  trial = Result(case)
  with Worker(most_resident) as worker:
    reply = worker.ask(dataclasses.asdict(case), trial) and worker.ask({"steps": 1}, trial)
    if reply:
      log(f"{case}: peak {show_bytes(reply['peak_bytes'])}")
      return reply["peak_bytes"]
    if worker.process.returncode != -signal.SIGKILL and "ResourceExhausted" not in str(trial.error):
      result.error = trial.error
  return None


def _available() -> float | None:
  """Bytes of memory that the machine has free, as far as Linux tells; None elsewhere."""
  try:
    with open("/proc/meminfo", encoding="utf-8") as file:
      fields = dict(line.split(":") for line in file)
    return 1024.0 * int(fields["MemAvailable"].split()[0])
  except (OSError, KeyError):
    return None
