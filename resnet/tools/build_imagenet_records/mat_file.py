"""Just enough of MATLAB's file format, version 5, for the table of synsets in ILSVRC2012's devkit.

A file is a header of 128 bytes and data elements, each a type, a length and that many bytes, padded to 8. A
matrix is an element of elements: its class, its shape, its name, then its values.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15  # types of elements; the others are numbers and texts
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_STRUCT, _CHAR = 2, 4  # classes of matrices; the others are numbers


def read_structs(data: bytes) -> list[dict[str, Any]]:
  """The structs of the file's first array of structs.

  Values are numbers, texts, or None for what is neither one number nor one text.

  Raises:
    ValueError: it is no such file, or is damaged.
  """
  if data[124:128] != b"\x00\x01IM":
    raise ValueError("it is no MATLAB file of version 5")
  try:
    for kind, content in _elements(data[_HEADER_BYTES:]):
      if kind == _COMPRESSED:
        ((kind, content),) = _elements(zlib.decompress(content))
      value = _matrix(content) if kind == _MATRIX else None
      if isinstance(value, list):
        return value
  except (struct.error, zlib.error, KeyError, IndexError) as error:
    raise ValueError(f"it is damaged ({error})") from error
  raise ValueError("it has no array of structs")


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
  offset = 0
  while offset < len(data):
    kind, size = struct.unpack_from("<II", data, offset)
    start = offset + 8
    if kind >> 16:  # Up to 4 bytes stand in the place of the length, which stands beside the type.
      kind, size, start = kind & 0xFFFF, kind >> 16, offset + 4
      offset += 8
    else:
      offset = start + size + (0 if kind == _COMPRESSED else -size % 8)
    if start + size > len(data):
      raise ValueError("it is cut off")
    yield kind, data[start : start + size]


def _matrix(content: bytes) -> Any:
  if not content:
    return None
  (_, flags), _, _, *rest = _elements(content)
  matrix_class = flags[0]
  if matrix_class == _STRUCT:
    (_, name_size), (_, names), *values = rest
    width = struct.unpack("<i", name_size)[0]
    fields = [names[at : at + width].rstrip(b"\0").decode() for at in range(0, len(names), width)]
    return [
      {field: _matrix(value) for field, (_, value) in zip(fields, values[at : at + len(fields)])}
      for at in range(0, len(values), len(fields))
    ]
  if len(rest) != 1 or matrix_class < _CHAR:
    return None
  ((kind, value),) = rest
  if kind in _TEXTS:
    return value.decode(_TEXTS[kind])
  numbers = np.frombuffer(value, f"<{_NUMBERS[kind]}")
  if matrix_class == _CHAR:
    return "".join(map(chr, numbers))
  return numbers[0].item() if len(numbers) == 1 else None
