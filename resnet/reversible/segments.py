"""How a chain is cut into segments, and how each is run: forward, with one backward pass.

Each function `run_...` takes streams and masks, gives those after the segment, and assigns the new values of
variables. What is rebuilt or stored consists of groups of steps, `Unrolled` or a `Loop`. Of a segment that
is rebuilt only the outputs of its last group are stored, and what steps keep.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import tensorflow as tf

from resnet.recomputation.arguments import Call
from resnet.recomputation.custom_vjp import Boundary
from resnet.recomputation.likeness import likeness
from resnet.recomputation.masks import Mask
from resnet.recomputation.ordering import released_together, wait_for
from resnet.reversible.backward import NOTHING, Keep
from resnet.reversible.loop import Loop
from resnet.reversible.plain import CouplingStep, Step, Streams, run_plainly
from resnet.reversible.step import Given, StatelessStep, Unrolled, sums

Group = Unrolled | Loop


class Segment(NamedTuple):
  """Steps in a row whose backward pass is one.

  Attributes:
    run: (steps, streams, masks, call) -> (streams, masks).
    steps: for `run`.
    unit: the number of its last step's unit.
  """

  run: Callable
  steps: Sequence[Any]
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
  stretch = [*accumulate([0, *ends])]
  found = []
  for (run, _), ks in groupby(range(len(steps)), lambda k: (runs[k], stretch[k])):
    numbers = list(ks)
    here: Sequence[Any] = [steps[k] for k in numbers]
    if run is not run_plainly:
      here = _groups(here, call, [kept[k] or NOTHING for k in numbers], rows)
    found.append(Segment(run, here, steps[numbers[-1]].unit))
  return found


def _groups(steps: Sequence[Step], call: Call, kept: Sequence[Keep], rows: dict[int, str]) -> list[Group]:
  """Steps of a segment as loops, where their units are in a row, the others unrolled."""
  groups: list[Group] = []
  for row, ks in groupby(range(len(steps)), lambda k: rows.get(steps[k].unit)):
    loops = row is not None
    here = [StatelessStep(steps[k], call, kept[k], loops, is_first=k == 0 and not loops) for k in ks]
    units = [Unrolled(list(unit)) for _, unit in groupby(here, lambda step: step.step.unit)]
    groups.append(Loop(units) if loops else Unrolled(here))
  return groups


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
  groups: Sequence[Group], streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment that stores its outputs alone, and what steps keep.

  Raises:
    ValueError: groups share a state that changes.
  """
  weights, states = map(list, zip(*(group.values() for group in groups), strict=True))
  boundary = Boundary((streams, Given(weights, call.context)))
  streams, given = boundary.given
  assigned: list[tuple[Any, tf.Tensor]] = []
  residuals = []
  for k, group in enumerate(groups):
    streams, masks, updates, residual = group.forward(given.of(k), states[k], streams, masks)
    assigned += group.new_values(updates)
    residuals.append(residual)
  times = Counter(id(variable) for variable, _ in assigned)
  for v, _ in assigned:
    if times[id(v)] > 1:
      raise ValueError(
        f"loop=True needs functions whose states are their own, but several share {v.path!r}; use loop=False"
      )

  def backward(outputs: Streams, d_outputs: Streams, given: Given) -> tuple[Streams, Given]:
    streams, d_streams = wait_for(d_outputs, outputs), d_outputs  # Rule 1.
    d = Given([], [None] * len(given.context))
    for k, group in reversed([*enumerate(groups)]):
      streams, d_streams, here = group.undo(given.of(k), streams, d_streams, residuals[k])
      d = Given([here.weights, *d.weights], sums(d.context, here.context))
    return d_streams, d

  outputs = boundary.leave_without_storing(call.name, streams, given, backward)
  for variable, value in assigned:
    variable.assign(value)
  return outputs, masks


def run_stored(
  groups: Sequence[Group], streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment, of one group, that is backpropagated ordinarily."""
  (group,) = groups
  weights, states = group.values()
  streams, weights = released_together(streams, weights)  # Rule 5.
  streams, masks, updates, _ = group.forward(Given(weights, call.context), states, streams, masks)
  for variable, value in group.new_values(updates):
    variable.assign(value)
  return streams, masks
