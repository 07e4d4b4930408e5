"""ImageNet on disk: which record files a folder holds, what their records mean, and what is wrong with them.

Two forms, found by what is there:

* classic record files, `train-00000-of-01024` and `validation-00000-of-00128`, as
  `python -m resnet.tools.build_imagenet_records` and the original's tools write them, in `data_dir` or in its
  folders `train` and `validation`;
* `imagenet2012` prepared by TensorFlow Datasets, in `data_dir` or the folder `imagenet2012` within.
"""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import re
import struct
from collections.abc import Callable, Iterator

import tensorflow as tf

from resnet.utils.errors import UserError

# A record: the data's length (8 bytes, little endian), a checksum of it (4), the data, a checksum of them (4).
HEADER_BYTES = 12
_FOOTER_BYTES = 4

# Maps a serialized record to its encoded picture (scalar string), label counted from 0 (scalar int64) and boxes
# ([N, 4] float32: ymin, xmin, ymax, xmax in [0, 1]).
Parser = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class RecordFiles:
  """The record files of one split."""

  paths: tuple[str, ...]
  parse: Parser

  @functools.cached_property
  def counts(self) -> tuple[int, ...]:
    """Records in each file, by walking from header to header; reads no pictures.

    Raises:
      UserError: a file is truncated; the error names it.
    """
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
      return tuple(pool.map(count_records, self.paths))


def find_record_files(data_dir: str | os.PathLike, split: str) -> RecordFiles:
  """The record files of `split` ("train" or "validation") in `data_dir`; classic ones are preferred.

  Raises:
    UserError: there are none, or some are missing; the error names the folder or the files.
  """
  folder = pathlib.Path(data_dir)
  wanted = (
    f"expected record files such as {split}-00000-of-{'01024' if split == 'train' else '00128'}, there or in "
    f"{folder / split}, or an imagenet2012 prepared by TensorFlow Datasets; "
    "python -m resnet.tools.build_imagenet_records makes record files of pictures"
  )
  if not folder.is_dir():
    raise UserError(f"no ImageNet in {folder}: there is no such folder; {wanted}")
  paths = _find_classic(folder, split) or _find_classic(folder / split, split)
  if paths:
    files = RecordFiles(paths, parse_classic)
  elif prepared := _find_prepared(folder):
    files = _prepared_files(prepared, split)
  else:
    raise UserError(f"no ImageNet {split} split in {folder}; {wanted}")
  if not any(map(os.path.getsize, files.paths)):
    folder = pathlib.Path(files.paths[0]).parent
    raise UserError(f"the {split} record files in {folder} hold no example: all {len(files.paths)} are empty")
  return files


def parse_classic(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """The `Parser` of classic records, whose labels count from 1."""
  coordinates = [f"image/object/bbox/{name}" for name in ("ymin", "xmin", "ymax", "xmax")]
  features = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
  }
  for coordinate in coordinates:
    features[coordinate] = tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True)
  example = tf.io.parse_single_example(serialized, features)
  boxes = tf.stack([example[coordinate] for coordinate in coordinates], axis=-1)
  # Some annotations reach past the picture by a rounding error, which the crop sampler refuses.
  boxes = tf.clip_by_value(boxes, 0, 1)
  return example["image/encoded"], example["image/class/label"] - 1, boxes


def count_records(path: str) -> int:
  """Records in a file.

  Raises:
    UserError: the file is truncated or no record file.
  """
  return sum(1 for _ in record_offsets(path))


def record_offsets(path: str) -> Iterator[int]:
  """The byte at which each record of a file starts.

  Raises:
    UserError: the file is truncated or no record file; the error names it and the record, counted from 0.
  """
  with open(path, "rb", buffering=0) as file:
    size = os.fstat(file.fileno()).st_size
    offset = index = 0
    while offset < size:
      header = os.pread(file.fileno(), HEADER_BYTES, offset)
      length = struct.unpack("<Q", header[:8])[0] if len(header) == HEADER_BYTES else size
      end = offset + HEADER_BYTES + length + _FOOTER_BYTES
      if end > size:
        raise UserError(f"{path} is truncated or damaged at record {index}: the file ends within it")
      yield offset
      offset, index = end, index + 1


def _find_classic(folder: pathlib.Path, split: str) -> tuple[str, ...]:
  """Paths in order; empty if there are none."""
  if not folder.is_dir():
    return ()
  pattern = re.compile(rf"{split}-(\d{{5}})-of-(\d{{5}})")
  matches = [match for match in map(pattern.fullmatch, os.listdir(folder)) if match]
  if not matches:
    return ()
  totals = {int(match[2]) for match in matches}
  if len(totals) > 1:
    raise UserError(
      f"{folder} mixes {split} files of sets of {', '.join(map(str, sorted(totals)))}; keep one set only"
    )
  total = totals.pop()
  numbers = {int(match[1]) for match in matches}
  if max(numbers) >= total:
    raise UserError(
      f"{folder} has a record file {split}-{max(numbers):05d} of a set of {total}; keep one set only"
    )
  missing = sorted(set(range(total)) - numbers)
  if missing:
    names = ", ".join(f"{split}-{number:05d}-of-{total:05d}" for number in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise UserError(f"{folder} lacks {names}{more}, {len(missing)} of {total} record files")
  return tuple(sorted(str(folder / match[0]) for match in matches))


def _find_prepared(folder: pathlib.Path) -> pathlib.Path | None:
  """The folder of the newest version of imagenet2012 that TensorFlow Datasets has prepared."""
  for root in (folder, folder / "imagenet2012"):
    infos = [root / "dataset_info.json", *root.glob("*/dataset_info.json")]
    infos = [info for info in infos if info.parent.parent.name == "imagenet2012" and info.is_file()]
    if infos:
      return max(infos, key=lambda info: [int(part) for part in re.findall(r"\d+", info.parent.name)]).parent
  return None


def _prepared_files(folder: pathlib.Path, split: str) -> RecordFiles:
  import tensorflow_datasets as tfds  # seconds to import, and needed for this layout alone

  builder = tfds.builder_from_directory(folder)
  if split not in builder.info.splits:
    raise UserError(f"{folder} has no {split} split, only {', '.join(sorted(builder.info.splits))}")
  file_format = builder.info.file_format.value
  if file_format != "tfrecord":
    raise UserError(f"{folder} is stored as {file_format}; prepare it with file_format='tfrecord'")
  paths = tuple(str(path) for path in builder.info.splits[split].filepaths)
  missing = [os.path.basename(path) for path in paths if not os.path.isfile(path)]
  if missing:
    raise UserError(f"{folder} lacks {', '.join(missing[:3])}, {len(missing)} of {len(paths)} record files")
  counts = tuple(builder.info.splits[split].shard_lengths)
  for path, count in zip(paths, counts, strict=True):
    if (os.path.getsize(path) > 0) != (count > 0):
      raise UserError(f"{path} has {os.path.getsize(path)} bytes, but dataset_info.json says {count} examples")
  decoders = {"image": tfds.decode.SkipDecoding()}

  def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    example = builder.info.features.deserialize_example(serialized, decoders=decoders)
    return example["image"], tf.cast(example["label"], tf.int64), tf.zeros([0, 4])

  files = RecordFiles(paths, parse)
  files.__dict__["counts"] = counts
  return files
