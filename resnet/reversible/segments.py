"""Steps one after the other, forward and back, and the two ways to run a part of a chain that are made of them.

A segment is a part of a chain whose backward pass is one: `run_rebuilding`, `run_stored`, or `run_loop` of
loop.py. Each takes streams and masks, gives those after it, and assigns the new values of variables.
"""

from collections.abc import Sequence

import tensorflow as tf

from resnet.reversible.arguments import Call
from resnet.reversible.custom_vjp import Boundary, Tensors
from resnet.reversible.masks import Mask
from resnet.reversible.ordering import released_together, wait_for
from resnet.reversible.plain import Streams
from resnet.reversible.step import Context, Gradients, Residuals, StatelessStep

Values = list[list[tf.Tensor]]  # of each step: its weights, or its state
Updates = dict[tuple[int, int], tf.Tensor]  # (k, i): the new value of variable i of step k


def run_rebuilding(
  steps: list[StatelessStep], streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment that stores its outputs alone, and what steps keep."""
  weights, states = values(steps)
  boundary = Boundary((streams, weights, call.context))
  streams, weights, context = boundary.given
  outputs, masks, updates, residuals = forward(given(steps, weights, states, context), streams, masks)

  def backward(outputs: Streams, d_outputs: Streams, held: Tensors) -> Gradients:
    weights, context = held
    outputs = wait_for(d_outputs, outputs)  # Rule 1.
    return undo(given(steps, weights, states, context), outputs, d_outputs, residuals)[1]

  outputs = boundary.leave_without_storing(call.name, outputs, (weights, context), backward)
  assign(steps, updates)
  return outputs, masks


def run_stored(
  steps: list[StatelessStep], streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment that is backpropagated ordinarily."""
  weights, states = values(steps)
  streams, weights = released_together(streams, weights)  # Rule 5.
  streams, masks, updates, _ = forward(given(steps, weights, states, call.context), streams, masks)
  assign(steps, updates)
  return streams, masks


def values(steps: Sequence[StatelessStep]) -> tuple[Values, Values]:
  """(weights, states) that the steps' variables have."""
  return [step.layers.weights() for step in steps], [step.layers.state() for step in steps]


def given(
  steps: Sequence[StatelessStep], weights: Values, states: Values, context: Context
) -> list[StatelessStep]:
  """The steps with these values."""
  return [step.given(w, s, context) for step, w, s in zip(steps, weights, states, strict=True)]


def forward(
  steps: Sequence[StatelessStep], streams: Streams, masks: list[Mask]
) -> tuple[Streams, list[Mask], Updates, list[Residuals]]:
  """((y1, y2), their masks, new values of changed variables, what the backward pass needs of each step).

  A layer that several steps share sees the state as the step before left it.

  Raises:
    ValueError: steps share a trained weight that the first of them assigns to.
  """
  latest: dict[int, tf.Tensor] = {}  # by the id of the variable
  updates: Updates = {}
  residuals = []
  for k, step in enumerate(steps):
    step = step.sharing(latest)
    step.inspect(streams, masks)
    streams, masks, changed, residual = step.run(streams, masks)
    for i, value in changed.items():
      latest[id(step.layers.variables[i])] = updates[k, i] = value
    residuals.append(residual)
  return streams, masks, updates, residuals


def undo(
  steps: Sequence[StatelessStep], streams: Streams, d_streams: Streams, residuals: Sequence[Residuals]
) -> tuple[Streams, Gradients]:
  """Backward, from (y1, y2) and their gradients: (x1, x2), and gradients."""
  d_weights: Values = []
  d_context: list[tf.Tensor | None] | None = None
  for step, residual in reversed([*zip(steps, residuals, strict=True)]):
    streams, (d_streams, d_weight, d_here) = step.undo(streams, d_streams, residual)
    d_weights, d_context = [d_weight, *d_weights], sums(d_context, d_here)
    streams, d_streams = wait_for((d_streams, d_weight, d_context), (streams, d_streams))  # Rule 2.
  return streams, Gradients(d_streams, d_weights, d_context or [])


def sums(one: list[tf.Tensor | None] | None, other: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
  """The sums of gradients, of which None is 0."""
  if one is None:
    return other
  return [b if a is None else a if b is None else a + b for a, b in zip(one, other, strict=True)]


def rebuild(
  steps: Sequence[StatelessStep], streams: Streams, residuals: Sequence[Residuals], inverts: bool = False
) -> Streams:
  """(x1, x2), from (y1, y2): as the backward pass does, or with `inverts` by nothing but the inverse."""
  for step, residual in reversed([*zip(steps, residuals, strict=True)]):
    streams = step.rebuild(streams, residual, inverts)
  return streams


def assign(steps: Sequence[StatelessStep], updates: Updates) -> None:
  """Gives the variables of the steps their new values."""
  for (k, i), value in sorted(updates.items()):
    steps[k].layers.variables[i].assign(value)
