"""One ImageNet record file: pictures to tf.train.Example records, the file complete or not there."""

import os

import tensorflow as tf

from resnet.tools.build_imagenet_records.bounding_boxes import Box
from resnet.tools.build_imagenet_records.pictures import Picture, read_lines
from resnet.tools.build_imagenet_records.shards import Shard, Written
from resnet.utils.errors import UserError

_CONVERSION_QUALITY = 100  # of the few pictures that are no RGB or grayscale JPEG, as in the original's records


def start_worker() -> None:
  """Prepares a process that writes shards: it takes one thread, and no GPU."""
  tf.config.set_visible_devices([], "GPU")
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)


def write_shard(shard: Shard, boxes: dict[str, list[Box]]) -> Written:
  """Writes the file under a temporary name, then renames it.

  Args:
    shard: what to write.
    boxes: bounding boxes by picture, its name without extension.
  """
  problems, sizes = [], []
  temporary = f"{shard.path}.tmp"
  with tf.io.TFRecordWriter(temporary) as writer:
    for picture, label, text in shard.pictures:
      try:
        encoded, height, width = _rgb_jpeg(picture.read())
      except (OSError, tf.errors.InvalidArgumentError) as error:
        reason = str(error) if isinstance(error, OSError) else "not an intact picture"
        problems.append(f"{picture.name} ({picture.path}): {reason}")
        continue
      sizes.append((height, width))
      picture_boxes = boxes.get(os.path.splitext(picture.name)[0], [])
      writer.write(
        _example(picture, label, text, encoded, height, width, picture_boxes).SerializeToString(
          deterministic=True
        )
      )
  if os.path.exists(shard.skipped_path):
    os.remove(shard.skipped_path)
  if problems:
    with open(shard.skipped_path, "w", encoding="utf-8", errors="surrogateescape") as file:
      file.writelines(f"{problem}\n" for problem in problems)
  os.replace(temporary, shard.path)
  return Written(shard.path, len(shard.pictures), problems, sizes)


def read_shard(shard: Shard) -> Written:
  """What a file that was there already holds.

  Raises:
    UserError: it is damaged, or of another number of pictures.
  """
  features = {f"image/{side}": tf.io.FixedLenFeature([], tf.int64) for side in ("height", "width")}
  try:
    with tf.device("CPU:0"):
      records = tf.data.TFRecordDataset(shard.path).batch(100)
      batches = [tf.io.parse_example(batch, features) for batch in records]
  except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
    raise UserError(f"{shard.path} is damaged; delete it, and start again") from error
  sizes = [
    size
    for batch in batches
    for size in zip(*(batch[f"image/{side}"].numpy().tolist() for side in ("height", "width")))
  ]
  skipped = len(read_lines(shard.skipped_path)) if os.path.exists(shard.skipped_path) else 0
  if len(sizes) + skipped != len(shard.pictures):
    raise UserError(
      f"{shard.path} was made of {len(sizes) + skipped} pictures, but would now be of {len(shard.pictures)}; "
      "delete the record files, so that they are made anew"
    )
  return Written(shard.path, len(shard.pictures), [], sizes)


def _rgb_jpeg(encoded: bytes) -> tuple[bytes, int, int]:
  """The picture as RGB or grayscale JPEG, its height and width in pixels; decoded once, to be sure that it can.

  Raises:
    tf.errors.InvalidArgumentError: it cannot.
  """
  with tf.device("CPU:0"):
    image = tf.io.decode_jpeg(encoded, channels=3)  # reads PNG, and JPEG in CMYK, as well
    is_jpeg = bool(tf.io.is_jpeg(encoded))
    if not is_jpeg or tf.io.extract_jpeg_shape(encoded)[2] == 4:
      encoded = tf.io.encode_jpeg(image, format="rgb", quality=_CONVERSION_QUALITY).numpy()
  return encoded, image.shape[0], image.shape[1]


def _example(
  picture: Picture, label: int, text: str, encoded: bytes, height: int, width: int, boxes: list[Box]
) -> tf.train.Example:
  features = {
    "image/height": _integers(height),
    "image/width": _integers(width),
    "image/colorspace": _text("RGB"),
    "image/channels": _integers(3),
    "image/format": _text("JPEG"),
    "image/filename": _text(picture.name),
    "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
    "image/class/label": _integers(label),
    "image/class/synset": _text(picture.synset),
    "image/class/text": _text(text),
    "image/object/bbox/label": _integers(*[label] * len(boxes)),
  }
  for index, coordinate in enumerate(("xmin", "ymin", "xmax", "ymax")):
    values = [box[index] for box in boxes]
    features[f"image/object/bbox/{coordinate}"] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
  return tf.train.Example(features=tf.train.Features(feature=features))


def _integers(*values: int) -> tf.train.Feature:
  return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _text(value: str) -> tf.train.Feature:
  # Names of files need not be UTF-8.
  encoded = value.encode(errors="surrogateescape")
  return tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
