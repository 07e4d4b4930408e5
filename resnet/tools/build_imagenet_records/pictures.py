"""Where the pictures are: in folders, or in tar files that are read in place."""

import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from resnet.utils.errors import UserError
from resnet.utils.tar_files import DAMAGE, StrictTarInfo

_EXTENSIONS = (".jpeg", ".jpg", ".png")
_OTHER_PICTURES = (".avif", ".bmp", ".gif", ".heic", ".jp2", ".ppm", ".tif", ".tiff", ".webp")


class Picture(NamedTuple):
  """A picture file, or the part of a tar file that holds one."""

  synset: str  # its class, e.g. "n01440764"; empty if the layout does not say
  name: str  # without folder, e.g. "n01440764_10026.JPEG"
  path: str
  offset: int  # bytes
  size: int  # bytes

  def read(self) -> bytes:
    """The encoded picture.

    Raises:
      OSError: it cannot be read, or the tar file ends within it.
    """
    with open(self.path, "rb", buffering=0) as file:
      data = os.pread(file.fileno(), self.size, self.offset)
    if len(data) != self.size:
      raise OSError(f"{self.path} ends within it")
    return data


def list_pictures(source: str | os.PathLike) -> list[Picture]:
  """All pictures of a split, sorted by class and name.

  Args:
    source: a folder or tar file with one folder or tar file for each class (`n01440764/`, `n01440764.tar`, as
      in ILSVRC2012_img_train.tar), or with the pictures themselves, which then have no class
      (ILSVRC2012_img_val.tar).

  Raises:
    UserError: there is no such file or folder, it holds no pictures, some that are no JPEG or PNG, or folders
      within class folders, or the tar file is damaged.
  """
  source = pathlib.Path(source)
  try:
    pictures = sorted(_in_folder(source) if source.is_dir() else _in_tar_file(str(source), ""))
  except OSError as error:
    raise UserError(f"cannot read {error.filename or source}: {error.strerror or error}") from error
  if not pictures:
    raise UserError(
      f"no pictures in {source}; expected class folders such as n01440764, class tars such as "
      "n01440764.tar, or files such as ILSVRC2012_val_00000001.JPEG"
    )
  unclassified = [picture.name for picture in pictures if not picture.synset]
  if 0 < len(unclassified) < len(pictures):
    raise UserError(f"{source} mixes class folders with pictures outside them, such as {unclassified[0]}")
  return pictures


def read_lines(path: str) -> list[str]:
  """The lines of a text file that are not blank, stripped."""
  try:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
      return [line.strip() for line in file if line.strip()]
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error


def _in_folder(folder: pathlib.Path) -> Iterator[Picture]:
  for entry in os.scandir(folder):
    if entry.name.startswith("."):
      continue
    if entry.is_dir():
      for file in os.scandir(entry.path):
        if file.is_dir() and not file.name.startswith("."):
          raise UserError(f"{file.path} is a folder within a class; move its pictures into {entry.path}")
        if _is_picture(file.name):
          yield Picture(entry.name, file.name, file.path, 0, _size(file.path))
    elif entry.name.endswith(".tar"):
      yield from _in_tar_file(entry.path, entry.name.removesuffix(".tar"))
    elif _is_picture(entry.name):
      yield Picture("", entry.name, entry.path, 0, _size(entry.path))


def _size(path: str) -> int:
  """Of a picture file, bytes; 0 if it cannot be had, as of a broken link, which reading it then reports."""
  try:
    return os.stat(path).st_size
  except OSError:
    return 0


def _in_tar_file(path: str, synset: str) -> Iterator[Picture]:
  with open(path, "rb") as file:
    try:
      yield from _in_tar(file, path, synset, os.fstat(file.fileno()).st_size)
    except UserError:
      raise
    except DAMAGE as error:
      raise UserError(f"{path} is no intact tar file: {error}") from error


def _in_tar(file: BinaryIO, path: str, synset: str, end: int) -> Iterator[Picture]:
  """Pictures of the tar from the file's position to the byte `end`: the whole file or a tar within it."""
  with tarfile.TarFile(fileobj=file, mode="r", tarinfo=StrictTarInfo) as tar:
    for member in tar:
      if member.offset_data + member.size > end:
        raise tarfile.ReadError(f"{member.name} goes on after the end of {synset or path}")
      if not member.isfile():
        continue
      folder, name = os.path.split(member.name)
      if name.endswith(".tar"):
        with open(path, "rb") as inner:
          inner.seek(member.offset_data)
          inner_end = member.offset_data + member.size
          yield from _in_tar(inner, path, name.removesuffix(".tar"), inner_end)
      elif _is_picture(name):
        yield Picture(
          synset or os.path.basename(folder).strip("."), name, path, member.offset_data, member.size
        )
      tar.members = []  # type: ignore[attr-defined]  # 1.2 million of them are better forgotten
    if file.tell() > end:  # The block of zeros that has ended it is another's.
      raise tarfile.ReadError(f"{synset or path} is cut off")


def _is_picture(name: str) -> bool:
  if name.startswith("."):
    return False
  if name.lower().endswith(_OTHER_PICTURES):
    raise UserError(f"pictures must be JPEG or PNG; convert {name}, or remove it")
  return name.lower().endswith(_EXTENSIONS)
