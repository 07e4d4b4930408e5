"""Writing a folder whole or not at all."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from resnet.utils.errors import UserError


@contextlib.contextmanager
def fresh_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """A new folder to write to, which becomes `target` when the context ends without an error.

  Raises:
    UserError: `target` exists, or its parent cannot be written to.
  """
  require_absent(target)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
      folder = pathlib.Path(scratch, target.name)
      folder.mkdir()
      yield folder
      folder.rename(target)
  except OSError as error:
    raise UserError(f"cannot write to {target}: {error}") from error


def require_absent(target: pathlib.Path) -> None:
  """Raises a UserError if `target` exists."""
  if target.exists():
    raise UserError(f"{target} exists; choose another")
