"""Loading TensorFlow without the lines of information that it writes to standard error each time."""

import contextlib
import importlib.abc
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator

# Lines of information, and what precedes the first line of TensorFlow's log.
_NOISE = re.compile(rb"WARNING: All log messages before absl::InitializeLog\(\)|I\d{4} \d\d:|\d{4}-.*: I ")


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
  """Within it, TensorFlow is loaded, and its devices are made, without lines of information.

  Warnings, errors and whatever else is written get through. If TensorFlow is loaded already, nothing is done.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  with contextlib.nullcontext() if "tensorflow" in sys.modules else _filtered():
    yield


def quiet_tensorflow() -> None:
  """Makes the first import of TensorFlow, wherever it will stand, one that is `without_noise`."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  if "tensorflow" not in sys.modules:
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
  """Finds TensorFlow as Python does."""

  def find_spec(self, fullname, path=None, target=None):
    if fullname != "tensorflow":
      return None
    sys.meta_path.remove(self)
    spec = importlib.util.find_spec(fullname)
    if spec is not None and spec.loader is not None:
      execute = spec.loader.exec_module

      def execute_filtered(module):
        with _filtered():
          execute(module)

      spec.loader.exec_module = execute_filtered  # type: ignore[method-assign]
    return spec


@contextlib.contextmanager
def _filtered() -> Iterator[None]:
  """Within it, what this process writes to standard error goes through `_filter`, in a process of its own.

  TensorFlow's library writes to the file descriptor, past Python, and TF_CPP_MIN_LOG_LEVEL does not hold for
  all of it. The last words of this process get through however it ends.
  """
  if sys.stderr is None:  # It is closed.
    yield
    return
  sys.stderr.flush()
  reader, writer = os.pipe()
  filtering = os.fork()
  if not filtering:
    os.close(writer)
    _filter(reader)
  os.close(reader)
  standard_error = os.dup(2)
  os.dup2(writer, 2)
  os.close(writer)
  try:
    yield
  finally:
    sys.stderr.flush()
    os.dup2(standard_error, 2)
    os.close(standard_error)
    os.waitpid(filtering, 0)


def _filter(reader: int) -> None:
  """Copies lines from `reader` to standard error, those of _NOISE left out; ends the process."""
  try:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      signal.signal(number, signal.SIG_IGN)  # It ends after the process that it reads from.
    with open(reader, "rb", buffering=0) as source:
      for line in iter(source.readline, b""):
        if not _NOISE.match(line):
          os.write(2, line)
  finally:
    os._exit(0)
