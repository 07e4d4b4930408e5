"""The curves of a run: CSV files, as the original code wrote them, and TensorBoard summaries."""

import csv
import datetime
import pathlib
import shlex
import sys

import tensorflow as tf

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


class ExperimentLogger:
  """Appends to the files of a folder; what earlier runs of the experiment wrote stays.

  Files: a CSV for each of CURVES with the columns step (updates done), time (ISO 8601) and its values;
  cmd.txt, the commands; catalog, the list of the others; TensorBoard's event files.

  Args:
    folder: made if it is not there. None: nothing is written.
  """

  def __init__(self, folder: pathlib.Path | None):
    self._folder = folder
    if folder is None:
      return
    folder.mkdir(parents=True, exist_ok=True)
    self._writer = tf.summary.create_file_writer(str(folder))
    with open(folder / "cmd.txt", "a", encoding="utf-8") as file:
      file.write(shlex.join(sys.argv) + "\n")
    catalog = ["filename,type,name", "cmd.txt,plain,Commands"]
    catalog += [f"{name}.csv,csv,{title}" for name, title in CURVES.items()]
    (folder / "catalog").write_text("\n".join(catalog) + "\n", encoding="utf-8")

  def log(self, name: str, step: int, **values: float) -> None:
    """Appends a point to the curve `name`, one of CURVES.

    Args:
      name: of the curve.
      step: how many updates have been done so far.
      **values: by their columns, the same for all points of the curve.
    """
    if self._folder is None:
      return
    path = self._folder / f"{name}.csv"
    with open(path, "a", encoding="utf-8") as file:
      if not file.tell():
        file.write(",".join(["step", "time", *values]) + "\n")
      numbers = [f"{value:e}" for value in values.values()]
      file.write(",".join([str(step), datetime.datetime.now().isoformat(), *numbers]) + "\n")
    with self._writer.as_default():
      for column, value in values.items():
        tag = name if len(values) == 1 else f"{name}/{column}"
        tf.summary.write(tag, tf.constant(value, tf.float32), step=step, metadata=_scalar_metadata())
    self._writer.flush()

  def steps(self, name: str) -> set[int]:
    """The steps of the points of the curve `name`."""
    path = pathlib.Path(self._folder or "", f"{name}.csv")
    if not path.exists():
      return set()
    with open(path, encoding="utf-8") as file:
      return {int(row["step"]) for row in csv.DictReader(file)}


def _scalar_metadata():
  """What makes TensorBoard draw a curve; `tf.summary.scalar` would need TensorBoard to be installed."""
  plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
  return tf.compat.v1.SummaryMetadata(plugin_data=plugin)
