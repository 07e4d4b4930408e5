"""Stopping a run between two steps."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def deferred_signals(enabled: bool = True) -> Iterator[Callable[[], int | None]]:
  """Holds back Ctrl-C and SIGTERM, so that a step or a checkpoint is never cut in two.

  The caller must look for the first signal. The second ends the process at once, with the exit status 128 + its
  number, whatever the main thread does. A thread of its own watches for signals: Python runs handlers only
  between two of its instructions, and so never in a main thread that waits for data.

  With `enabled` False signals act as usual.

  Yields a function that returns the number of the signal that came, or None.
  """
  if not enabled:
    yield lambda: None
    return
  received: list[int] = []
  reader, writer = os.pipe()
  os.set_blocking(writer, False)

  def watch():
    seen = 0
    while number := os.read(reader, 1)[0]:
      if number not in (signal.SIGINT, signal.SIGTERM):
        continue
      seen += 1
      if seen > 1:
        os._exit(128 + number)
      with contextlib.suppress(OSError):  # Nobody may be reading any more.
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

  watcher = threading.Thread(target=watch, daemon=True)
  previous: dict[int, Any] = {}
  previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  watcher.start()
  for number in (signal.SIGINT, signal.SIGTERM):
    previous[number] = signal.signal(number, lambda number, _: received.append(number))
  try:
    yield lambda: received[0] if received else None
  finally:
    for held, handler in previous.items():
      signal.signal(held, handler)
    signal.set_wakeup_fd(previous_writer)
    os.write(writer, b"\0")  # No signal has the number 0: it ends the thread.
    watcher.join()
    os.close(reader)
    os.close(writer)
