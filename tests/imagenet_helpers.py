"""Pictures, record files and a prepared imagenet2012, all tiny."""

import dataclasses
import io
import pathlib
import struct

import numpy as np
import tensorflow as tf

from resnet.configs import Config, get_config
from resnet.data.preprocessing import Preprocessing


def picture(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
  """A smooth random picture, [height, width, 3] uint8, so that resampling is well conditioned."""
  small = np.random.RandomState(seed).randint(0, 256, (5, 6, 3))
  return np.round(tf.image.resize(small, [height, width], "bicubic").numpy().clip(0, 255)).astype(np.uint8)


def jpeg(seed: int, height: int = 40, width: int = 60) -> bytes:
  return tf.io.encode_jpeg(picture(seed, height, width), quality=95).numpy()


def cmyk_jpeg(cyan: int, magenta: int, yellow: int, black: int, size: int = 16) -> bytes:
  """A JPEG of one colour in inverted CMYK as Adobe writes it: 255 is no ink; `size` is a multiple of 8."""

  def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

  bits, before = "", [0] * 4
  for _ in range((size // 8) ** 2):
    for component, level in enumerate((cyan, magenta, yellow, black)):
      difference = 8 * (level - 128) - before[component]
      before[component] += difference
      length = abs(difference).bit_length()
      bits += format(length, "04b")
      if length:
        bits += format(difference if difference > 0 else difference + (1 << length) - 1, f"0{length}b")
      bits += "0"
  bits += "1" * (-len(bits) % 8)
  scan = bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))
  scan = scan.replace(b"\xff", b"\xff\x00")
  components = range(1, 5)
  return b"".join(
    [
      b"\xff\xd8",
      segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 0)),
      segment(0xDB, bytes([0] + [1] * 64)),
      segment(0xC0, struct.pack(">BHHB", 8, size, size, 4) + b"".join(bytes([c, 0x11, 0]) for c in components)),
      segment(0xC4, bytes([0x00, 0, 0, 0, 12] + [0] * 12 + list(range(12)))),
      segment(0xC4, bytes([0x10, 1] + [0] * 15 + [0])),
      segment(0xDA, bytes([4]) + b"".join(bytes([c, 0]) for c in components) + bytes([0, 63, 0])),
      scan,
      b"\xff\xd9",
    ]
  )


def small_config(**fields) -> Config:
  """Images of 16x16, batches of 4; evaluation batches of 5."""
  defaults = {"height": 16, "width": 16, "batch_size": 4, "valid_batch_size": 5, "num_classes": 1000}
  return dataclasses.replace(get_config("revnet-56"), **(defaults | fields))


def preprocess_for_evaluation(preprocessor: str, encoded, height: int, width: int) -> tf.Tensor:
  """What a network of ImageNet takes of a picture."""
  return Preprocessing(small_config(preprocessor=preprocessor, height=height, width=width), None)(encoded)


def classic_example(encoded: bytes, label: int, boxes=()) -> bytes:
  """A serialized classic record; boxes are xmin, ymin, xmax, ymax."""
  feature = {
    "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
    "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    "image/class/text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a class"])),
  }
  for index, name in enumerate(("xmin", "ymin", "xmax", "ymax")):
    floats = tf.train.FloatList(value=[box[index] for box in boxes])
    feature[f"image/object/bbox/{name}"] = tf.train.Feature(float_list=floats)
  return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write_records(path: pathlib.Path, records: list[bytes]) -> None:
  with tf.io.TFRecordWriter(str(path)) as writer:
    for record in records:
      writer.write(record)


def write_classic(folder: pathlib.Path, split: str = "train", counts=(3, 2, 4, 2)) -> int:
  """Record files of so many examples each, labelled 1, 2, 3, ... in order; returns the number of examples."""
  folder.mkdir(exist_ok=True)
  label = 0
  for index, count in enumerate(counts):
    labels = range(label + 1, label + count + 1)
    records = [classic_example(jpeg(number), number) for number in labels]
    write_records(folder / f"{split}-{index:05d}-of-{len(counts):05d}", records)
    label += count
  return label


def prepare_tfds(folder: pathlib.Path, labels: dict[str, list[int]]) -> None:
  """TensorFlow Datasets' own imagenet2012, its pictures replaced; `labels` (from 0) by split."""
  import tensorflow_datasets as tfds

  builder = tfds.builder("imagenet2012", data_dir=folder)

  def examples(split):
    for index, label in enumerate(labels[split]):
      name = f"{split}_{index}.JPEG"
      yield name, {"image": io.BytesIO(jpeg(label)), "label": label, "file_name": name}

  builder._split_generators = lambda _: {split: examples(split) for split in labels}
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(verify_ssl=True))
