"""Pickles of arrays and lists, read without doing anything else that a pickle can ask for."""

import io
import pickle
from typing import Any

import numpy as np


def load_arrays(data: bytes) -> Any:
  """The object of a pickle that holds nothing but numbers, strings, lists, dicts and NumPy arrays.

  Strings of Python 2 become bytes.

  Raises:
    pickle.UnpicklingError: it asks for anything else, which is not done; the error names it.
    Exception: of whatever kind, if the pickle is damaged.
  """
  return _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()


class _ArrayUnpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    found = _NEEDED.get((module, name))
    if found is None:
      raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
    return found


def _encode(text: str, encoding: str) -> bytes:
  """What protocol 2 calls for bytes, without the other things that a codec can do."""
  if encoding != "latin1":
    raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}, which no array needs")
  return text.encode("latin1")


# What NumPy's own pickles call: of an array from 1.0 on, and of one by protocol 5.
_reconstruct = np.empty(0).__reduce__()[0]
_frombuffer = np.empty(0).__reduce_ex__(5)[0]
_NEEDED = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _encode}
for _core in ("numpy.core", "numpy._core"):  # before NumPy 2, and from it on
  _NEEDED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
  _NEEDED[f"{_core}.numeric", "_frombuffer"] = _frombuffer
