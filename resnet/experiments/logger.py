"""Writing the curves of a run: CSV files, as the original code wrote them, and TensorBoard summaries."""

import contextlib
import datetime
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator

import tensorflow as tf
from absl import logging

from resnet.experiments.curves import CURVES, drop_after
from resnet.utils.errors import reason_of


class ExperimentLogger:
  """Appends to the files of a folder; what earlier runs of the experiment wrote stays.

  Files: a CSV for each of CURVES with the columns step (updates done), time (ISO 8601) and its values;
  cmd.txt, the commands; catalog, the list of the others; TensorBoard's event files.

  A file that cannot be written to is no reason to stop: there is one warning, and the point is lost.

  Args:
    folder: made if it is not there. None: nothing is written.
    start: the step that the run starts from. It will write the points of later steps again, so they are moved
      from each NAME.csv to NAME.csv.dropped. None leaves them, for a writer of points in any order.
  """

  def __init__(self, folder: pathlib.Path | None, start: int | None = None):
    self._folder = folder
    self._has_warned = False
    if folder is None:
      return
    with self._warning():
      folder.mkdir(parents=True, exist_ok=True)
      if start is not None:
        for name in CURVES:
          drop_after(folder / f"{name}.csv", start)
      with open(folder / "cmd.txt", "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(shlex.join(sys.argv) + "\n")
      catalog = ["filename,type,name", "cmd.txt,plain,Commands"]
      catalog += [f"{name}.csv,csv,{title}" for name, title in CURVES.items()]
      (folder / "catalog").write_text("\n".join(catalog) + "\n", encoding="utf-8")
    self._writer = None
    with self._warning():
      self._writer = tf.summary.create_file_writer(str(folder))

  def log(self, name: str, step: int, **values: float) -> None:
    """Appends a point to the curve `name`, one of CURVES.

    Args:
      name: of the curve.
      step: how many updates have been done so far.
      **values: by column; the columns are the same for all points of the curve.
    """
    if self._folder is None:
      return
    with self._warning():
      numbers = [f"{value:e}" for value in values.values()]
      with open(self._folder / f"{name}.csv", "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        lines = [] if size else [",".join(["step", "time", *values])]
        if size:
          file.seek(-1, os.SEEK_END)
          if file.read(1) != b"\n":
            lines.append("")  # A run that was killed has left half a line.
        lines.append(",".join([str(step), datetime.datetime.now().isoformat(), *numbers]))
        file.write(("\n".join(lines) + "\n").encode())
    if self._writer is None:
      return
    with self._warning():
      with self._writer.as_default():
        for column, value in values.items():
          tag = name if len(values) == 1 else f"{name}/{column}"
          tf.summary.write(tag, tf.constant(value, tf.float32), step=step, metadata=_scalar_metadata())
      self._writer.flush()

  @contextlib.contextmanager
  def _warning(self) -> Iterator[None]:
    try:
      yield
    except (OSError, tf.errors.OpError) as error:
      if not self._has_warned:
        self._has_warned = True
        reason = getattr(error, "strerror", None) or reason_of(error)
        logging.warning("cannot write curves to %s: %s; training goes on without", self._folder, reason)


def _scalar_metadata():
  """Makes TensorBoard draw a curve. `tf.summary.scalar` does it, too, but needs TensorBoard to be installed."""
  plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
  return tf.compat.v1.SummaryMetadata(plugin_data=plugin)
