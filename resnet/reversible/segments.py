"""How a chain is cut into segments, and how each is run: forward, with one backward pass.

Each function `run_...` takes streams and masks, gives those after the segment, and assigns the new values of
variables.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

from resnet.recomputation.arguments import Call
from resnet.recomputation.custom_vjp import Boundary
from resnet.recomputation.likeness import likeness
from resnet.recomputation.masks import Mask
from resnet.recomputation.ordering import released_together, wait_for
from resnet.reversible.backward import NOTHING, Keep
from resnet.reversible.loop import Loop
from resnet.reversible.plain import CouplingStep, Step, Streams, run_plainly
from resnet.reversible.step import Given, StatelessStep, StepSequence


class Segment(NamedTuple):
  """Steps in a row whose backward pass is one.

  Attributes:
    run: (steps, streams, masks, call) -> (streams, masks).
    steps: for `run`: those of the chain, or a `StepSequence`.
    unit: the number of its last step's unit.
  """

  run: Callable
  steps: Any
  unit: int


def segments(
  steps: Sequence[Step], call: Call, kept: Sequence[Keep | None], loops: bool, cuts: Sequence[int]
) -> list[Segment]:
  """The segments of a chain.

  Args:
    steps: of the chain.
    call: what it is called with.
    kept: by each step, or None, which is plain Keras.
    loops: whether units alike in a row are loops.
    cuts: numbers of units that a segment is to end with.
  """
  runs = [run_plainly if keep is None else run_stored if keep.everything else run_rebuilding for keep in kept]
  rows = _rows(steps) if loops else {}
  # The streams before a step that cannot be undone are kept in any case, so a segment may end there. The
  # gradients of its weights can then be used, and freed, when it is undone.
  ends = [a.invertible > b.invertible or (a.unit in cuts and a.unit < b.unit) for a, b in pairwise(steps)]
  piece = [*accumulate([0, *ends])]
  found = []
  for (run, _), ks in groupby(range(len(steps)), lambda k: (runs[k], piece[k])):
    numbers = list(ks)
    here: Any = [steps[k] for k in numbers]
    if run is not run_plainly:
      here = _sequence(here, call, [kept[k] or NOTHING for k in numbers], rows)
    found.append(Segment(run, here, steps[numbers[-1]].unit))
  return found


def _sequence(steps: Sequence[Step], call: Call, kept: Sequence[Keep], rows: dict[int, str]) -> StepSequence:
  """The steps of a segment, where their units are in a row as loops."""
  found: list[Any] = []
  for row, ks in groupby(range(len(steps)), lambda k: rows.get(steps[k].unit)):
    loops = row is not None
    here = [StatelessStep(steps[k], call, kept[k], loops, is_first=k == 0 and not loops) for k in ks]
    units = [StepSequence(list(unit)) for _, unit in groupby(here, lambda step: step.step.unit)]
    found += [Loop(units)] if loops else here
  return StepSequence(found)


def _rows(steps: Sequence[Step]) -> dict[int, str]:
  """Of units that can be undone, two or more alike in a row: what they are, by their numbers."""
  kinds = []
  for _, unit in groupby(steps, lambda step: step.unit):
    of_unit = list(unit)
    loops = all(step.invertible and isinstance(step, CouplingStep) for step in of_unit)
    kinds.append(str([likeness(step.layers) for step in of_unit]) if loops else None)
  rows: dict[int, str] = {}
  for kind, numbers in groupby(range(len(kinds)), kinds.__getitem__):
    if kind and len(units := list(numbers)) > 1:
      rows |= dict.fromkeys(units, kind)
  return rows


def run_rebuilding(
  steps: StepSequence, streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment that stores its outputs alone, and what steps keep."""
  weights, states = steps.values()
  boundary = Boundary((streams, Given(weights, call.context)))
  streams, given = boundary.given
  streams, masks, changed, residuals = steps.run(given, states, streams, masks)

  def backward(outputs: Streams, d_outputs: Streams, given: Given) -> tuple[Streams, Given]:
    streams = wait_for(d_outputs, outputs)  # Rule 1.
    _, d_streams, d_given = steps.undo(given, streams, d_outputs, residuals)
    return d_streams, d_given

  outputs = boundary.leave_without_storing(call.name, streams, given, backward)
  for variable, value in changed:
    variable.assign(value)
  return outputs, masks


def run_stored(
  steps: StepSequence, streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment that is backpropagated ordinarily."""
  weights, states = steps.values()
  streams, weights = released_together(streams, weights)  # Rule 5.
  streams, masks, changed, _ = steps.run(Given(weights, call.context), states, streams, masks)
  for variable, value in changed:
    variable.assign(value)
  return streams, masks
