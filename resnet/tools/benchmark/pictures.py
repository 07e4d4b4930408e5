"""Pictures of what resnet.tools.benchmark has measured."""

import os
from collections.abc import Sequence
from typing import Any

from resnet.tools import figures
from resnet.tools.benchmark.report import MODES, Case, case_of

# Colour and marker of each mode.
STYLES = {
  "ordinary": (figures.BLACK, "s"),
  "recompute": (figures.ORANGE, "^"),
  "unrolled": (figures.BLUE, "o"),
  "while_loop": (figures.PINK, "D"),
  "exact": (figures.GREEN, "v"),
}


def plot(rows: Sequence[dict[str, Any]], title: str, path: str | os.PathLike, largest: bool = False) -> None:
  """Draws memory and time per step of the rows of `summarize`, a line of panels for each model.

  Memory is that of an image where batches of two sizes tell it, otherwise the peak. Time is that of the
  smallest batch. Where a mode has several settings of what it keeps, one panel has time against memory. With
  `largest`, the panels are the batch and images per second.
  """
  models = list(dict.fromkeys(row["model"] for row in rows))
  figure = figures.new_figure((10, 0.9 + 3.4 * len(models)))
  for part, model in zip(figure.subfigures(len(models), 1, squeeze=False)[:, 0], models):
    ours = [row for row in rows if row["model"] == model]
    if largest:
      _draw_largest(part, model, ours)
    elif len({row["activation_memory"] for row in ours if row["mode"] == "unrolled"}) > 1:
      _draw_dial(part.subplots(), model, ours)
    else:
      _draw_costs(part, model, ours)
  shown: dict[str, Any] = {}
  axes = [axis for part in figure.subfigs for axis in part.axes]
  for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)
    for handle, label in zip(*axis.get_legend_handles_labels()):
      shown.setdefault(label, handle)
  modes = [mode for mode in MODES if mode in shown]
  figure.legend([shown[mode] for mode in modes], modes, loc="outside lower center", ncols=5, frameon=False)
  figure.suptitle(title, fontsize="small")
  figure.savefig(path, dpi=150)


def _draw_costs(part, model, rows) -> None:
  """Memory and time by mode and depth."""
  axes = part.subplots(1, 2)
  batch, rows, memory_field, memory_label = _at_smallest_batch(rows)
  memory = {case_of(row): None if row["error"] else row[memory_field] for row in rows}
  times = {
    case_of(row): None if row["error"] else [1000 * t for t in row["step_seconds"].values()] for row in rows
  }
  depths = {case.units for case in memory}
  if len(depths) > 1 and all(len(set(units)) == 1 for units in depths):
    _lines(axes[0], memory)
  else:
    _bars(axes[0], {case: None if value is None else [value] * 3 for case, value in memory.items()})
  _bars(axes[1], times)
  axes[0].set(title=model, ylabel=memory_label)
  axes[1].set(title=model, ylabel=f"time per step of {batch} images, ms")
  for axis in axes:
    axis.set_xlabel("residual units a stage")
    axis.set_ylim(bottom=0)


def _draw_dial(axis, model, rows) -> None:
  """Time against memory: a line through the settings of a mode, a line for each depth."""
  batch, rows, memory_field, memory_label = _at_smallest_batch(rows)
  rows = [row for row in rows if row["error"] is None and row[memory_field] is not None]
  for (mode, _), group in _grouped(rows, lambda row: (row["mode"], tuple(row["units"]))).items():
    group = sorted(group, key=lambda row: row[memory_field])
    times = [row["step_seconds"] for row in group]
    x, y = [row[memory_field] for row in group], [1000 * time["median"] for time in times]
    spread = [[1000 * abs(time[end] - time["median"]) for time in times] for end in ("min", "max")]
    color, marker = STYLES[mode]
    axis.errorbar(x, y, yerr=spread, color=color, marker=marker, ecolor="0.7", capsize=2, label=mode)
    for row, *point in zip(group, x, y):
      if row["mode"] == "unrolled":
        axis.annotate(row["activation_memory"], point, xytext=(4, 6), textcoords="offset points", color=color)
  axis.set(
    title=f"{model}, by what is kept", xlabel=memory_label, ylabel=f"time per step of {batch} images, ms"
  )
  axis.set_xlim(left=0)


def _draw_largest(part, model, rows) -> None:
  """The batch and the images per second of each mode."""
  axes = part.subplots(1, 2)
  values = {
    "largest batch": lambda row: row["batch"],
    "images per second": lambda row: row["images_per_second"],
  }
  for axis, (label, value) in zip(axes, values.items()):
    for k, row in enumerate(rows):
      number = None if row["error"] else value(row)
      if number is not None:
        axis.bar(k, number, 0.7, color=STYLES[row["mode"]][0], label=row["mode"])
        axis.text(k, number, f"{number:.3g}", ha="center", va="bottom")
    axis.set_xticks(
      range(len(rows)), [f"{case.mode_text}\n{case.units_text} units a stage" for case in map(case_of, rows)]
    )
    axis.set(title=model, ylabel=label)


def _at_smallest_batch(rows) -> tuple[int, list[dict[str, Any]], str, str]:
  """(the smallest batch, its rows, the field that says their memory, what to call that)."""
  batch = min(row["batch"] for row in rows)
  rows = [row for row in rows if row["batch"] == batch]
  if any(row["mb_per_image"] is not None for row in rows):
    return batch, rows, "mb_per_image", "memory per image, MB"
  return batch, rows, "peak_mb", f"peak memory at batch {batch}, MB"


def _grouped(rows, key) -> dict[Any, list[dict[str, Any]]]:
  groups: dict[Any, list[dict[str, Any]]] = {}
  for row in rows:
    groups.setdefault(key(row), []).append(row)
  return groups


def _lines(axis, values: dict[Case, float | None]) -> None:
  """Values against depth, a line for each mode."""
  for mode, (color, marker) in STYLES.items():
    points = sorted(
      (case.units[0], value) for case, value in values.items() if case.mode == mode and value is not None
    )
    if points:
      axis.plot(*zip(*points), color=color, marker=marker, label=mode)
  axis.set_xticks(sorted({case.units[0] for case in values}))


def _bars(axis, values: dict[Case, list[float] | None]) -> None:
  """[height, min, max] as bars by mode, a group for each depth; a word where there is None."""
  groups = list(dict.fromkeys(case.units_text for case in values))
  modes = [mode for mode in MODES if any(case.mode == mode for case in values)]
  width = 0.8 / len(MODES)
  for case, value in values.items():
    x = groups.index(case.units_text) + (modes.index(case.mode) - (len(modes) - 1) / 2) * width
    if value is None:
      axis.text(x, 0, f" {case.mode} failed", rotation=90, ha="center", va="bottom")
      continue
    median, least, greatest = value
    spread = [[median - least], [greatest - median]] if greatest > least else None
    color = STYLES[case.mode][0]
    axis.bar(x, median, 0.9 * width, yerr=spread, color=color, ecolor="0.5", capsize=3, label=case.mode)
  axis.set_xticks(range(len(groups)), groups)
  axis.set_xlim(-0.5, len(groups) - 0.5)
