"""One function's turn in a chain, forward and back, whatever the function and the coupling are."""

import dataclasses
import inspect
from collections.abc import Collection
from typing import Any

import keras
import tensorflow as tf

from resnet.reversible.coupling import Coupling
from resnet.reversible.gate import after
from resnet.reversible.grid import on_grid
from resnet.reversible.replay import EVERYTHING, Kept, StatelessLayers, gated

Streams = list[tf.Tensor]  # x1 and x2, and the sum of the couplings' log_det [N] so far where it is wanted


@dataclasses.dataclass
class Record:
  """What the backward pass has of a turn's first run.

  Attributes:
    state: that the run saw.
    kept: what its layers kept.
    before: the stream that the turn changed, as it was; None if it is to be rebuilt.
    taped: of a run that is not to be repeated: its tape, what it was a function of, what it gave.
  """

  state: list[tf.Tensor]
  kept: Kept = dataclasses.field(default_factory=Kept)
  before: tf.Tensor | None = None
  taped: tuple[tf.GradientTape, list[tf.Tensor], list[tf.Tensor]] | None = None


class Turn:
  """Function k of the list F of unit 0, G of unit 0, F of unit 1, and so on: it changes stream k % 2.

  streams[k % 2] = couple(streams[k % 2], *parts(function(streams[1 - k % 2])))

  Args:
    k: which function.
    layer: the function.
    coupling: its coupling.
    call: what the chain was called with.
    grid_bits: if given, the function's output is rounded to multiples of 2 ** -grid_bits.
    keep: the kinds of tensors that the first run keeps, see replay.py. With everything there is no second run.
    keeps_stream: whether it keeps the stream that it changes, too, which then needs no rebuilding. It does so
      in any case if the coupling has no inverse.
    rebuilds: whether the backward pass needs the stream that the turn changes, as it was before.
    overlaps: whether the second run of an F may overlap the gradients of the G after it.

  Attributes:
    weights, state, state_variables: of the layer and the coupling, see `StatelessLayers`.
    waits: whether the second run waits for the gradients of the turn after it.
  """

  def __init__(
    self,
    k: int,
    layer: keras.layers.Layer,
    coupling: Coupling,
    call: "Call",
    grid_bits: int | None,
    keep: Collection[str],
    keeps_stream: bool,
    rebuilds: bool,
    overlaps: bool,
  ):
    self.name = function_name(k, layer)
    self._target, self._source = k % 2, 1 - k % 2
    self._layer, self._coupling, self._call, self._grid_bits = layer, coupling, call, grid_bits
    self._keep = keep
    self._keeps_stream = keeps_stream or not coupling.invertible
    self._rebuilds = rebuilds and not self._keeps_stream
    self.waits = k % 2 == 1 or not overlaps or not coupling.invertible
    self._stateless = StatelessLayers([layer, coupling], self.name, keep)
    self.weights, self.state = self._stateless.weights, self._stateless.state
    self.state_variables = self._stateless.state_variables

  def run(
    self, streams: Streams, weights: list[tf.Tensor], state: list[tf.Tensor], context: list[tf.Tensor]
  ) -> tuple[Streams, dict[int, tf.Tensor], Record]:
    """Forward: (the streams after the turn, new values of changed state by index, what the turn keeps)."""
    streams = list(streams)
    inputs = [streams[self._target], streams[self._source], *weights, *context]
    record = Record(state)
    if EVERYTHING in self._keep:
      with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        parts, updates, _ = self._parts(streams, weights, state, context)
        outputs = self._couple(streams, weights, state, parts)
      record.taped = (tape, inputs, outputs)
    else:
      parts, updates, record.kept = self._parts(streams, weights, state, context)
      outputs = self._couple(streams, weights, state, parts)
    if self._keeps_stream:
      record.before = streams[self._target]
    streams[self._target], *log_det = outputs
    streams[2:] = [total + here for total, here in zip(streams[2:], log_det, strict=True)]
    return streams, updates, record

  def rebuild(self, streams: Streams, weights, record: Record, context, inverts: bool = False) -> Streams:
    """The streams before the turn, from those after it; with `inverts` by nothing but the inverse."""
    streams = list(streams)
    if record.before is None or inverts:
      parts, *_ = self._parts(streams, weights, record.state, context, None if inverts else record.kept)
      streams[self._target] = self._uncouple(streams, weights, record.state, parts)
    else:
      streams[self._target] = record.before
    return streams

  def undo(
    self,
    streams: Streams,
    d_streams: Streams,
    weights,
    record: Record,
    context,
    variables: list[tf.Variable],
  ) -> tuple[Streams, Streams, list[tf.Tensor], list[tf.Tensor | None]]:
    """Backward: (streams before the turn, gradients of these, of the weights, of context + variables).

    The function runs again under a tape, unless its first run was taped. Its output rebuilds the stream that it
    changed, unless that was kept; its gradient goes to the other one. A gradient of context + variables is None
    if the turn does not depend on the tensor.
    """
    streams, d_streams = list(streams), list(d_streams)
    tape, inputs, outputs = record.taped or self._run_again(streams, weights, record, context, variables)
    streams[self._target] = inputs[0]
    d_outputs = [d_streams[self._target], *d_streams[2:]]
    if self._rebuilds:  # What the stream is rebuilt from is freed first.
      d_outputs = after(streams[self._target], d_outputs)
    d_target, d_source, *others = tape.gradient(outputs, [*inputs, *variables], d_outputs)
    d_streams[self._target] = d_target
    if d_source is not None:
      d_streams[self._source] += d_source
    others = [d if d is None else tf.convert_to_tensor(d) for d in others]
    d_weights = [tf.zeros_like(weight) if d is None else d for weight, d in zip(weights, others)]
    return streams, d_streams, d_weights, others[len(weights) :]

  def _run_again(self, streams, weights, record, context, variables):
    """The second run: (its tape, what it is a function of, what it gives)."""
    source = streams[self._source]
    kept, before = gated(record.kept, source), record.before
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch((source, weights, context, variables))
      parts, *_ = self._parts(streams, weights, record.state, context, kept)
      with tape.stop_recording():
        if before is None:
          before = self._uncouple(streams, weights, record.state, parts)
        else:
          before = after(source, before)
      tape.watch(before)
      streams = list(streams)
      streams[self._target] = before
      outputs = self._couple(streams, weights, record.state, parts)
    return tape, [before, source, *weights, *context], outputs

  def _parts(self, streams, weights, state, context, kept=None):
    """(the function's output, as parts for the coupling; the state that it changes; what it keeps)."""
    target = streams[self._target]
    # In the second run the stream is the one after the turn.
    shape = target.shape if kept else self._coupling.changed_shape(tuple(target.shape))

    def call(source, arguments):
      change = self._layer(source, **arguments)
      parts = [on_grid(tf.cast(part, target.dtype), self._grid_bits) for part in self._coupling.parts(change)]
      for part in parts:
        require_shape(self.name, part.shape, shape)
      return parts

    arguments = self._call.arguments_of(self._layer, self._source, context)
    return self._stateless.run(call, weights, state, streams[self._source], arguments, kept=kept)

  def _couple(self, streams, weights, state, parts):
    """[the changed stream, and its log_det if wanted]."""

    def call(x, *parts):
      y = self._coupling.couple(x, *parts)
      if not self._coupling.invertible:
        y = on_grid(y, self._grid_bits)
      return [y, self._coupling.log_det(x, *parts)] if streams[2:] else [y]

    return self._stateless.run(call, weights, state, streams[self._target], *parts, kept=Kept())[0]

  def _uncouple(self, streams, weights, state, parts):
    uncouple, y = self._coupling.uncouple, streams[self._target]
    return self._stateless.run(uncouple, weights, state, y, *parts, kept=Kept())[0]


