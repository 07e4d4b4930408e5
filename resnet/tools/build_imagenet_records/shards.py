"""Which pictures go into which record file."""

import os
import random
import re
from typing import NamedTuple

from resnet.tools.build_imagenet_records.pictures import Picture
from resnet.utils.errors import UserError

SHUFFLE_SEED = 12345


class Shard(NamedTuple):
  """A record file to be written."""

  path: str
  pictures: list[tuple[Picture, int, str]]  # with label (from 1) and the class in words

  @property
  def skipped_path(self) -> str:
    """The text file that names the pictures left out, if any."""
    return f"{self.path}.skipped"


class Written(NamedTuple):
  """What became of a shard."""

  path: str
  number: int  # of pictures dealt with
  problems: list[str]  # for each picture that was left out now its name and the reason
  sizes: list[tuple[int, int]]  # height and width of each picture in the file, pixels


def plan_shards(
  output_dir: str, split: str, pictures: list[Picture], number: int, classes: dict[str, tuple[int, str]]
) -> list[Shard]:
  """Divides a split's pictures, in random order, among its record files.

  Raises:
    UserError: a picture's class is unknown, there are fewer pictures than files, or the folder already holds a
      set of another number of files.
  """
  unknown = sorted({picture.synset for picture in pictures} - set(classes))
  if unknown:
    hint = "; the devkit's numbers need its meta.mat beside them" if unknown[0].isdecimal() else ""
    raise UserError(
      f"the {split} pictures have {len(unknown)} classes without a label, such as {unknown[0]!r}{hint}"
    )
  if len(pictures) < number:
    raise UserError(f"{number} {split} files for {len(pictures)} pictures; lower --{split}_shards")
  for name in os.listdir(output_dir):
    match = re.fullmatch(rf"{split}-\d{{5}}-of-(\d{{5}})", name)
    if match and int(match[1]) != number:
      raise UserError(f"{output_dir} already holds {name}, of another set; delete it, or choose another folder")
  pictures = list(pictures)
  random.Random(SHUFFLE_SEED).shuffle(pictures)
  bounds = [len(pictures) * index // number for index in range(number + 1)]
  return [
    Shard(
      os.path.join(output_dir, f"{split}-{index:05d}-of-{number:05d}"),
      [(picture, *classes[picture.synset]) for picture in pictures[bounds[index] : bounds[index + 1]]],
    )
    for index in range(number)
  ]
