"""The classes of ILSVRC2012's validation pictures, from any of the files in which people have them."""

import csv
import os
import pathlib
from collections.abc import Mapping, Sequence

from resnet.tools.build_imagenet_records.mat_file import read_structs
from resnet.tools.build_imagenet_records.pictures import Picture, read_lines
from resnet.utils.data_folder import read_archive
from resnet.utils.errors import UserError

_GROUND_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


def with_labels(pictures: Sequence[Picture], path: str | os.PathLike) -> list[Picture]:
  """Gives pictures without class their synsets.

  Args:
    pictures: sorted by name.
    path: one of
      * a text file whose line i has the synset of picture i;
      * the devkit, ILSVRC2012_devkit_t12.tar.gz or its folder, or ILSVRC2012_validation_ground_truth.txt with
        meta.mat beside it: line i has the number of picture i, and meta.mat the synset of each number;
      * a CSV file with the columns ImageId, a picture's name without extension, and PredictionString, which
        starts with the synset: LOC_val_solution.csv.

  Raises:
    UserError: it cannot be read, or does not have one label for each picture.
  """
  path = pathlib.Path(path)
  if path.is_dir() or path.name.endswith((".tar", ".gz", ".tgz")):
    return _in_order(pictures, _from_devkit(path), path)
  lines = read_lines(str(path))
  if lines and lines[0].split(",")[0].strip("\ufeff") == "ImageId":
    return _by_name(pictures, lines, path)
  meta = path.with_name(_META)
  if lines and all(map(str.isdecimal, lines)) and meta.is_file():
    lines = _synsets(lines, meta.read_bytes(), meta)
  return _in_order(pictures, lines, path)


def _in_order(pictures: Sequence[Picture], synsets: Sequence[str], path: pathlib.Path) -> list[Picture]:
  if len(synsets) != len(pictures):
    raise UserError(f"{path} has {len(synsets)} lines for {len(pictures)} pictures; expected one for each")
  return [picture._replace(synset=synset) for picture, synset in zip(pictures, synsets)]


def _by_name(pictures: Sequence[Picture], lines: list[str], path: pathlib.Path) -> list[Picture]:
  synsets = {}
  for number, row in enumerate(csv.reader(lines[1:]), start=2):
    if len(row) < 2 or not row[1].split():
      raise UserError(
        f"{path}, line {number}: expected ImageId,PredictionString; got {lines[number - 1][:60]!r}"
      )
    synsets[row[0]] = row[1].split()[0]
  labelled = []
  for picture in pictures:
    stem = os.path.splitext(picture.name)[0]
    if stem not in synsets:
      raise UserError(f"{path} has no line for {picture.name}")
    labelled.append(picture._replace(synset=synsets[stem]))
  return labelled


def _from_devkit(path: pathlib.Path) -> list[str]:
  names = (_GROUND_TRUTH, _META)
  if path.is_dir():
    found = {name: file.read_bytes() for name in names for file in sorted(path.rglob(name))[:1]}
  else:
    found = next((files for files in read_archive(path, names) if len(files) == len(names)), {})
  missing = [name for name in names if name not in found]
  if missing:
    raise UserError(f"{path} is not ILSVRC2012's devkit: it has no {' and no '.join(missing)}")
  return _synsets(found[_GROUND_TRUTH].decode(errors="replace").split(), found[_META], path)


def _synsets(numbers: Sequence[str], meta: bytes, path: pathlib.Path) -> list[str]:
  try:
    synsets = _synset_of_number(meta)
  except (ValueError, KeyError, TypeError, OverflowError) as error:
    raise UserError(f"{path}: cannot read the devkit's {_META}: {error}") from error
  for number in numbers:
    if number not in synsets:
      raise UserError(f"{path}: the devkit's {_META} has no synset of number {number[:20]!r}")
  return [synsets[number] for number in numbers]


def _synset_of_number(meta: bytes) -> Mapping[str, str]:
  structs = read_structs(meta)
  return {str(int(struct["ILSVRC2012_ID"])): str(struct["WNID"]) for struct in structs}