class Call:
  """What a layer was called with beside its inputs, to be handed on to the layers in it.

  Args:
    training: for all of them.
    mask: None, or a list of the inputs' masks, each of which may be None.
    arguments: by name; each goes to the layers whose `call` has an argument of the name.

  Attributes:
    context: the float tensors in `arguments`, for which gradients are wanted.
  """

  def __init__(self, training: bool, mask: Any, arguments: dict[str, Any]):
    self._training, self._mask, self._arguments = training, mask, arguments
    self.context = [leaf for leaf in tf.nest.flatten(arguments) if _is_float(leaf)]

  def arguments_of(self, layer: keras.layers.Layer, index: int, context: list[tf.Tensor]) -> dict[str, Any]:
    """The arguments of `layer`, which takes input `index`, with `context` in place of the float tensors."""
    floats = iter(context)
    arguments = tf.nest.map_structure(lambda leaf: next(floats) if _is_float(leaf) else leaf, self._arguments)
    names = call_arguments(layer)
    own = {name: value for name, value in arguments.items() if name in names}
    if self._mask is not None and self._mask[index] is not None and "mask" in names:
      own["mask"] = self._mask[index]
    return {"training": self._training, **own}

  def require_taken(self, name: str, taken: Collection[str]) -> None:
    """Raises ValueError for an argument that is not one of `taken`."""
    for argument in self._arguments:
      if argument not in taken:
        raise ValueError(
          f"{name} was called with {argument!r}, which no layer in it takes; they take "
          f"{', '.join(map(repr, sorted(taken))) or 'no arguments'}"
        )


def call_arguments(layer: keras.layers.Layer) -> set[str]:
  """The names of the arguments of a layer's `call`, without its inputs and `training`.

  A layer that hands arguments on, as a chain does, has an attribute `call_arguments` that says which.
  """
  if hasattr(layer, "call_arguments"):
    return layer.call_arguments
  _, *others = inspect.signature(layer.call).parameters.values()
  return {p.name for p in others if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"training"}


def function_name(k: int, layer: keras.layers.Layer) -> str:
  """What errors call function k of a chain: "G of unit 0 ('dense')"."""
  return f"{'FG'[k % 2]} of unit {k // 2} ({layer.name!r})"


def require_shape(name: str, shape: tf.TensorShape, stream: tf.TensorShape) -> None:
  """Raises ValueError if a function's output does not have the shape of `stream`, as far as both are known."""
  if not tf.TensorShape(shape).is_compatible_with(stream):
    raise ValueError(
      f"{name} gives shape {tuple(shape)} to a stream of shape {tuple(stream)}; F maps x2 to the shape of x1, "
      "G maps y1 to that of x2"
    )


def _is_float(leaf: Any) -> bool:
  return tf.is_tensor(leaf) and leaf.dtype.is_floating
