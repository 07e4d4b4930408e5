"""The forward pass of a chain that stores no activations, and what its backward pass does instead."""

from collections.abc import Callable

import tensorflow as tf

from resnet.reversible.custom_vjp import Tensors, without_storing
from resnet.reversible.gate import after, released_together
from resnet.reversible.loop import run_loop, stack, undo_loop, unstack
from resnet.reversible.masks import Mask
from resnet.reversible.plain import Streams
from resnet.reversible.turn import Record, Turn
from resnet.reversible.unrolled import Updates, run, undo


def run_rebuilding(
  name: str,
  turns: list[Turn],
  streams: Streams,
  masks: list[Mask],
  context: list[tf.Tensor],
  before_loop: int,
  stored: int,
) -> tuple[Streams, list[Mask]]:
  """(y1, y2) and their masks. Assigns the new values of variables.

  Args:
    name: of the chain, for errors.
    context: the float tensors among the call's arguments.
    before_loop: how many functions come before the while_loop; all of them if there is none.
    stored: how many of the last functions are backpropagated ordinarily.
  """
  weights, states = [turn.weights() for turn in turns], [turn.state() for turn in turns]
  if before_loop < len(turns):
    weights, states = stack(weights, before_loop), stack(states, before_loop)
    streams, masks, updates = _rebuilt(
      name, run_loop, undo_loop, turns, streams, masks, weights, states, context
    )
    _assign(turns, unstack(turns, updates, before_loop))
    return streams, masks
  last = len(turns) - stored
  if last:
    streams, masks, updates = _rebuilt(
      name, run, undo, turns[:last], streams, masks, weights[:last], states[:last], context
    )
    _assign(turns, updates)
  if stored:
    streams, weights = released_together(streams, weights[last:])
    turns = turns[last:]
    states = [turn.state() for turn in turns]  # Those that they share with the first have moved.
    streams, masks, updates, _ = run(turns, streams, masks, weights, states, context)
    _assign(turns, updates)
  return streams, masks


def _rebuilt(
  name: str,
  run: Callable,
  undo: Callable,
  turns: list[Turn],
  streams: Streams,
  masks: list[Mask],
  weights: list[list[tf.Tensor]],
  states: list[list[tf.Tensor]],
  context: list[tf.Tensor],
) -> tuple[Streams, list[Mask], Updates]:
  """Forward by `run`, backward by `undo`: ((y1, y2), their masks, new values of changed variables)."""

  def forward(streams: Streams, held: Tensors) -> tuple[Streams, tuple[list[Mask], Updates], list[Record]]:
    weights, context = held
    outputs, masks_after, updates, records = run(turns, streams, masks, weights, states, context)
    if any(turn.keeps_outputs for turn in turns) and not any(record.kept.has_outputs for record in records):
      raise ValueError(
        f"{name} has kept_outputs, but no function in these units offers an output (`keep_output`); use "
        "stored_units, which stores what any layer needs"
      )
    return outputs, (masks_after, updates), records

  def backward(
    outputs: Streams, d_outputs: Streams, held: Tensors, records: list[Record]
  ) -> tuple[Streams, Tensors]:
    weights, context = held
    # Here, so that nothing is rebuilt before the gradients of the outputs are there.
    streams = after(d_outputs, outputs)
    _, d_streams, d_weights, d_context = undo(turns, streams, d_outputs, weights, records, context)
    return d_streams, (d_weights, d_context)

  outputs, others = without_storing(name, forward, backward, streams, (weights, context))
  return outputs, *others


def _assign(turns: list[Turn], updates: Updates) -> None:
  for (k, i), value in sorted(updates.items()):
    turns[k].variables[i].assign(value)
