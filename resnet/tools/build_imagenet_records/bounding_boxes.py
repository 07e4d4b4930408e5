"""Bounding box annotations of ImageNet: a CSV table, or PASCAL VOC files in a folder or a tar file."""

import csv
import math
import os
import pathlib
import reprlib
import tarfile
from collections.abc import Iterator
from typing import IO
from xml.etree import ElementTree

from resnet.utils.errors import UserError
from resnet.utils.tar_files import DAMAGE, StrictTarInfo

# xmin, ymin, xmax, ymax, relative to the picture's size, in [0, 1].
Box = tuple[float, float, float, float]


def read_boxes(path: str | os.PathLike) -> dict[str, list[Box]]:
  """Boxes by picture, its name without extension (`n01440764_10026`).

  Coordinates are limited to the picture, and a box that is empty then is left out.

  Args:
    path: a CSV file of lines `filename,xmin,ymin,xmax,ymax` in relative coordinates, or a folder or tar file
      (compressed or not) of XML files, at any depth.

  Raises:
    UserError: it cannot be read; names the file and, in a CSV file, the line.
  """
  path = pathlib.Path(path)
  try:
    if path.is_dir():
      found = _from_folder(path)
    elif _is_tar(path):
      found = _from_tar(path)
    else:
      found = _from_csv(path)
    boxes: dict[str, list[Box]] = {}
    for name, box in found:
      xmin, ymin, xmax, ymax = (min(max(coordinate, 0.0), 1.0) for coordinate in box)
      if xmin < xmax and ymin < ymax:
        boxes.setdefault(os.path.splitext(name)[0], []).append((xmin, ymin, xmax, ymax))
  except UserError:
    raise
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
  except DAMAGE as error:
    raise UserError(f"{path} is no intact tar file: {error}") from error
  if not boxes:
    raise UserError(f"no bounding boxes in {path}; expected a CSV file, or a folder or tar of XML files")
  return boxes


def _is_tar(path: pathlib.Path) -> bool:
  try:
    return tarfile.is_tarfile(path)
  except DAMAGE:  # A compressed file whose first block is damaged.
    return True


def _numbers(*coordinates: str) -> list[float]:
  """The numbers.

  Raises:
    ValueError: one is none.
  """
  numbers = [float(coordinate) for coordinate in coordinates]
  if not all(map(math.isfinite, numbers)):
    raise ValueError("a coordinate is not a finite number")
  return numbers


def _from_csv(path: pathlib.Path) -> Iterator[tuple[str, Box]]:
  with open(path, encoding="utf-8", newline="") as file:
    for number, row in enumerate(csv.reader(file), start=1):
      if not row:
        continue
      try:
        name, *coordinates = row
        xmin, ymin, xmax, ymax = _numbers(*coordinates)
        yield name, (xmin, ymin, xmax, ymax)
      except ValueError as error:
        raise UserError(
          f"{path}, line {number}: expected filename,xmin,ymin,xmax,ymax; got {reprlib.repr(','.join(row))}"
        ) from error


def _from_folder(folder: pathlib.Path) -> Iterator[tuple[str, Box]]:
  for parent, _, names in os.walk(folder):
    for name in names:
      if name.endswith(".xml"):
        path = os.path.join(parent, name)
        with open(path, "rb") as file:
          yield from _from_xml(file, name, path)


def _from_tar(path: pathlib.Path) -> Iterator[tuple[str, Box]]:
  with tarfile.open(path, tarinfo=StrictTarInfo) as tar:
    for member in tar:
      file = tar.extractfile(member) if member.isfile() and member.name.endswith(".xml") else None
      if file:
        yield from _from_xml(file, os.path.basename(member.name), f"{path}: {member.name}")
      tar.members = []  # type: ignore[attr-defined]  # half a million of them are better forgotten
    while tar.fileobj.read(2**20):  # type: ignore[union-attr]  # Up to the checksum of a compressed file.
      pass


def _from_xml(file: IO[bytes], name: str, shown: str) -> Iterator[tuple[str, Box]]:
  """The boxes of one file, named by the file: the name inside it is wrong for some pictures."""
  try:
    root = ElementTree.parse(file).getroot()
    width, height = _numbers(*(root.findtext(f"size/{side}", "") for side in ("width", "height")))
    for box in root.iterfind("object/bndbox"):
      xmin, ymin, xmax, ymax = _numbers(*(box.findtext(key, "") for key in ("xmin", "ymin", "xmax", "ymax")))
      yield name, (xmin / width, ymin / height, xmax / width, ymax / height)
  except (ElementTree.ParseError, ValueError, ZeroDivisionError, LookupError) as error:
    raise UserError(f"{shown} is no PASCAL VOC annotation: {error}") from error
