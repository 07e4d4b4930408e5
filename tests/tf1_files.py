"""Checkpoints of TensorFlow 1's form for tests: read as a dict, changed, written."""

import io
import os
import tarfile

import numpy as np
import tensorflow as tf


def read(prefix: str | os.PathLike) -> dict[str, np.ndarray]:
  reader = tf.train.load_checkpoint(str(prefix))
  return {name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}


def write(prefix: str | os.PathLike, values: dict[str, np.ndarray]) -> str:
  """Writes {prefix}.index and {prefix}.data-00000-of-00001; returns the prefix."""
  tf.raw_ops.SaveV2(
    prefix=str(prefix),
    tensor_names=list(values),
    shape_and_slices=[""] * len(values),
    tensors=[tf.constant(value) for value in values.values()],
  )
  return str(prefix)


def write_archive(path: str | os.PathLike, members: list[tarfile.TarInfo | tuple[str, bytes]]) -> str:
  """Writes a .tar.gz of (name, content) pairs and of members without content; returns its path."""
  with tarfile.open(path, "w:gz") as archive:
    for member in members:
      if isinstance(member, tarfile.TarInfo):
        archive.addfile(member)
      else:
        name, content = member
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
  return str(path)
