"""Draws the curves of experiments, any number of them, in one picture.

python -m resnet.tools.plot_curves ID... --label resnet-32 --label revnet-38 --output curves.png
python -m resnet.tools.plot_curves seed-0,seed-1,seed-2 ANOTHER_ID

Four panels: loss, learning rate, training accuracy and test accuracy against the step, read from the CSV files
that the run scripts write. A curve of many points is smoothed, and its points are shown pale behind it.

IDs that are joined by commas are the seeds of one curve: their mean is drawn at the steps that all of them
have, and the range from the least to the largest as a band.
"""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

from resnet.experiments.curves import read_curve
from resnet.experiments.experiment import Experiment
from resnet.tools.figures import COLORS, new_figure
from resnet.utils.app import run
from resnet.utils.errors import UserError

FLAGS = flags.FLAGS

# Curve -> title of its panel, in the order of the panels.
PANELS = {
  "train_ce": "training loss (cross entropy)",
  "learn_rate": "learning rate",
  "train_acc": "training accuracy, %",
  "valid_acc": "test or validation accuracy, %",
}
DENSE = 50  # A curve of more points is smoothed
WINDOWS = 50  # by a running mean over a fiftieth of its points.

Points = tuple[np.ndarray, np.ndarray]  # steps [points], values [points] or, of several seeds, [seeds, points]


def define_flags() -> None:
  flags.DEFINE_string("logs", "./logs/public", "Folder of the curves, by experiment ID.")
  flags.DEFINE_multi_string("label", [], "Name in the legend, one for each ID in order. Default: the IDs.")
  flags.DEFINE_string("output", "curves.png", "PNG file to write.")


def main(ids: Sequence[str]) -> None:
  if not ids:
    raise UserError("no experiment is named; write its ID behind the command")
  labels = FLAGS.label or ids
  if len(labels) != len(ids):
    raise UserError(f"--label must be given once for each of the {len(ids)} IDs, got {len(labels)}")
  if repeated := [label for label in dict.fromkeys(labels) if labels.count(label) > 1]:
    raise UserError(f"{repeated[0]} is named twice; give each experiment a --label of its own")
  curves = {label: read_seeds(name, FLAGS.logs) for name, label in zip(ids, labels, strict=True)}
  plot(curves, FLAGS.output)
  print(f"{FLAGS.output}: the curves of {', '.join(labels)}")


def read_seeds(ids: str, logs: str | os.PathLike) -> dict[str, Points]:
  """The curves of an experiment, or of several that differ in their seeds, joined by commas.

  Raises:
    UserError: no such experiment, or no curve that all of them have.
  """
  names = [ids] if pathlib.Path(logs, ids).is_dir() else ids.split(",")
  seeds = [read_curves(name, logs) for name in names]
  if len(seeds) == 1:
    return seeds[0]
  curves = {}
  for name in PANELS:
    if not all(name in ours for ours in seeds):
      continue
    steps = functools.reduce(np.intersect1d, (ours[name][0] for ours in seeds))
    if steps.size:
      curves[name] = (
        steps,
        np.stack([values[np.isin(own, steps)] for own, values in (ours[name] for ours in seeds)]),
      )
  if not curves:
    raise UserError(f"{ids} have no step of a curve in common")
  return curves


def read_curves(experiment_id: str, logs: str | os.PathLike) -> dict[str, Points]:
  """The curves of PANELS that an experiment has, accuracies in per cent.

  Raises:
    UserError: no such experiment, or no curve in it.
  """
  folder = Experiment.named(experiment_id, results="", logs=os.fspath(logs)).logs_folder
  if not folder.is_dir():
    there = sorted(path.name for path in pathlib.Path(logs).glob("*/") if any(path.glob("*.csv")))
    listed = f"there are {', '.join(there[:10])}{', ...' if there[10:] else ''}" if there else "there is none"
    raise UserError(f"no experiment {experiment_id} in {logs}; {listed}")
  curves = {}
  for name in PANELS:
    points = read_curve(folder / f"{name}.csv")
    if points:
      steps, values = np.array(list(points)), np.array(list(points.values()))
      curves[name] = steps, 100 * values if name.endswith("_acc") else values
  if not curves:
    raise UserError(
      f"experiment {experiment_id} has no curves: no point in {folder}/{{{','.join(PANELS)}}}.csv"
    )
  return curves


def smoothed(values: np.ndarray) -> np.ndarray:
  """The running mean over equally many values on either side, fewer near the ends; [..., points]."""
  points = values.shape[-1]
  reach = max(1, points // (2 * WINDOWS))
  sums = np.concatenate([np.zeros([*values.shape[:-1], 1]), np.cumsum(values, -1)], -1)
  positions = np.arange(points)
  width = np.minimum(reach, np.minimum(positions, points - 1 - positions))
  return (sums[..., positions + width + 1] - sums[..., positions - width]) / (2 * width + 1)


def plot(curves: Mapping[str, Mapping[str, Points]], path: str | os.PathLike) -> None:
  """Writes the picture.

  Args:
    curves: for each label, points by the names of PANELS.
    path: of the PNG file.

  Raises:
    UserError: the file cannot be written, or matplotlib is missing.
  """
  figure = new_figure(figsize=(10, 7.2))
  shown = {}
  for axis, (name, title) in zip(figure.subplots(2, 2).flat, PANELS.items()):
    for k, (label, ours) in enumerate(curves.items()):
      if name not in ours:
        continue
      steps, values = ours[name][0], np.atleast_2d(ours[name][1])
      style = {"color": COLORS[k % len(COLORS)], "linestyle": ("-", "--", ":")[k // len(COLORS) % 3]}
      if name == "learn_rate":
        style["drawstyle"] = "steps-post"
      elif len(steps) > DENSE:
        if len(values) == 1:
          axis.plot(steps, values[0], color=style["color"], alpha=0.15, linewidth=0.7)
        values = smoothed(values)
      else:
        style["marker"] = "."
      if len(values) > 1:
        axis.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.2, linewidth=0)
      (shown[label],) = axis.plot(steps, values.mean(0), **style)
    axis.set(title=title, xlabel="step")
    if not axis.lines:
      axis.text(0.5, 0.5, "no points", transform=axis.transAxes, ha="center")
    elif name in ("train_ce", "learn_rate"):
      axis.set_yscale("log")
    elif trained := [
      value for ours in curves.values() if name in ours for value in ours[name][1][..., 1:].flat
    ]:
      # The untrained network's accuracy, the first point, would press the others into a line.
      lowest = min(trained)
      axis.set_ylim(bottom=max(0, lowest - 0.1 * (100 - lowest)))
    axis.spines[["top", "right"]].set_visible(False)
  figure.legend(shown.values(), shown, loc="outside lower center", ncols=min(len(shown), 3), frameon=False)
  try:
    figure.savefig(path, format="png", dpi=120)
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror}") from error


def cli() -> None:
  run(define_flags, main, takes_arguments=True)


if __name__ == "__main__":
  cli()
