"""Backpropagation without storing activations (Gomez, Ren, Urtasun, Grosse 2017, section 3).

A reversible unit couples two streams by two functions of any kind, and can be undone:

    y1 = x1 + F(x2)          x2 = y2 - G(y1)
    y2 = x2 + G(y1)          x1 = y1 - F(x2)

`ReversibleChain` runs any number of such units under one custom gradient that keeps only the last (y1, y2). F
and G take turns, each changing one stream by a function of the other, so the chain is a list of functions, F1,
G1, F2, G2, ... The backward pass undoes their turns from the last to the first. Each function runs once more,
under a tape: its output rebuilds the stream that it changed; its gradient goes to the other stream and to its
weights. A stream whose change cannot be undone (`Shortcut`) is kept.

What makes this exact, and small:

- The second run of a function is the same pure function of the same explicit values: weights, state, stream,
  mask and arguments, see stateless.py. The state (moving statistics, seeds of dropout) is read once before the
  forward pass and written once, after it. What is no such value is refused, see inspection.py.
- The backward pass is gated, see gate.py: in a graph nothing else would keep all units from being rebuilt
  before the first gradient is taken, which would hold every activation after all. A function runs again when
  the gradients of the one after it are done.
- Streams are float32 at least, whatever F and G compute in: a sum rounded to bfloat16 cannot be undone.

Costs: one more forward pass of every function, less what its layers keep.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet.reversible.arguments import Call, by_value, call_arguments
from resnet.reversible.checks import (
  build_by_call,
  build_layer,
  function_name,
  refuse_streams,
  require_masks,
  require_pairs,
  require_parts,
  require_shape,
  require_streams,
  stream_dtype,
)
from resnet.reversible.coupling import Coupling, couplings_of
from resnet.reversible.gate import activations_are_stored
from resnet.reversible.grid import on_grid
from resnet.reversible.loop import count_before_loop
from resnet.reversible.masks import Mask, passed_on, with_mask
from resnet.reversible.plain import Streams, run_plainly
from resnet.reversible.private_apis import keras_mask, show_to_checkpoints
from resnet.reversible.rebuilding import run_rebuilding
from resnet.reversible.stateless import ACTIVATIONS, STATISTICS
from resnet.reversible.turn import Record, Turn
from resnet.reversible.unrolled import rebuild, run

FORMS = ("unrolled", "while_loop")


@keras.saving.register_keras_serializable("resnet")
class ReversibleChain(keras.layers.Layer):
  """Reversible units run one after the other, backpropagated without storing their activations.

  Args:
    pairs: the units' (F, G), Keras layers. F maps the shape of x2 to that of x1, G the shape of x1 to that of
      x2. Layers that are built already keep their variables' names; the others are built with the chain, in
      its scope.
    manual_gradients: False is plain Keras, see plain.py, which stores activations; outputs, gradients and
      updates are the same.
    form: of the manual gradients' graph. "unrolled" has ops for every unit. "while_loop" has the ops of one
      unit, in a `tf.while_loop` over the stacked weights of all units; the graph's size does not depend on
      depth. The units must then be alike but for the values of their variables; unit 0 may differ, which then
      comes before the loop. Batch normalisation that is synchronised over devices cannot be in a loop.
    coupling: how functions change streams, see coupling.py: one coupling, or a tuple of two, for the Fs and for
      the Gs, of which each function gets a copy of its own; or a list of one for each function, F and G of unit
      0 first. By default `Additive()`.
    log_det: also return the logarithm of the determinant of the chain's Jacobian, for normalising flows.
    grid_bits: makes the chain exact. The inputs and the outputs of F and G are rounded to multiples of
      2 ** -grid_bits, so that the streams are such multiples, too. The backward pass then rebuilds streams to
      the last bit, at any depth and whatever dtype F and G compute in, on two conditions: streams stay below
      2 ** (24 - grid_bits) in float32, and the second run of F and G repeats the first to the bit
      (deterministic kernels). `reconstruction_error` tells whether they hold. 14 suits activations of size 1.
    kept_streams, kept_outputs, stored_units: how many last units keep their streams, which then need not be
      rebuilt; keep the outputs that their layers offer (`keep_output`); store all activations, as ordinary
      backpropagation does, and do not run again. Less time for more memory, in the form "unrolled".
    overlap: whether within a unit the second run of F may overlap the gradients of G. This needs more memory,
      and less time where single operations are too small to keep the device busy.

  Call arguments:
    inputs: (x1, x2), the two streams, float; usually [N, H, W, C] each. Streams narrower than float32, or
      than the layer's variables, are widened.
    training: handed to F and G.
    mask: Keras' mask of each stream, by default the masks that the streams carry. Each function gets its stream
      with the mask that it carries, and outputs carry masks, as in plain Keras with `Add` layers.
    **kwargs: tensors, or structures of them (an attention mask, an embedding of time), for each F and G whose
      `call` has an argument of the name. Their gradients are summed over the units. Other values can be given
      in a call without such tensors.

  Returns:
    (y1, y2), of the shapes of (x1, x2) unless a coupling changes them, float32 at least; with log_det
    (y1, y2, `log|det dy/dx|`), the last [N].

  Limits: the second run of a function has its weights, its state, its stream and these arguments as they were.
  Whatever else a function would take from outside, or do beside returning its output, is refused.

  Raises:
    ValueError: an argument is none of these; shapes do not fit; units differ and the form is "while_loop"; or a
      function cannot be run twice, or a gradient or loss of it would be lost, see docs/reversible.md.
    NotImplementedError: manual gradients are differentiated in turn, or in forward mode.

  Source: Gomez et al. 2017, section 3.

  Example:
    >>> Dense = keras.layers.Dense
    >>> chain = ReversibleChain([(Dense(8, "tanh"), Dense(8, "tanh")) for _ in range(20)])
    >>> x1, x2 = np.ones([2, 3, 8])  # x1, x2: [3, 8]
    >>> y1, y2 = chain((x1, x2), training=True)
    >>> again1, again2 = chain.inverse((y1, y2), training=True)
    >>> np.allclose(again1, x1, atol=1e-4)
    True
  """

  def __init__(
    self,
    pairs: Sequence[tuple[keras.layers.Layer, keras.layers.Layer]],
    manual_gradients: bool = True,
    form: str = "unrolled",
    coupling: Coupling | Sequence[Coupling] | None = None,
    log_det: bool = False,
    grid_bits: int | None = None,
    kept_streams: int = 0,
    kept_outputs: int = 0,
    stored_units: int = 0,
    overlap: bool = False,
    **kwargs: Any,
  ) -> None:
    super().__init__(autocast=False, **kwargs)
    self.dtype_policy = keras.DTypePolicy(self.variable_dtype)  # Variables are read as they are.
    self.supports_masking = True
    require_pairs(pairs)
    if form not in FORMS:
      raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    self.couplings = couplings_of(coupling, 2 * len(pairs))
    if grid_bits is not None:
      if not isinstance(grid_bits, int) or not 0 <= grid_bits < 24:
        raise ValueError(f"grid_bits must be in [0, 24), since float32 has 24 bits; got {grid_bits!r}")
      for inexact in (one for one in self.couplings if one.invertible and not one.exact):
        raise ValueError(f"grid_bits needs a coupling that adds or negates alone, got {type(inexact).__name__}")
    kept = {"kept_streams": kept_streams, "kept_outputs": kept_outputs, "stored_units": stored_units}
    for name, units in kept.items():
      if not isinstance(units, int) or not 0 <= units <= len(pairs):
        raise ValueError(f"{name} must be in [0, {len(pairs)}], as there are units; got {units!r}")
      if units and form == "while_loop":
        raise ValueError(f"{name} must be 0 with form 'while_loop', which keeps nothing; got {units}")
    self.functions = [function for pair in pairs for function in pair]
    self.manual_gradients = manual_gradients
    self.form = form
    self._before_loop()  # Refuses units that are unlike.
    self.log_det = log_det
    self.grid_bits = grid_bits
    self.kept_streams = kept_streams
    self.kept_outputs = kept_outputs
    self.stored_units = stored_units
    self.overlap = overlap
    show_to_checkpoints(self, function=self.functions, coupling=self.couplings)

  @property
  def call_arguments(self) -> set[str]:
    """The names of the keyword arguments that a call takes."""
    return {"mask"}.union(*map(call_arguments, self.functions))

  def build(self, input_shape: Any) -> None:
    if len(input_shape) != 2 or not all(isinstance(shape, list | tuple) for shape in input_shape):
      refuse_streams(self.name, input_shape)
    shapes = list(input_shape)
    for k, (function, coupling) in enumerate(zip(self.functions, self.couplings, strict=True)):
      outputs = build_layer(function, shapes[1 - k % 2], self.variable_dtype)
      if not coupling.built:
        coupling.build(shapes[k % 2])
      shapes[k % 2] = coupling.changed_shape(shapes[k % 2])
      if outputs is not None:
        require_parts(function_name(k, function), coupling, parts := coupling(outputs))
        for part in parts:
          require_shape(function_name(k, function), part.shape, shapes[k % 2])

  def _build_by_calls(self, streams: Sequence[tf.Tensor], arguments: dict[str, Any]) -> None:
    """Builds the functions whose `build` takes shapes of arguments."""
    for k, function in enumerate(self.functions):
      if not function.built:
        taken = {name: value for name, value in arguments.items() if name in call_arguments(function)}
        build_by_call(function, streams[1 - k % 2], taken)

  def call(
    self, inputs: Sequence[tf.Tensor], training: bool = False, mask: Any = None, **kwargs: Any
  ) -> tuple[tf.Tensor, ...]:
    streams, masks, call = self._prepare(inputs, training, mask, kwargs)
    streams = self._rounded(streams)
    if self.log_det:
      streams.append(tf.zeros_like(streams[0][(slice(None), *[0] * (streams[0].shape.rank - 1))]))
    if not self.manual_gradients or activations_are_stored():
      arguments = [call.arguments_of(function, call.context) for function in self.functions]
      outputs, masks = run_plainly(self.functions, self.couplings, streams, masks, arguments, self.grid_bits)
    else:
      before_loop = self._before_loop()
      name, turns = f"ReversibleChain {self.name!r}", self._turns(call, before_loop)
      stored = 2 * self.stored_units
      outputs, masks = run_rebuilding(name, turns, streams, masks, call.context, before_loop, stored)
    return *map(with_mask, outputs, masks), *outputs[2:]

  def inverse(
    self, outputs: Sequence[tf.Tensor], training: bool = False, mask: Any = None, **kwargs: Any
  ) -> tuple[tf.Tensor, ...]:
    """The inputs that give `outputs`, rebuilt. Assigns nothing.

    Takes the arguments of the call that it undoes. What layers keep is computed again. Functions that draw
    random numbers draw others than they did. A coupling that has no inverse is refused by a ValueError.
    """
    for coupling in self.couplings:
      if not coupling.invertible:
        raise ValueError(f"{self.name} has no inverse, since its {type(coupling).__name__} has none")
    streams, masks, call = self._prepare(outputs, training, mask, kwargs)
    taken, _ = passed_on(self.functions, streams, masks)
    turns = self._turns(call, self._before_loop())
    weights = [turn.weights() for turn in turns]
    records = [Record(turn.state(), mask) for turn, mask in zip(turns, taken, strict=True)]
    return tuple(rebuild(turns, streams, weights, records, call.context, inverts=True))

  def reconstruction_error(
    self, inputs: Sequence[tf.Tensor], training: bool = True, mask: Any = None, **kwargs: Any
  ) -> tf.Tensor:
    """How well the backward pass rebuilds (x1, x2): the norm of the error over that of (x1, x2), a scalar.

    Takes the arguments of a call. Runs forward, and back as the backward pass does; assigns nothing. First
    functions whose couplings have no inverse are left out: (x1, x2) are then the streams after them. The error
    of an exact chain is 0 unless streams have left the grid's range or a function does not repeat itself.
    """
    streams, masks, call = self._prepare(inputs, training, mask, kwargs)
    streams, turns = self._rounded(streams), self._turns(call, self._before_loop())
    weights, states = [turn.weights() for turn in turns], [turn.state() for turn in turns]
    lost = sum(1 for _ in itertools.takewhile(lambda coupling: not coupling.invertible, self.couplings))
    streams, masks, *_ = run(turns[:lost], streams, masks, weights[:lost], states[:lost], call.context)
    turns, weights = turns[lost:], weights[lost:]
    outputs, _, _, records = run(turns, streams, masks, weights, states[lost:], call.context)
    rebuilt = rebuild(turns, outputs, weights, records, call.context)
    error = tf.linalg.global_norm([y - x for x, y in zip(streams, rebuilt, strict=True)])
    norm = tf.linalg.global_norm(streams)
    return error / tf.where(norm > 0, norm, tf.ones_like(norm))

  def _prepare(
    self, streams: Sequence[tf.Tensor], training: bool, mask: Any, arguments: dict[str, Any]
  ) -> tuple[Streams, list[Mask], Call]:
    """(the widened streams, their masks, the `Call`) of a call."""
    require_streams(self.name, streams)
    if not self.built:  # Only `__call__` builds by itself.
      self.build([tuple(stream.shape) for stream in streams])
    masks = [by_value(one) for one in require_masks(self.name, mask) or map(keras_mask, streams)]
    call = Call(training, arguments)
    call.require_taken(self.name, self.call_arguments)
    self._build_by_calls(streams, arguments)
    dtype = stream_dtype(streams, self.variable_dtype)
    return [tf.cast(by_value(stream), dtype) for stream in streams], masks, call

  def _turns(self, call: Call, before_loop: int) -> list[Turn]:
    loops = before_loop == 0  # Then F of unit 0 is in the loop.
    return [
      Turn(k, function, coupling, call, self.grid_bits, *self._keep(k // 2), k > 0 or loops, self.overlap)
      for k, (function, coupling) in enumerate(zip(self.functions, self.couplings, strict=True))
    ]

  def _before_loop(self) -> int:
    """The number of functions that come before the loop, all if there is none. Units may have become unlike."""
    loops = self.form == "while_loop"
    return count_before_loop(self.functions, self.couplings) if loops else len(self.functions)

  def _rounded(self, streams: Streams) -> Streams:
    return [on_grid(stream, self.grid_bits) for stream in streams]

  def _keep(self, unit: int) -> tuple[tuple[str, ...], bool]:
    """What the functions of a unit keep of their first run: the kinds of tensors; whether their streams."""
    if self.form == "while_loop":
      return (), False
    from_last = len(self.functions) // 2 - unit
    # On a grid no statistics: a second run by these may round otherwise.
    kinds: tuple[str, ...] = (STATISTICS,) if self.grid_bits is None else ()
    if from_last <= self.kept_outputs:
      kinds += (ACTIVATIONS,)
    return kinds, from_last <= self.kept_streams

  def compute_output_spec(
    self, inputs: Sequence[Any], training: bool = False, mask: Any = None, **kwargs: Any
  ) -> tuple[keras.KerasTensor, ...]:
    require_streams(self.name, inputs)
    Call(training, kwargs).require_taken(self.name, self.call_arguments)
    self._build_by_calls(inputs, kwargs)
    dtype = stream_dtype(inputs, self.variable_dtype).name
    shapes = self.compute_output_shape([stream.shape for stream in inputs])
    return tuple(keras.KerasTensor(shape, dtype) for shape in shapes)

  def compute_output_shape(self, input_shape: Any) -> Any:
    shapes = list(input_shape)
    for k, coupling in enumerate(self.couplings):
      shapes[k % 2] = coupling.changed_shape(shapes[k % 2])
    return (*shapes, (input_shape[0][0],)) if self.log_det else type(input_shape)(shapes)

  def compute_mask(self, inputs: Sequence[Any], previous_mask: Any) -> Any:
    if not all(isinstance(stream, keras.KerasTensor) for stream in inputs):
      return None  # `call` has attached them.
    _, masks = passed_on(self.functions, inputs, previous_mask or [None, None])
    return [*masks, None] if self.log_det else masks

  def get_config(self) -> dict[str, Any]:
    functions = [keras.saving.serialize_keras_object(function) for function in self.functions]
    return {
      **super().get_config(),
      "pairs": list(zip(functions[::2], functions[1::2])),
      "manual_gradients": self.manual_gradients,
      "form": self.form,
      "coupling": [keras.saving.serialize_keras_object(coupling) for coupling in self.couplings],
      "log_det": self.log_det,
      "grid_bits": self.grid_bits,
      "kept_streams": self.kept_streams,
      "kept_outputs": self.kept_outputs,
      "stored_units": self.stored_units,
      "overlap": self.overlap,
    }

  @classmethod
  def from_config(cls, config: dict[str, Any]) -> "ReversibleChain":
    pairs = [tuple(map(keras.saving.deserialize_keras_object, pair)) for pair in config.pop("pairs")]
    # Models of version 0.1 name no coupling.
    coupling = [keras.saving.deserialize_keras_object(one) for one in config.pop("coupling", ())] or None
    return cls(pairs, coupling=coupling, **config)
