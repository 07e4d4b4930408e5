"""The curves of a run: CSV files, as the original code wrote them, and TensorBoard summaries."""

import datetime
import pathlib
import shlex
import sys

import tensorflow as tf

# File name without .csv -> (its column beside step and time, its title in the catalog).
CURVES = {
  "train_ce": ("ce", "Train Loss (Cross Entropy)"),
  "train_acc": ("acc", "Train Accuracy"),
  "valid_acc": ("acc", "Validation Accuracy"),
  "learn_rate": ("lr", "Learning Rate"),
}


class ExperimentLogger:
  """Appends to the files of a folder; what earlier runs of the experiment wrote stays.

  Files: a CSV for each of CURVES with the columns step (updates done), time (ISO 8601) and the value;
  cmd.txt, the commands; catalog, the list of the others; TensorBoard's event files.

  Args:
    folder: made if it is not there.
  """

  def __init__(self, folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    self._folder = folder
    self._writer = tf.summary.create_file_writer(str(folder))
    with open(folder / "cmd.txt", "a", encoding="utf-8") as file:
      file.write(shlex.join(sys.argv) + "\n")
    catalog = ["filename,type,name", "cmd.txt,plain,Commands"]
    for name, (column, title) in CURVES.items():
      catalog.append(f"{name}.csv,csv,{title}")
      if not self._file(name).exists():
        self._file(name).write_text(f"step,time,{column}\n", encoding="utf-8")
    (folder / "catalog").write_text("\n".join(catalog) + "\n", encoding="utf-8")

  def log(self, name: str, step: int, value: float) -> None:
    """Appends a point to the curve `name`, one of CURVES. `step` counts the updates done so far."""
    with open(self._file(name), "a", encoding="utf-8") as file:
      file.write(f"{step:d},{datetime.datetime.now().isoformat()},{value:e}\n")
    with self._writer.as_default():
      tf.summary.write(name, tf.constant(value, tf.float32), step=step, metadata=_scalar_metadata())
    self._writer.flush()

  def _file(self, name: str) -> pathlib.Path:
    return self._folder / f"{name}.csv"


def _scalar_metadata():
  """What makes TensorBoard draw a curve; `tf.summary.scalar` would need TensorBoard to be installed."""
  plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
  return tf.compat.v1.SummaryMetadata(plugin_data=plugin)
