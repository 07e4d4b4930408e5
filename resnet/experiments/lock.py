"""One writer for an experiment: a lock that ends with its process."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from absl import logging

from resnet.utils.errors import UserError

FILE = "lock"


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Holds the lock of `folder`: locks the file `lock` in it, whose text names the last holder.

  The operating system releases the lock when the process ends, however it ends; the file stays. Over NFS the
  lock excludes other machines, too, if the server keeps locks. A file system without locks gives a warning.

  Args:
    folder: made if it is not there.

  Raises:
    UserError: another process holds the lock, or the folder cannot be written to.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
  except OSError as error:
    raise UserError(f"cannot write to {error.filename}: {error.strerror}") from error
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      holder = os.read(file, 1000).decode(errors="replace").strip() or "another process"
      raise UserError(f"{folder} is being written to by {holder}; wait for it to end, or end it") from error
    except OSError as error:
      if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        raise
      logging.warning("%s: no locks on this file system; start one run of the experiment at a time", folder)
    with contextlib.suppress(OSError):  # A full disk; the lock holds without the name.
      os.ftruncate(file, 0)
      os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    yield
  finally:
    os.close(file)
