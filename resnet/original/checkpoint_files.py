"""Where a checkpoint of TensorFlow's Saver is: a prefix, a folder, or an archive of one."""

import contextlib
import os
import pathlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterator

from resnet.utils.errors import UserError
from resnet.utils.tar_files import DAMAGE, StrictTarInfo

# Ten times the weights and momentum of the largest network here. A compressed archive can claim any size.
MAX_ARCHIVE_BYTES = 5 * 2**30
MAX_DEPTH = 32  # folders in folders


@contextlib.contextmanager
def checkpoint_prefix(path: str | os.PathLike) -> Iterator[str]:
  """The prefix ({prefix}.index, {prefix}.data-00000-of-00001) of the checkpoint at `path`.

  Args:
    path: the prefix itself; a folder; or a tar archive, compressed or not, which is unpacked to a
      temporary folder for as long as the context is open. If a folder has several checkpoints, the
      folder's file `checkpoint` chooses one, as for `tf.train.latest_checkpoint`.

  Raises:
    UserError: there is no checkpoint, more than one, or the archive is damaged, too large
      or holds more than ordinary files and folders within it.
  """
  require_checkpoint(path)
  if os.path.isdir(path):
    yield _find(pathlib.Path(path), path)
  elif _is_prefix(path):
    yield os.fspath(path)
  else:
    with tempfile.TemporaryDirectory() as folder:
      _unpack(path, pathlib.Path(folder))
      yield _find(pathlib.Path(folder), path)


def require_checkpoint(path: str | os.PathLike) -> None:
  """Raises a UserError if there is nothing at `path` that `checkpoint_prefix` might read."""
  if not (os.path.isdir(path) or _is_prefix(path) or os.path.isfile(path)):
    raise UserError(
      f"no checkpoint at {path}: it must be a folder or a .tar.gz with a checkpoint in it, or a prefix "
      "such as model.ckpt-600000 of model.ckpt-600000.index"
    )


def _is_prefix(path: str | os.PathLike) -> bool:
  return os.path.isfile(f"{os.fspath(path)}.index")


def _find(folder: pathlib.Path, path: str | os.PathLike) -> str:
  prefixes = sorted(str(index.with_suffix("")) for index in folder.rglob("*.index"))
  if not prefixes:
    raise UserError(f"no checkpoint in {path}: there is no file *.index in it")
  if len(prefixes) == 1:
    return prefixes[0]
  newest = _newest(prefixes)
  if newest is None:
    names = ", ".join(os.path.relpath(prefix, folder) for prefix in prefixes)
    raise UserError(f"{path} has {len(prefixes)} checkpoints, of which one must be named: {names}")
  return newest


def _newest(prefixes: list[str]) -> str | None:
  """The checkpoint that the file `checkpoint` beside all of them names; None if it names none."""
  import tensorflow as tf  # seconds to import

  folder = os.path.dirname(prefixes[0])
  try:
    state = tf.train.get_checkpoint_state(folder)
  except (ValueError, tf.errors.OpError):  # Damaged: as if it was not there.
    return None
  # The file may name a folder of another machine, or any other: the checkpoint is always beside it.
  newest = os.path.join(folder, os.path.basename(state.model_checkpoint_path)) if state else None
  alone = all(os.path.dirname(prefix) == folder for prefix in prefixes)
  return newest if alone and newest in prefixes else None


def _unpack(path: str | os.PathLike, folder: pathlib.Path) -> None:
  """Writes an archive's files into `folder`, and nothing anywhere else."""
  size = 0
  try:
    with tarfile.open(path, tarinfo=StrictTarInfo) as archive:
      for member in archive:
        size += member.size
        _check_member(member, size, path)
        source = archive.extractfile(member)
        if source is None:  # A folder.
          continue
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, open(target, "xb") as file:
          shutil.copyfileobj(source, file)
  except UserError:
    raise
  except (*DAMAGE, OSError) as error:
    raise UserError(
      f"no checkpoint at {path}: it is neither a checkpoint's prefix nor a whole tar archive ({error})"
    ) from error


def _check_member(member: tarfile.TarInfo, size: int, path: str | os.PathLike) -> None:
  name = pathlib.PurePosixPath(member.name)
  if name.is_absolute() or ".." in name.parts:
    raise UserError(f"archive {path} is refused: {member.name!r} is a path out of it")
  if len(name.parts) > MAX_DEPTH or "\0" in member.name or any(len(os.fsencode(p)) > 255 for p in name.parts):
    raise UserError(f"archive {path} is refused: {member.name[:60]!r}... cannot be a file's path")
  if not (member.isreg() or member.isdir()):
    raise UserError(f"archive {path} is refused: {member.name!r} is neither a file nor a folder")
  if size > MAX_ARCHIVE_BYTES:
    raise UserError(f"archive {path} is refused: it holds more than {MAX_ARCHIVE_BYTES:,} bytes")
