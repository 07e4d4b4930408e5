"""Which record is to blame when reading a data set fails.

TensorFlow's error says that a picture could not be decoded, not which. So the position of every
record is entered into a table before parsing, and removed once the image is done. After an error the table
holds the record that failed and the few that other threads were working on; those are read again, one by one.
The table costs a few microseconds an image.
"""

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from resnet.data.record_files import HEADER_BYTES, RecordFiles, record_offsets
from resnet.utils.errors import UserError, reason_of

_FILE_BITS = 32  # a position is file * 2**32 + record, both counted from 0


def first_position(file: tf.Tensor) -> tf.Tensor:
  """The position of a file's record 0; `file` is the file's number in the split, int64."""
  return tf.bitwise.left_shift(file, tf.constant(_FILE_BITS, tf.int64))


class RecordTracker:
  """Knows which records are being worked on, and what is wrong with one that failed.

  Args:
    files: of the split.
    num_classes: labels must be below this number.
  """

  def __init__(self, files: RecordFiles, num_classes: int) -> None:
    self._files = files
    self._num_classes = num_classes
    with tf.init_scope(), tf.device("CPU:0"):
      self._open = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, default_value=-1)

  def begin(self, position: tf.Tensor, serialized: tf.Tensor) -> tf.Tensor:
    """To be called on a record (scalar string) before anything else; returns it."""
    with tf.control_dependencies([self._open.insert(position[tf.newaxis], position[tf.newaxis])]):
      return tf.identity(serialized)

  def end(self, position: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """To be called on the record's image when it is done; returns it."""
    with tf.control_dependencies([image]):
      removed = self._open.remove(position[tf.newaxis])
    with tf.control_dependencies([removed]):
      return tf.identity(image)

  @contextlib.contextmanager
  def errors(self) -> Iterator[None]:
    """Turns TensorFlow's errors within into a UserError that names file and record, where a record is to blame.

    Other errors pass unchanged.
    """
    try:
      yield
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
      explanation = self._explain(error)
      if explanation is None:
        raise
      raise UserError(explanation) from error
    except (tf.errors.NotFoundError, tf.errors.PermissionDeniedError) as error:
      raise UserError(f"cannot read a record file: {reason_of(error)}") from error

  def _explain(self, error: tf.errors.OpError) -> str | None:
    if isinstance(error, tf.errors.DataLossError):
      return self._find_damage(error)
    for position in sorted(self._open.export()[0].numpy().tolist()):
      file, record = divmod(position, 2**_FILE_BITS)
      reason = self._check(self._files.paths[file], record)
      if reason:
        return f"{self._files.paths[file]}, record {record}: {reason}"
    return None

  def _check(self, path: str, record: int) -> str | None:
    """What is wrong with a record; None if nothing is."""
    serialized = next(iter(tf.data.TFRecordDataset(path).skip(record)))
    try:
      encoded, label, boxes = self._files.parse(serialized)
    except tf.errors.InvalidArgumentError as error:
      return f"not an ImageNet example ({reason_of(error)})"
    if not 0 <= label < self._num_classes:
      return f"label {int(label) + 1} is out of range 1..{self._num_classes}"
    if not bool(tf.reduce_all(tf.math.is_finite(boxes))):
      return "a coordinate of a bounding box is not a number"
    try:
      tf.io.decode_jpeg(encoded, channels=3)
    except tf.errors.InvalidArgumentError as error:
      return f"the picture is damaged ({reason_of(error)})"
    return None

  def _find_damage(self, error: tf.errors.DataLossError) -> str | None:
    """TensorFlow names the damaged record's byte, not its file: tries every file with a record at that byte."""
    match = re.search(r"record at (\d+)", error.message)
    for path in self._files.paths:
      try:
        offsets = list(record_offsets(path))
      except UserError as truncated:
        return str(truncated)
      damaged = int(match[1]) if match else -1
      for record, offset in enumerate(offsets):
        if damaged in (offset, offset + HEADER_BYTES) and not _is_readable(path, record):
          return f"{path} is damaged at record {record}: its checksum is wrong"
    return None


def _is_readable(path: str, record: int) -> bool:
  try:
    next(iter(tf.data.TFRecordDataset(path).skip(record)))
  except tf.errors.DataLossError:
    return False
  return True
