"""What resnet.tools.benchmark has measured, as numbers, as a table and as a picture."""

import dataclasses
import os
import statistics
from collections.abc import Sequence
from typing import Any

from resnet.tools import figures

MODES = ("ordinary", "recompute", "unrolled", "while_loop", "exact")
MB = 1e6  # bytes

# Colour and marker of each.
STYLES = {
  "ordinary": (figures.BLACK, "s"),
  "recompute": (figures.ORANGE, "^"),
  "unrolled": (figures.BLUE, "o"),
  "while_loop": (figures.PINK, "D"),
  "exact": (figures.GREEN, "v"),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A network, the way its gradients are computed (one of MODES), and the batch."""

  model: str
  mode: str
  batch: int  # images
  units: tuple[int, ...]  # residual units of each stage
  dtype: str = "float32"  # a configuration's
  jit: bool = False  # compiled by XLA
  kept_units: str = "auto"  # a configuration's, in mode unrolled

  @property
  def units_text(self) -> str:
    """E.g. "9" for 9 units in each stage, "3-4-6-3" for stages that differ."""
    return "-".join(map(str, self.units if len(set(self.units)) > 1 else self.units[:1]))

  def __str__(self) -> str:
    return f"{self.model} {self.mode}, batch {self.batch}, {self.units_text} units a stage"


@dataclasses.dataclass
class Result:
  """Measurements of a case. If the case failed, those that were made before."""

  case: Case
  first_step_seconds: float | None = None
  step_seconds: list[float] = dataclasses.field(default_factory=list)  # the mean step of each round
  peak_bytes: int | None = None
  error: str | None = None


def summarize(results: Sequence[Result]) -> list[dict[str, Any]]:
  """A row of numbers for each result, in order. None where there is no number.

  Statistics are median, min and max over rounds:

  - step_seconds, of the mean step of a round;
  - ratio_to_ordinary, of its ratio to that of `ordinary` in the same round, for the same model, batch and
    units.

  mb_per_image is the difference between the peaks of the largest and the smallest batch of the same model,
  mode and units, over the difference of the batches: what does not grow with the batch cancels.
  """
  finished = {result.case: result for result in results if result.error is None}
  rows = []
  for result in results:
    case = result.case
    ordinary = finished.get(dataclasses.replace(case, mode="ordinary"))
    done = case in finished
    step = _statistics(result.step_seconds)
    pairs = zip(result.step_seconds, ordinary.step_seconds, strict=True) if done and ordinary else ()
    rows.append(
      {
        **dataclasses.asdict(case),
        "error": result.error,
        "first_step_seconds": result.first_step_seconds,
        "round_step_seconds": result.step_seconds,
        "step_seconds": step,
        "ratio_to_ordinary": _statistics([ours / theirs for ours, theirs in pairs]),
        "images_per_second": case.batch / step["median"] if step else None,
        "peak_mb": result.peak_bytes / MB if result.peak_bytes is not None else None,
        "mb_per_image": _mb_per_image(case, finished) if done else None,
      }
    )
  return rows


def _statistics(values: Sequence[float]) -> dict[str, float] | None:
  return {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else None


def _mb_per_image(case: Case, finished: dict[Case, Result]) -> float | None:
  peaks = {
    other.batch: result.peak_bytes
    for other, result in finished.items()
    if dataclasses.replace(other, batch=case.batch) == case and result.peak_bytes is not None
  }
  if len(peaks) < 2:
    return None
  largest, smallest = max(peaks), min(peaks)
  return (peaks[largest] - peaks[smallest]) / MB / (largest - smallest)


def table(rows: Sequence[dict[str, Any]]) -> str:
  """The rows of `summarize` as aligned plain text, the reasons of failures below."""
  header = ["model", "mode", "units", "batch", "first step s", "step ms (min-max)", "x ordinary (min-max)"]
  lines = [header + ["images/s", "peak MB", "MB/image"], *map(_cells, rows)]
  widths = [max(map(len, column)) for column in zip(*lines)]
  text = [
    "  ".join(
      cell.ljust(width) if k < 2 else cell.rjust(width) for k, (cell, width) in enumerate(zip(line, widths))
    )
    for line in lines
  ]
  return "\n".join(text + [f"{_case(row)}: failed, {row['error']}" for row in rows if row["error"] is not None])


def _cells(row: dict[str, Any]) -> list[str]:
  case = _case(row)
  name = [case.model, case.mode, case.units_text, str(case.batch)]
  if row["error"] is not None:
    return [*name, "failed", *["-"] * 5]
  step, ratio = row["step_seconds"], row["ratio_to_ordinary"]
  return [
    *name,
    f"{row['first_step_seconds']:.2f}",
    "{:.1f} ({:.1f}-{:.1f})".format(*(1000 * seconds for seconds in step.values())),
    "{:.2f} ({:.2f}-{:.2f})".format(*ratio.values()) if ratio else "-",
    f"{row['images_per_second']:.1f}",
    f"{row['peak_mb']:.0f}",
    "-" if row["mb_per_image"] is None else f"{row['mb_per_image']:.2f}",
  ]


def plot(rows: Sequence[dict[str, Any]], title: str, path: str | os.PathLike) -> None:
  """Draws memory and time per step of the rows of `summarize`, a line of two panels for each model.

  Memory is that of an image where batches of two sizes tell it, otherwise the peak. Time is that of the
  smallest batch.
  """
  models = list(dict.fromkeys(row["model"] for row in rows))
  figure = figures.new_figure((10, 0.9 + 3.4 * len(models)))
  for axes, model in zip(figure.subplots(len(models), 2, squeeze=False), models):
    ours = [row for row in rows if row["model"] == model]
    batch = min(row["batch"] for row in ours)
    ours = [row for row in ours if row["batch"] == batch]
    per_image = any(row["mb_per_image"] is not None for row in ours)
    memory_field = "mb_per_image" if per_image else "peak_mb"
    memory = {_case(row): None if row["error"] else row[memory_field] for row in ours}
    times = {
      _case(row): None if row["error"] else [1000 * seconds for seconds in row["step_seconds"].values()]
      for row in ours
    }
    depths = {case.units for case in memory}
    if len(depths) > 1 and all(len(set(units)) == 1 for units in depths):
      _lines(axes[0], memory)
    else:
      _bars(axes[0], {case: None if value is None else [value] * 3 for case, value in memory.items()})
    _bars(axes[1], times)
    axes[0].set(
      title=model, ylabel="memory per image, MB" if per_image else f"peak memory at batch {batch}, MB"
    )
    axes[1].set(title=model, ylabel=f"time per step of {batch} images, ms")
    for axis in axes:
      axis.set_xlabel("residual units a stage")
      axis.set_ylim(bottom=0)
      axis.spines[["top", "right"]].set_visible(False)
  shown: dict[str, Any] = {}
  for axis in figure.axes:
    for handle, label in zip(*axis.get_legend_handles_labels()):
      shown.setdefault(label, handle)
  modes = [mode for mode in MODES if mode in shown]
  figure.legend([shown[mode] for mode in modes], modes, loc="outside lower center", ncols=4, frameon=False)
  figure.suptitle(title, fontsize="small")
  figure.savefig(path, dpi=150)


def _case(row: dict[str, Any]) -> Case:
  return Case(**{field.name: row[field.name] for field in dataclasses.fields(Case)})


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
