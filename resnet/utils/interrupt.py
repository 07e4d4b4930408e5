"""Stopping a run between two steps."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def deferred_signals(enabled: bool = True) -> Iterator[Callable[[], int | None]]:
  """Holds back Ctrl-C and SIGTERM, so that a step or a checkpoint is never cut in two.

  With `enabled` False signals act as usual.

  Yields a function that returns the number of the signal that came, or None. A second one acts at once.
  """
  received: list[int] = []
  previous: dict[int, Any] = {}

  def hold(number, _):
    received.append(number)
    signal.signal(number, previous[number])
    print("\nstopping after this step; once more to stop at once", file=sys.stderr)

  for number in (signal.SIGINT, signal.SIGTERM) if enabled else ():
    previous[number] = signal.signal(number, hold)
  try:
    yield lambda: received[0] if received else None
  finally:
    for held, handler in previous.items():
      signal.signal(held, handler)
