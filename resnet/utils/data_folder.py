"""Finds files by their names in a folder of data sets: lying in a folder, or packed in an archive."""

import contextlib
import gzip
import itertools
import os
import pathlib
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator
from typing import NamedTuple

from resnet.utils.errors import UserError, reason_of
from resnet.utils.tar_files import DAMAGE

DEPTH = 2  # levels of folders below the one that is given
# Bounds, so that other data sets cost no time: ImageNet's archives, its class folders.
MAX_ARCHIVE_BYTES = 2**30
MAX_FILE_BYTES = 2**28
MAX_MEMBERS = 64  # of an archive
MAX_FOLDERS = 100  # in a folder below the one that is given
_ARCHIVE = re.compile(r"\.(tar(\(\d+\))?(\.\w{2,3})?|tgz|tbz2?|txz)$")


class Place(NamedTuple):
  """A folder or an archive that has some of the files."""

  path: pathlib.Path
  contents: dict[str, bytes]  # by name, unpacked; the name is without .gz

  @property
  def is_archive(self) -> bool:
    """Whether it is a file."""
    return self.path.is_file()


def find_places(data_dir: str | os.PathLike, names: Collection[str], problems: list[str]) -> Iterator[Place]:
  """The places with a file of one of `names`, in `data_dir`, in its folders and in theirs.

  Those higher up come first, in a folder its files before its archives, then in the order of the names. What
  TensorFlow Datasets has downloaded there is among them.

  Args:
    data_dir: need not exist; or one archive.
    names: of files, without folder; a file may have a .gz in addition.
    problems: what is damaged is noted here and passed over.
  """
  root = pathlib.Path(data_dir)
  for folder in itertools.chain(_folders(root), _folders(root / "downloads/extracted")):
    files = [path for path in _entries(folder) if path.is_file()]
    with _noting(problems):
      if contents := {_plain(path.name): _unpacked(path) for path in files if _plain(path.name) in names}:
        yield Place(folder, contents)
    for path in files:
      if _ARCHIVE.search(path.name) and path.stat().st_size <= MAX_ARCHIVE_BYTES:
        with _noting(problems):
          for contents in read_archive(path, names):
            yield Place(path, contents)


def _folders(root: pathlib.Path) -> Iterator[pathlib.Path]:
  level = [root]
  for depth in range(DEPTH + 1):
    yield from level
    below = []
    for folder in level if depth < DEPTH else ():
      folders = [path for path in _entries(folder) if path.is_dir()]
      if folder == root or len(folders) <= MAX_FOLDERS:
        below += folders
    level = below


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
  if folder.is_file():
    return [folder]
  try:
    return sorted(folder.iterdir())
  except OSError:  # There is no such folder, or it is not ours to read.
    return []


@contextlib.contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
  try:
    yield
  except UserError as error:
    problems.append(str(error))


def _plain(name: str) -> str:
  return os.path.basename(name).removesuffix(".gz")


def _unpacked(path: pathlib.Path) -> bytes:
  try:
    if path.stat().st_size > MAX_FILE_BYTES:
      raise UserError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return _gunzipped(path.name, path.read_bytes())
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error


def _gunzipped(name: str, data: bytes) -> bytes:
  return gzip.decompress(data) if name.endswith(".gz") else data


def read_archive(path: pathlib.Path, names: Collection[str]) -> list[dict[str, bytes]]:
  """The files of these names in a tar archive, by name without .gz: a dict for each folder that has any.

  Where a header is damaged, the files after it may be missing.

  Raises:
    UserError: it cannot be read, or is no intact archive.
  """
  found: dict[str, dict[str, bytes]] = {}
  try:
    with tarfile.open(path) as tar:
      for member in itertools.islice(tar, MAX_MEMBERS):
        folder, name = os.path.split(member.name)
        if member.isfile() and _plain(name) in names and member.size <= MAX_FILE_BYTES:
          file = tar.extractfile(member)
          assert file is not None
          found.setdefault(folder, {})[_plain(name)] = _gunzipped(name, file.read())
      if found:
        while tar.fileobj.read(2**20):  # type: ignore[union-attr]  # Up to the checksum of a compressed file.
          pass
  except (OSError, *DAMAGE) as error:
    if isinstance(error, OSError) and error.strerror:
      raise UserError(f"cannot read {path}: {error.strerror}") from error
    raise UserError(f"{path} is no intact archive: {reason_of(error).rstrip(':')}") from error
  return list(found.values())
