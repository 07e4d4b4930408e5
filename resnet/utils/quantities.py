"""Amounts of memory, as people write them."""

import math
import re

from absl import flags

_UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_bytes(text: str) -> float:
  """An amount of memory such as "2GB" or "1.5 GiB" in bytes, a whole number of at least 1.

  Raises:
    ValueError: it is none; says what would be.
  """
  match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?([A-Za-z]+)", text.strip())
  sizes = {unit.lower(): size for unit, size in _UNITS.items()}
  number = float(match[1]) * sizes.get(match[2].lower(), 0) if match else 0
  if not 0.5 < number < math.inf:
    raise ValueError(f"it must be a number and one of {', '.join(_UNITS)}, such as 2GB, and at least 1 byte")
  return float(round(number))


class _BytesParser(flags.ArgumentParser):
  def parse(self, argument):
    return parse_bytes(str(argument))

  def flag_type(self):
    return "bytes"


def define_bytes(name: str, help_text: str) -> None:
  """Defines a flag for an amount of memory, see `parse_bytes`. Its value is in bytes, or None if not given."""
  flags.DEFINE(_BytesParser(), name, None, help_text, serializer=flags.ArgumentSerializer())


def show_bytes(number: float) -> str:
  """E.g. "13 kB", "950 MB", "2.31 GB"."""
  if number >= 1e9:
    return f"{number / 1e9:.2f} GB"
  return f"{number / 1e6:.0f} MB" if number >= 1e6 else f"{number / 1e3:.0f} kB"
