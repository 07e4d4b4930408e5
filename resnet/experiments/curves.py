"""The CSV files of a run's curves."""

import contextlib
import os
import pathlib
import re

# File name without .csv -> its title in the catalog.
CURVES = {
  "train_ce": "Train Loss (Cross Entropy)",
  "train_acc": "Train Accuracy",
  "train_acc5": "Train Accuracy (Top 5)",
  "valid_acc": "Validation Accuracy",
  "valid_acc5": "Validation Accuracy (Top 5)",
  "learn_rate": "Learning Rate",
  "reconstruction_error": "Reconstruction Error",
}


def read_curve(path: str | os.PathLike) -> dict[int, float]:
  """The points of a curve's file: the first column of values by step, in the order of the steps.

  Of a step that is there twice, the first point counts. Lines that are cut or damaged are skipped. A file that
  cannot be read has no points.
  """
  try:
    lines = pathlib.Path(path).read_bytes().splitlines(keepends=True)
  except OSError:
    return {}
  points: dict[int, float] = {}
  for line in lines:
    step = _step(line)
    if step is not None:
      with contextlib.suppress(ValueError):
        points.setdefault(step, float(line.split(b",")[2]))
  return dict(sorted(points.items()))


def _step(line: bytes) -> int | None:
  """The step of a line of a curve; None for the header, and for a line that is no whole point."""
  match = re.fullmatch(rb"(\d{1,18}),[-:.T\d]+(,[-+.\w]+)+\r?\n", line)
  return int(match[1]) if match else None


def drop_after(path: pathlib.Path, start: int) -> None:
  """Keeps a curve's header and the first point of each step up to `start`; moves the rest to PATH.dropped."""
  if not path.exists():
    return
  header, *lines = path.read_bytes().splitlines(keepends=True) or [b""]
  kept: dict[int, bytes] = {}
  dropped = []
  for line in lines:
    step = _step(line)
    if step is None or step > start or step in kept:
      dropped.append(line)
    else:
      kept[step] = line
  if not dropped:
    return
  with open(f"{path}.dropped", "ab") as file:
    file.writelines(dropped)
  temporary = path.with_suffix(".csv.tmp")
  temporary.write_bytes(b"".join([header, *kept.values()]) if kept else b"")
  os.replace(temporary, path)
