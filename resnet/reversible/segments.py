"""How a chain is cut into segments, and how each is run: forward, with one backward pass.

Each function `run_...` takes streams and masks, gives those after the segment, and assigns the new values of
variables.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, chain, groupby, pairwise
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
  # The streams before a step that cannot be undone are kept in any case, so a segment may end there. The
  # gradients of its weights can then be used, and freed, when it is undone.
  ends = [a.invertible > b.invertible or (a.unit in cuts and a.unit < b.unit) for a, b in pairwise(steps)]
  piece = [*accumulate([0, *ends])]
  found = []
  for (run, _), ks in groupby(range(len(steps)), lambda k: (runs[k], piece[k])):
    numbers = list(ks)
    here: Any = [steps[k] for k in numbers]
    if run is not run_plainly:
      here = _sequence(here, call, [kept[k] or NOTHING for k in numbers], loops)
    found.append(Segment(run, here, steps[numbers[-1]].unit))
  return found


def _sequence(steps: Sequence[Step], call: Call, kept: Sequence[Keep], loops: bool) -> StepSequence:
  """The steps of a segment; with `loops`, two or more units alike in a row as a loop."""
  found: list[Any] = []
  units = [[*unit] for _, unit in groupby(zip(steps, kept, strict=True), lambda pair: pair[0].unit)]
  for kind, row in groupby(units, lambda unit: _kind([step for step, _ in unit]) if loops else None):
    alike = [*row]
    in_loop = kind is not None and len(alike) > 1
    here = [[StatelessStep(s, call, keep, s is steps[0] and not in_loop) for s, keep in unit] for unit in alike]
    found += [Loop([*map(StepSequence, here)])] if in_loop else chain(*here)
  return StepSequence(found)


def _kind(unit: Sequence[Step]) -> str | None:
  """The same for units that are alike; None for what can be in no loop."""
  can_loop = all(step.invertible and isinstance(step, CouplingStep) for step in unit)
  return str([likeness(step.layers) for step in unit]) if can_loop else None


def run_rebuilding(
  steps: StepSequence, streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment that stores its outputs alone, and what steps keep."""
  weights, states = steps.values()
  boundary = Boundary((streams, Given(weights, call.floats)))
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
  streams, masks, changed, _ = steps.run(Given(weights, call.floats), states, streams, masks)
  for variable, value in changed:
    variable.assign(value)
  return streams, masks
