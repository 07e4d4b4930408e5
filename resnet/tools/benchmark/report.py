"""What resnet.tools.benchmark has measured, as numbers and as a table."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from resnet.configs.config import ACTIVATION_MEMORY

MODES = ("ordinary", "recompute", "unrolled", "while_loop", "exact")
MB = 1e6  # bytes


@dataclasses.dataclass(frozen=True)
class Case:
  """A network, the way its gradients are computed (one of MODES), and the batch."""

  model: str
  mode: str
  batch: int  # images
  units: tuple[int, ...]  # residual units of each stage
  dtype: str = "float32"  # a configuration's
  jit: bool = False  # compiled by XLA
  activation_memory: str = "auto"  # a configuration's, in mode unrolled

  @property
  def mode_text(self) -> str:
    """The mode, and what it keeps if that was chosen."""
    return self.mode if self.activation_memory == "auto" else f"{self.mode} {self.activation_memory}"

  @property
  def units_text(self) -> str:
    """E.g. "9" for 9 units in each stage, "3-4-6-3" for stages that differ."""
    return "-".join(map(str, self.units if len(set(self.units)) > 1 else self.units[:1]))

  def __str__(self) -> str:
    return f"{self.model} {self.mode_text}, batch {self.batch}, {self.units_text} units a stage"


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
  mode and units, over the difference of the batches: what does not grow with the batch cancels. Where
  activation_memory is an amount, for any batch, there is none.
  """
  finished = {result.case: result for result in results if result.error is None}
  rows = []
  for result in results:
    case = result.case
    ordinary = finished.get(dataclasses.replace(case, mode="ordinary", activation_memory="auto"))
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
  if len(peaks) < 2 or case.activation_memory not in ACTIVATION_MEMORY:
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
  return "\n".join(
    text + [f"{case_of(row)}: failed, {row['error']}" for row in rows if row["error"] is not None]
  )


def _cells(row: dict[str, Any]) -> list[str]:
  case = case_of(row)
  name = [case.model, case.mode_text, case.units_text, str(case.batch)]
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


def case_of(row: dict[str, Any]) -> Case:
  """The case of a row of `summarize`."""
  return Case(**{field.name: row[field.name] for field in dataclasses.fields(Case)})
