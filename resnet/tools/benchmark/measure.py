"""Measuring cases, each in a process of its own."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from resnet.tools.benchmark.report import Case, Result

WORKER = [sys.executable, "-m", "resnet.tools.benchmark.worker"]


def measure(
  cases: Sequence[Case],
  steps: int,
  rounds: int,
  in_turn: Callable[[Case], Any] | None = None,
  starts: int = 1,
) -> tuple[list[Result], dict[str, Any]]:
  """Measures the cases, and goes on to the next where one fails.

  Args:
    cases: all cases.
    in_turn: cases of which it says the same take turns, their processes alive together. By default those that
      differ in mode and in what it keeps alone.
    steps: of a case in a round.
    rounds: how many times cases take turns after each start.
    starts: how many times their processes are started, each time in another order. The time to the first step
      is that of the first start.

  Returns:
    A result for each case, in order, and what the machine is.
  """
  results = [Result(case) for case in cases]
  machine: dict[str, Any] = {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": None, "tensorflow": None}
  groups: dict[Any, list[Result]] = {}
  for result in results:
    key = in_turn(result.case) if in_turn else dataclasses.replace(result.case, mode="", activation_memory="")
    groups.setdefault(key, []).append(result)
  for group, start in itertools.product(groups.values(), range(starts)):
    first = start % len(group)
    with contextlib.ExitStack() as processes:
      workers = {}
      for result in (result for result in group[first:] + group[:first] if result.error is None):
        worker = workers[result.case] = processes.enter_context(Worker())
        reply = worker.ask(dataclasses.asdict(result.case), result)
        if reply:
          result.first_step_seconds = result.first_step_seconds or reply["seconds"]
          machine |= {key: reply[key] for key in ("gpu", "tensorflow")}
          log(f"{result.case}: first step {reply['seconds']:.2f} s")
      for number in range(1 + start * rounds, 1 + (start + 1) * rounds):
        for result in group:
          reply = workers[result.case].ask({"steps": steps}, result) if result.error is None else None
          if reply:
            result.step_seconds.append(reply["seconds"] / steps)
            seconds = f"{1000 * result.step_seconds[-1]:.4g} ms a step"
            log(f"{result.case}: round {number} of {starts * rounds}, {seconds}")
  return results, machine


class Worker:
  """A process that measures one case; a context that it ends with.

  Args:
    most_resident: bytes of resident memory beyond which the process is killed (on Linux).
  """

  def __init__(self, most_resident: float = math.inf):
    self.exceeded = False  # Whether it was killed for its memory.
    # In a session of its own Ctrl-C does not reach it, but ends it by way of this process.
    self.process = subprocess.Popen(
      WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    if most_resident < math.inf:
      threading.Thread(target=self._guard, args=(most_resident,), daemon=True).start()

  def _guard(self, most_resident):
    pages = pathlib.Path(f"/proc/{self.process.pid}/statm")
    with contextlib.suppress(OSError, IndexError):  # The process has ended, or there is no /proc.
      while self.process.poll() is None:
        if int(pages.read_text().split()[1]) * resource.getpagesize() > most_resident:
          self.exceeded = True
          self.process.kill()
        time.sleep(0.01)

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
      result.peak_bytes = max(result.peak_bytes or 0, reply["peak_bytes"])
      return reply
    result.error = reply["error"]
    self.close()  # The others may need its memory.
    log(f"{result.case}: failed, {result.error}")
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
      assert pipe
      with contextlib.suppress(BrokenPipeError):
        pipe.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _cpu() -> str:
  """The CPU's model."""
  with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
    for line in file:
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def log(text: str) -> None:
  """Says what is going on, beside the results."""
  print(text, file=sys.stderr, flush=True)
