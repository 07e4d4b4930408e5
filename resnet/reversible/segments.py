"""Steps one after the other, forward and back, and how a segment of a chain is run that is made of them.

A segment has one backward pass. Each function `run_...` takes streams and masks, gives those after the
segment, and assigns the new values of variables. What is rebuilt consists of parts, `Unrolled` or a `Loop`, of
which only the outputs of the last are stored.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import tensorflow as tf

from resnet.reversible.arguments import Call
from resnet.reversible.custom_vjp import Boundary, Tensors
from resnet.reversible.masks import Mask
from resnet.reversible.ordering import released_together, wait_for
from resnet.reversible.plain import Streams
from resnet.reversible.step import Context, Gradients, Residuals, StatelessStep, sums

Values = list[list[tf.Tensor]]  # of each step: its weights, or its state
Updates = dict[tuple[int, int], tf.Tensor]  # (k, i): the new value of variable i of step k


class Part(Protocol):
  """Steps that run forward and back in one way. Those that `given` gives have these values."""

  def values(self) -> tuple[Values, Values]:
    """(weights, states) that the steps' variables have."""

  def given(self, weights: Values, states: Values, context: Context) -> "Part":
    """The same steps with these values."""

  def forward(self, streams: Streams, masks: list[Mask]) -> tuple[Streams, list[Mask], Any, Any]:
    """((y1, y2), their masks, new values of changed variables, what `undo` needs)."""

  def undo(self, streams: Streams, d_streams: Streams, residuals: Any) -> tuple[Streams, Gradients]:
    """Backward, from (y1, y2) and their gradients: (x1, x2), and gradients."""

  def new_values(self, updates: Any) -> list[tuple[Any, tf.Tensor]]:
    """(variable, its new value), a variable once for each time that it is to be assigned."""


def run_rebuilding(
  parts: Sequence[Part], streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment that stores its outputs alone, and what steps keep.

  Raises:
    ValueError: parts share a state that changes.
  """
  weights, states = map(list, zip(*(part.values() for part in parts), strict=True))
  boundary = Boundary((streams, weights, call.context))
  streams, weights, context = boundary.given
  assigned: list[tuple[Any, tf.Tensor]] = []
  residuals = []
  for part, weight, state in zip(parts, weights, states, strict=True):
    streams, masks, updates, residual = part.given(weight, state, context).forward(streams, masks)
    assigned += part.new_values(updates)
    residuals.append(residual)
  if len(parts) > 1 or not isinstance(parts[0], Unrolled):
    times = Counter(id(variable) for variable, _ in assigned)
    for variable, _ in assigned:
      if times[id(variable)] > 1:
        raise ValueError(
          f"loop=True needs functions whose states are their own, but several share {variable.path!r}, which "
          "changes; use loop=False"
        )

  def backward(outputs: Streams, d_outputs: Streams, held: Tensors) -> Gradients:
    weights, context = held
    streams, d = wait_for(d_outputs, outputs), Gradients(d_outputs, [], None)  # Rule 1.
    for part, weight, state, residual in reversed([*zip(parts, weights, states, residuals, strict=True)]):
      streams, here = part.given(weight, state, context).undo(streams, d.streams, residual)
      d = Gradients(here.streams, [here.weights, *d.weights], sums(d.context, here.context))
    return d

  outputs = boundary.leave_without_storing(call.name, streams, (weights, context), backward)
  for variable, value in assigned:
    variable.assign(value)
  return outputs, masks


def run_stored(
  parts: Sequence[Part], streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment, of one part, that is backpropagated ordinarily."""
  (part,) = parts
  weights, states = part.values()
  streams, weights = released_together(streams, weights)  # Rule 5.
  streams, masks, updates, _ = part.given(weights, states, call.context).forward(streams, masks)
  for variable, value in part.new_values(updates):
    variable.assign(value)
  return streams, masks


class Unrolled(Part):
  """Steps that run one after the other."""

  def __init__(self, steps: Sequence[StatelessStep]):
    self.steps = steps

  def values(self) -> tuple[Values, Values]:
    return [step.layers.weights() for step in self.steps], [step.layers.state() for step in self.steps]

  def given(self, weights: Values, states: Values, context: Context) -> "Unrolled":
    return Unrolled([s.given(w, v, context) for s, w, v in zip(self.steps, weights, states, strict=True)])

  def forward(
    self, streams: Streams, masks: list[Mask]
  ) -> tuple[Streams, list[Mask], Updates, list[Residuals]]:
    """See `Part`. A layer that several steps share sees the state as the step before left it.

    Raises:
      ValueError: steps share a trained weight that the first of them assigns to.
    """
    latest: dict[int, tf.Tensor] = {}  # by the id of the variable
    updates: Updates = {}
    residuals = []
    for k, step in enumerate(self.steps):
      step = step.sharing(latest)
      step.inspect(streams, masks)
      streams, masks, changed, residual = step.run(streams, masks)
      for i, value in changed.items():
        latest[id(step.layers.variables[i])] = updates[k, i] = value
      residuals.append(residual)
    return streams, masks, updates, residuals

  def undo(
    self, streams: Streams, d_streams: Streams, residuals: Sequence[Residuals]
  ) -> tuple[Streams, Gradients]:
    d_weights: Values = []
    d_context: list[tf.Tensor | None] | None = None
    for step, residual in reversed([*zip(self.steps, residuals, strict=True)]):
      streams, (d_streams, d_weight, d_here) = step.undo(streams, d_streams, residual)
      d_weights, d_context = [d_weight, *d_weights], sums(d_context, d_here)
      streams, d_streams = wait_for((d_streams, d_weight, d_context), (streams, d_streams))  # Rule 2.
    return streams, Gradients(d_streams, d_weights, d_context)

  def rebuild(self, streams: Streams, residuals: Sequence[Residuals], inverts: bool = False) -> Streams:
    """(x1, x2), from (y1, y2): as the backward pass does, or with `inverts` by nothing but the inverse."""
    for step, residual in reversed([*zip(self.steps, residuals, strict=True)]):
      streams = step.rebuild(streams, residual, inverts)
    return streams

  def new_values(self, updates: Updates) -> list[tuple[Any, tf.Tensor]]:
    latest = {id(self.steps[k].layers.variables[i]): (k, i) for k, i in sorted(updates)}
    return [(self.steps[k].layers.variables[i], updates[k, i]) for k, i in latest.values()]
