"""Pickles of arrays and lists, read without doing anything else that a pickle can ask for.

Nothing that a pickle names is imported or called: stand-ins take the places of the few names that NumPy's
pickles have. NumPy's own would let a pickle set the flags of a dtype at will, which can crash the process.
"""

import io
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np


def load_arrays(data: bytes) -> dict[str, Any]:
  """The pickled dict, whose values are numbers, strings, lists, dicts and arrays of numbers.

  Strings of Python 2 are bytes, but for the dict's keys.

  Raises:
    pickle.UnpicklingError: it asks for anything else; the error names it.
    Exception: of whatever kind, if the pickle is damaged.
  """
  fields = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
  return {
    key.decode() if isinstance(key, bytes) else str(key): value.array if isinstance(value, _Array) else value
    for key, value in fields.items()
  }


class _ArrayUnpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    stand_in = _STAND_INS.get((module, name))
    if stand_in is None:
      raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
    return stand_in


class _Dtype:
  """For numpy.dtype: of numbers alone."""

  def __init__(self, name: str | bytes, *_: Any) -> None:
    text = name.decode() if isinstance(name, bytes) else name
    if text[:1] not in ("b", "f", "i", "u") or not text[1:].isdecimal():
      raise pickle.UnpicklingError(f"it asks for an array of {text[:20]!r}, which are no numbers")
    self.dtype = np.dtype(text)

  def __setstate__(self, state: Sequence[Any]) -> None:
    if state[1] in (">", b">"):
      self.dtype = self.dtype.newbyteorder(">")


class _Array:
  """For numpy.ndarray."""

  array = np.empty(0)

  def __setstate__(self, state: Sequence[Any]) -> None:
    _, shape, dtype, is_fortran, data = state
    self.array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(*_: Any) -> _Array:
  """The array whose state comes next."""
  return _Array()


def _frombuffer(data: bytes, dtype: _Dtype, shape: Sequence[int], order: str) -> _Array:
  """By protocol 5."""
  array = _Array()
  array.__setstate__((1, shape, dtype, order == "F", data))
  return array


def _encode(text: str, encoding: str) -> bytes:
  """What protocol 2 calls for bytes, without the other things that a codec can do."""
  if encoding != "latin1":
    raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}, which no array needs")
  return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
  ("numpy", "ndarray"): _Array,
  ("numpy", "dtype"): _Dtype,
  ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):  # before NumPy 2, and from it on
  _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
  _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _frombuffer
