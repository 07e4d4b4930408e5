"""One function's turn in a chain, forward and back, whatever the function and the coupling are."""

import dataclasses
from collections.abc import Collection, Sequence

import keras
import tensorflow as tf

from resnet.reversible.arguments import Call
from resnet.reversible.checks import function_name, require_shape
from resnet.reversible.coupling import Coupling
from resnet.reversible.custom_vjp import unlinked, watched
from resnet.reversible.gate import after
from resnet.reversible.masks import Mask, mask_of_sum
from resnet.reversible.plain import Streams, change_of, coupled
from resnet.reversible.stateless import ACTIVATIONS, Kept, StatelessLayers, gated, nothing_kept


@dataclasses.dataclass
class Record:
  """What the backward pass has of a turn's first run.

  Attributes:
    state: that the run saw.
    mask: Keras' mask of the stream that the function took.
    kept: what its layers kept.
    before: the stream that the turn changed, as it was; None if it is to be rebuilt.
  """

  state: list[tf.Tensor]
  mask: Mask = None
  kept: Kept = dataclasses.field(default_factory=Kept)
  before: tf.Tensor | None = None


class Turn:
  """Function k of the list F of unit 0, G of unit 0, F of unit 1, and so on: it changes stream k % 2.

  streams[k % 2] = couple(streams[k % 2], *parts(function(streams[1 - k % 2])))

  Args:
    k: which function.
    layer: the function.
    coupling: its coupling.
    call: what the chain was called with.
    grid_bits: if given, the function's output is rounded to multiples of 2 ** -grid_bits.
    keep: the kinds of tensors that the first run keeps, see replay.py.
    keeps_stream: whether it keeps the stream that it changes, too, which then needs no rebuilding. It does so
      in any case if the coupling has no inverse.
    rebuilds: whether the backward pass needs the stream that the turn changes, as it was before.
    overlaps: whether the second run of an F may overlap the gradients of the G after it.

  Attributes:
    weights, state, variables: of the layer and the coupling, see `StatelessLayers`.
    keeps_outputs: whether the first run keeps the outputs that layers offer.
    waits: whether the second run waits for the gradients of the turn after it.
  """

  def __init__(
    self,
    k: int,
    layer: keras.layers.Layer,
    coupling: Coupling,
    call: Call,
    grid_bits: int | None,
    keep: Collection[str],
    keeps_stream: bool,
    rebuilds: bool,
    overlaps: bool,
  ):
    self.name = function_name(k, layer)
    self._k, self._target, self._source = k, k % 2, 1 - k % 2
    self._layer, self._coupling, self._call, self._grid_bits = layer, coupling, call, grid_bits
    self.keeps_outputs = ACTIVATIONS in keep
    self._keeps_stream = keeps_stream or not coupling.invertible
    self._rebuilds = rebuilds and not self._keeps_stream
    self.waits = k % 2 == 1 or not overlaps or not coupling.invertible
    self._stateless = StatelessLayers([layer, coupling], self.name, keep)
    self.weights, self.state = self._stateless.weights, self._stateless.state
    self.variables = self._stateless.variables

  def run(
    self,
    streams: Streams,
    masks: list[Mask],
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    context: list[tf.Tensor],
  ) -> tuple[Streams, list[Mask], dict[int, tf.Tensor], Record]:
    """Forward: (the streams after the turn, their masks, new values of variables by index, a record)."""
    streams, masks = list(streams), list(masks)
    before, mask = streams[self._target], masks[self._source]
    of_change = None

    def call(target: tf.Tensor, source: tf.Tensor, context: list[tf.Tensor]) -> list[tf.Tensor]:
      nonlocal of_change
      parts, of_change = self._change(target, source, context, mask)
      shape = self._coupling.changed_shape(tuple(target.shape))
      for part in parts:
        require_shape(self.name, part.shape, shape)
      with nothing_kept():
        return coupled(self._coupling, target, parts, self._grid_bits, log_det=len(streams) > 2)

    key = (self._k, self._call.key, mask is None, len(streams))
    outputs, updates, kept = self._stateless.run(
      call, weights, state, before, streams[self._source], context, key=key
    )
    streams[self._target], *log_det = outputs
    streams[2:] = [total + here for total, here in zip(streams[2:], log_det, strict=True)]
    masks[self._target] = mask_of_sum([masks[self._target], of_change])
    return streams, masks, updates, Record(state, mask, kept, unlinked(before) if self._keeps_stream else None)

  def rebuild(
    self,
    streams: Streams,
    weights: list[tf.Tensor],
    record: Record,
    context: list[tf.Tensor],
    inverts: bool = False,
  ) -> Streams:
    """The streams before the turn, from those after it; with `inverts` by nothing but the inverse."""
    streams = list(streams)
    if record.before is None or inverts:
      parts = self._parts(streams, weights, record, context, None if inverts else record.kept)
      streams[self._target] = self._uncouple(streams, weights, record.state, parts)
    else:
      streams[self._target] = record.before
    return streams

  def undo(
    self,
    streams: Streams,
    d_streams: Streams,
    weights: list[tf.Tensor],
    record: Record,
    context: list[tf.Tensor],
  ) -> tuple[Streams, Streams, list[tf.Tensor], list[tf.Tensor | None]]:
    """Backward: (streams before the turn, gradients of these, of the weights, of context).

    The function runs again under a tape. Its output rebuilds the stream that it changed, unless that was kept;
    its gradient goes to the other one. One of context is None if the turn does not depend on the tensor.
    """
    streams, d_streams = list(streams), list(d_streams)
    source, before = streams[self._source], record.before
    kept = gated(record.kept, source)
    if before is not None:
      before = after(source, before)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      source, weights, context = given = watched(tape, (source, weights, context))
      streams[self._source] = source
      parts = self._parts(streams, weights, record, context, kept)
      if before is None:
        with tape.stop_recording():
          before = self._uncouple(streams, weights, record.state, parts)
      before = watched(tape, before)

      def couple(x: tf.Tensor, *parts: tf.Tensor) -> list[tf.Tensor]:
        return coupled(self._coupling, x, parts, self._grid_bits, log_det=len(streams) > 2)

      outputs, *_ = self._stateless.run(couple, weights, record.state, before, *parts)
    streams[self._target] = before
    d_outputs = [d_streams[self._target], *d_streams[2:]]
    if self._rebuilds:  # What the stream is rebuilt from is freed first.
      d_outputs = after(before, d_outputs)
    d_target, (d_source, d_weights, d_context) = tape.gradient(outputs, (before, given), d_outputs)
    d_streams[self._target] = d_target
    if d_source is not None:
      d_streams[self._source] += d_source
    d_weights = [
      tf.zeros_like(weight) if d is None else tf.convert_to_tensor(d) for weight, d in zip(weights, d_weights)
    ]
    return streams, d_streams, d_weights, [d if d is None else tf.convert_to_tensor(d) for d in d_context]

  def _change(
    self, target: tf.Tensor, source: tf.Tensor, context: list[tf.Tensor], mask: Mask
  ) -> tuple[Sequence[tf.Tensor], Mask]:
    arguments = self._call.arguments_of(self._layer, context)
    return change_of(self._k, self._layer, self._coupling, target, source, mask, arguments, self._grid_bits)

  def _parts(
    self,
    streams: Streams,
    weights: list[tf.Tensor],
    record: Record,
    context: list[tf.Tensor],
    kept: Kept | None,
  ) -> Sequence[tf.Tensor]:
    """The second run of the function: the parts for the coupling."""

    def call(source: tf.Tensor, context: list[tf.Tensor]) -> Sequence[tf.Tensor]:
      return self._change(streams[self._target], source, context, record.mask)[0]

    return self._stateless.run(call, weights, record.state, streams[self._source], context, kept=kept)[0]

  def _uncouple(
    self,
    streams: Streams,
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    parts: Sequence[tf.Tensor],
  ) -> tf.Tensor:
    uncouple, y = self._coupling.uncouple, streams[self._target]
    return self._stateless.run(uncouple, weights, state, y, *parts)[0]
