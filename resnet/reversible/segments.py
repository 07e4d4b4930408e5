"""Steps one after the other, forward and back, and the two ways to run a part of a chain that are made of them.

A segment is a part of a chain whose backward pass is one: `run_rebuilding`, `run_stored`, or `run_loop` of
loop.py. Each takes streams and masks, gives those after it, and assigns the new values of variables.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from resnet.reversible.arguments import Call
from resnet.reversible.custom_vjp import Boundary, Tensors
from resnet.reversible.masks import Mask
from resnet.reversible.ordering import released_together, wait_for
from resnet.reversible.plain import Streams
from resnet.reversible.step import Context, Residuals, StatelessStep

Values = list[list[tf.Tensor]]  # of each step: its weights, or its state
Updates = dict[tuple[int, int], tf.Tensor]  # (k, i): the new value of variable i of step k


def run_rebuilding(
  steps: list[StatelessStep], streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment that stores its outputs alone, and what steps keep."""
  weights, states = [step.weights() for step in steps], [step.state() for step in steps]
  boundary = Boundary((streams, weights, call.context))
  streams, weights, context = boundary.given
  outputs, masks, updates, residuals = forward(steps, streams, masks, weights, states, context)
  outputs = stored_less(call.name, boundary, outputs, undo, steps, residuals)
  assign(steps, updates)
  return outputs, masks


def stored_less(
  name: str,
  boundary: Boundary,
  outputs: Streams,
  undo: Callable,
  steps: list[StatelessStep],
  residuals: list[Residuals],
) -> Streams:
  """`outputs`, computed from the (streams, weights, context) of the boundary, whose gradients `undo` finds."""
  _, *held = boundary.given

  def backward(outputs: Streams, d_outputs: Streams, held: Tensors) -> Tensors:
    weights, context = held
    _, *gradients = undo(steps, wait_for(d_outputs, outputs), d_outputs, weights, residuals, context)  # Rule 1.
    return gradients

  return boundary.leave_without_storing(name, outputs, held, backward)


def run_stored(
  steps: list[StatelessStep], streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment that is backpropagated ordinarily."""
  streams, weights = released_together(streams, [step.weights() for step in steps])  # Rule 5.
  states = [step.state() for step in steps]
  streams, masks, updates, _ = forward(steps, streams, masks, weights, states, call.context)
  assign(steps, updates)
  return streams, masks


def forward(
  steps: Sequence[StatelessStep],
  streams: Streams,
  masks: list[Mask],
  weights: Values,
  states: Values,
  context: Context,
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
    state = [latest.get(id(variable), value) for variable, value in zip(step.variables, states[k])]
    for variable in step.variables[len(state) :]:
      if id(variable) in latest:
        raise ValueError(
          f"{step.name} shares {variable.path!r}, a trained weight that is assigned to, with a function "
          "before it; use backward=Store()"
        )
    step.inspect(streams, masks, weights[k], state, context)
    streams, masks, changed, residual = step.run(streams, masks, weights[k], state, context)
    for i, value in changed.items():
      latest[id(step.variables[i])] = updates[k, i] = value
    residuals.append(residual)
  return streams, masks, updates, residuals


def undo(
  steps: Sequence[StatelessStep],
  streams: Streams,
  d_streams: Streams,
  weights: Values,
  residuals: Sequence[Residuals],
  context: Context,
) -> tuple[Streams, Streams, Values, list[tf.Tensor | None]]:
  """Backward, from (y1, y2) and their gradients.

  Returns:
    (x1, x2), and the gradients of (x1, x2), of the weights, and of context. Each of the last is the sum over
    the steps, or None if no step depends on the tensor.
  """
  d_weights: Values = []
  d_context: list[tf.Tensor | None] = [None] * len(context)
  for step, weight, residual in reversed([*zip(steps, weights, residuals, strict=True)]):
    streams, d_streams, d_weight, d_here = step.undo(streams, d_streams, weight, residual, context)
    d_weights, d_context = [d_weight, *d_weights], sums(d_context, d_here)
    streams, d_streams = wait_for((d_streams, d_weight, d_context), (streams, d_streams))  # Rule 2.
  return streams, d_streams, d_weights, d_context


def sums(one: list[tf.Tensor | None], other: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
  """The sums of gradients, of which None is 0."""
  return [b if a is None else a if b is None else a + b for a, b in zip(one, other, strict=True)]


def rebuild(
  steps: Sequence[StatelessStep],
  streams: Streams,
  weights: Values,
  residuals: Sequence[Residuals],
  context: Context,
  inverts: bool = False,
) -> Streams:
  """(x1, x2), from (y1, y2): as the backward pass does, or with `inverts` by nothing but the inverse."""
  for step, weight, residual in reversed([*zip(steps, weights, residuals, strict=True)]):
    streams = step.rebuild(streams, weight, residual, context, inverts)
  return streams


def assign(steps: Sequence[StatelessStep], updates: Updates) -> None:
  """Gives the variables of the steps their new values."""
  for (k, i), value in sorted(updates.items()):
    steps[k].variables[i].assign(value)
