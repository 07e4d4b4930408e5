"""The passes of a chain, function by function: forward, and back with and without gradients."""

import tensorflow as tf

from resnet.reversible.gate import after
from resnet.reversible.masks import Mask
from resnet.reversible.plain import Streams
from resnet.reversible.turn import Record, Turn

# (k, i): the new value of variable i of turn k, see `StatelessLayers`.
Updates = dict[tuple[int, int], tf.Tensor]


def run(
  turns: list[Turn],
  streams: Streams,
  masks: list[Mask],
  weights: list[list[tf.Tensor]],
  states: list[list[tf.Tensor]],
  context: list[tf.Tensor],
) -> tuple[Streams, list[Mask], Updates, list[Record]]:
  """Forward: ((y1, y2), their masks, new values of changed states, what the backward pass needs).

  A layer that several turns share sees the state as the turn before left it.

  Raises:
    ValueError: turns share a trained weight that the first of them assigns to.
  """
  latest: dict[int, tf.Tensor] = {}  # by the id of the variable
  updates: Updates = {}
  records = []
  for k, turn in enumerate(turns):
    state = [latest.get(id(variable), value) for variable, value in zip(turn.variables, states[k])]
    for variable in turn.variables[len(state) :]:
      if id(variable) in latest:
        raise ValueError(
          f"{turn.name} shares {variable.path!r}, a trained weight that is assigned to, with a function "
          "before it; use manual_gradients=False"
        )
    streams, masks, changed, record = turn.run(streams, masks, weights[k], state, context)
    for i, value in changed.items():
      latest[id(turn.variables[i])] = updates[k, i] = value
    records.append(record)
  return streams, masks, updates, records


def undo(
  turns: list[Turn],
  streams: Streams,
  d_streams: Streams,
  weights: list[list[tf.Tensor]],
  records: list[Record],
  context: list[tf.Tensor],
) -> tuple[Streams, Streams, list[list[tf.Tensor]], list[tf.Tensor | None]]:
  """Backward, from (y1, y2) and their gradients.

  Returns:
    (x1, x2), and the gradients of (x1, x2), of the weights, and of context. Each of the last is the sum over
    the turns, or None if no turn depends on the tensor.
  """
  gated: list[list[tf.Tensor]] = []
  d_weights: list[list[tf.Tensor]] = []  # since the last gate
  d_context: list[tf.Tensor | None] = [None] * len(context)
  for k, turn in reversed(list(enumerate(turns))):
    streams, d_streams, d_weight, d_here = turn.undo(streams, d_streams, weights[k], records[k], context)
    d_weights.append(d_weight)
    d_context = sums(d_context, d_here)
    if k == 0 or turns[k - 1].waits:  # All that comes before waits until the gradients so far are done.
      done = (d_weights, [d for d in d_context if d is not None])
      streams, d_streams = after((d_streams, *done), (streams, d_streams))
      gated, d_weights = [*gated, *d_weights], []
  return streams, d_streams, gated[::-1], d_context


def sums(one: list[tf.Tensor | None], other: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
  """The sums of gradients, of which None is 0."""
  return [b if a is None else a if b is None else a + b for a, b in zip(one, other, strict=True)]


def rebuild(
  turns: list[Turn],
  streams: Streams,
  weights: list[list[tf.Tensor]],
  records: list[Record],
  context: list[tf.Tensor],
  inverts: bool = False,
) -> Streams:
  """(x1, x2), from (y1, y2): as the backward pass does, or with `inverts` by nothing but the inverse."""
  for k, turn in reversed(list(enumerate(turns))):
    streams = turn.rebuild(streams, weights[k], records[k], context, inverts)
  return streams
