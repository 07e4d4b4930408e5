"""Amounts of memory, as people write them."""

import re

from absl import flags

_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class _BytesParser(flags.ArgumentParser):
  def parse(self, argument):
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?([A-Za-z]+)", str(argument).strip())
    sizes = {unit.lower(): size for unit, size in _UNITS.items()}
    if not match or match[2].lower() not in sizes:
      raise ValueError(f"it must be a number and one of {', '.join(_UNITS)}, such as 2GB")
    return float(match[1]) * sizes[match[2].lower()]

  def flag_type(self):
    return "bytes"


def define_bytes(name: str, help_text: str) -> None:
  """Defines a flag for an amount of memory: "2GB", "1.5 GiB". Its value is in bytes, or None if not given."""
  flags.DEFINE(_BytesParser(), name, None, help_text, serializer=flags.ArgumentSerializer())


def show_bytes(number: float) -> str:
  """E.g. "13 kB", "950 MB", "2.31 GB"."""
  if number >= 1e9:
    return f"{number / 1e9:.2f} GB"
  return f"{number / 1e6:.0f} MB" if number >= 1e6 else f"{number / 1e3:.0f} kB"
