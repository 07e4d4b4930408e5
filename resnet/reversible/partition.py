"""How a chain is cut: into segments, and what is rebuilt in them into loops and unrolled steps."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from resnet.reversible.arguments import Call
from resnet.reversible.likeness import likeness
from resnet.reversible.loop import Loop
from resnet.reversible.plain import CouplingStep, Step, run_plainly
from resnet.reversible.plan import NOTHING, Keep, keep_kinds
from resnet.reversible.segments import Part, Unrolled, run_rebuilding, run_stored
from resnet.reversible.step import StatelessStep


class Segment(NamedTuple):
  """Steps in a row whose backward pass is one.

  Attributes:
    run: (steps, streams, masks, call) -> (streams, masks).
    steps: for `run`.
    unit: the number of the unit that ends with it; None if its last one goes on.
  """

  run: Callable
  steps: Sequence[Any]
  unit: int | None


def segments(
  steps: Sequence[Step],
  call: Call,
  kept: Sequence[Keep] | None,
  exact: bool,
  loops: bool = False,
  cuts: Sequence[int] = (),
) -> list[Segment]:
  """The segments of a chain.

  Args:
    steps: of the chain.
    call: what it is called with.
    kept: by each step. None is plain Keras.
    exact: whether streams are on a grid.
    loops: whether units alike in a row are loops.
    cuts: numbers of units that a segment is to end with.
  """
  runs: list[Callable] = [run_plainly] * len(steps)
  if kept is not None:
    runs = [run_stored if keep.everything else run_rebuilding for keep in kept]
  rows = _rows(steps) if loops else {}
  # The streams before a step that cannot be undone are kept in any case, so a segment may end there. The
  # gradients of its weights can then be used, and freed, when it is undone.
  ends = [before.invertible and not step.invertible for before, step in itertools.pairwise(steps)]
  stretches = itertools.accumulate([0, *map(int, ends)])
  cut = [
    (stretch, sum(cut < step.unit for cut in cuts)) for stretch, step in zip(stretches, steps, strict=True)
  ]
  found = []
  for (run, _), ks in itertools.groupby(range(len(steps)), lambda k: (runs[k], cut[k])):
    numbers = list(ks)
    here: Sequence[Any] = [steps[k] for k in numbers]
    if kept is not None:
      here = _parts(here, call, [kept[k] for k in numbers], rows, exact)
    unit, after = steps[numbers[-1]].unit, steps[numbers[-1] + 1 :]
    found.append(Segment(run, here, None if after and after[0].unit == unit else unit))
  return found


def unrolled(steps: Sequence[Step], call: Call, exact: bool) -> Unrolled:
  """Steps with the values of their variables, of which no streams and outputs are kept."""
  kinds = keep_kinds(NOTHING, exact)
  part = Unrolled([StatelessStep(step, call, kinds, keeps_streams=False) for step in steps])
  return part.given(*part.values(), call.context)


def _parts(
  steps: Sequence[Step], call: Call, kept: Sequence[Keep], rows: dict[int, int], exact: bool
) -> list[Part]:
  """Steps of a segment as loops, where their units are in a row, and unrolled elsewhere."""
  parts: list[Part] = []
  for row, ks in itertools.groupby(range(len(steps)), lambda k: rows.get(steps[k].unit)):
    loops = row is not None
    here = [
      StatelessStep(steps[k], call, keep_kinds(kept[k], exact, loops), kept[k].streams, k == 0 and not loops)
      for k in ks
    ]
    units = [Unrolled(list(unit)) for _, unit in itertools.groupby(here, lambda step: step.step.unit)]
    parts.append(Loop(units) if loops else Unrolled(here))
  return parts


def _rows(steps: Sequence[Step]) -> dict[int, int]:
  """By the number of a unit the number of its row, of two or more units that are alike and can be undone."""
  kinds = []
  for number, unit in itertools.groupby(steps, lambda step: step.unit):
    of_unit = list(unit)
    may_loop = all(step.invertible and isinstance(step, CouplingStep) for step in of_unit)
    kinds.append(str([likeness(step.layers) for step in of_unit]) if may_loop else number)
  rows: dict[int, int] = {}
  for row, (_, numbers) in enumerate(itertools.groupby(range(len(kinds)), kinds.__getitem__)):
    units = list(numbers)
    rows |= dict.fromkeys(units, row) if len(units) > 1 else {}
  return rows
