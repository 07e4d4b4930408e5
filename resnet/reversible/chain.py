"""Backpropagation without storing activations (Gomez, Ren, Urtasun, Grosse 2017, section 3).

A reversible unit couples two streams by two functions of any kind, and can be undone:

    y1 = x1 + F(x2)          x2 = y2 - G(y1)
    y2 = x2 + G(y1)          x1 = y1 - F(x2)

`ReversibleChain` is a list of steps: F and G of each unit, and invertible layers between units. Each changes
streams, and can be undone given those that it does not change. Under one custom gradient only the last (y1, y2)
are stored. The backward pass undoes the steps from the last to the first. Each function is evaluated once more,
under a tape: its output rebuilds the stream that it changed; its gradient goes to the other stream and to its
weights. A stream whose change cannot be undone (`Shortcut`) is kept.

What makes this exact, and small:

- The recomputation of a function is the same pure function of the same explicit values: weights, state, stream,
  mask and arguments, see stateless.py. The state (moving statistics, seeds of dropout) is read once before the
  forward pass and written once, after it. What is no such value is refused, see inspection.py.
- The backward pass is ordered, see ordering.py: in a graph nothing else would keep all units from being rebuilt
  before the first gradient is taken, which would hold every activation after all.
- Streams are float32 at least, whatever F and G compute in: a sum rounded to bfloat16 cannot be undone.

Costs: one more forward pass of every function, less what is kept, see `Rebuild`.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import keras
import tensorflow as tf

from resnet.recomputation.arguments import Call, by_value, call_arguments, require_taken
from resnet.recomputation.building import build_by_call
from resnet.recomputation.contexts import stored
from resnet.recomputation.masks import Mask, with_mask
from resnet.recomputation.private_apis import (
  as_stored,
  keras_mask,
  scratch_graph,
  show_to_checkpoints,
  without_autocast,
)
from resnet.reversible.backward import EVERYTHING, NOTHING, Keep, Rebuild, Store
from resnet.reversible.checks import require_masks, require_pair, require_streams, require_units, stream_dtype
from resnet.reversible.coupling import Coupling, couplings_of
from resnet.reversible.invertible import Invertible
from resnet.reversible.plain import CouplingStep, InvertibleStep, Step, Streams, on_grid, passed_on, run_plainly
from resnet.reversible.plan import ActivationPlan, make_plan
from resnet.reversible.segments import Segment, segments
from resnet.reversible.step import Given, Residuals, StatelessStep, StepSequence

Unit = tuple[keras.layers.Layer, keras.layers.Layer] | Invertible
Inputs = Sequence[tf.Tensor]  # x1 and x2


@keras.saving.register_keras_serializable("resnet")
class ReversibleChain(keras.layers.Layer):
  """Reversible units run one after the other, backpropagated without storing their activations.

  Args:
    units: (F, G), Keras layers, and `Invertible` layers between them. F maps the shape of x2 to that of x1, G
      the shape of x1 to that of x2. Layers that are built already keep their variables' names; the others are
      built with the chain, in its scope.
    coupling: how functions change streams, see coupling.py: one coupling, or a tuple of two, for the Fs and for
      the Gs, of which each function gets a copy of its own; or a list of one for each function. By default
      `Additive()`.
    backward: how gradients are computed: `Rebuild()`, the default, or `Store()`; see backward.py.
    log_det: also return the logarithm of the determinant of the chain's Jacobian, for normalising flows.
    grid_bits: makes the chain exact. The inputs and the outputs of F and G are rounded to multiples of
      2 ** -grid_bits, so that the streams are such multiples, too. The backward pass then rebuilds streams to
      the last bit, at any depth and whatever dtype F and G compute in, on two conditions: streams stay below
      2 ** (24 - grid_bits) in float32, and the recomputation of F and G repeats the first run to the bit
      (deterministic kernels). `reconstruction_error` tells whether they hold. 14 suits activations of size 1.

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
    (y1, y2), of the shapes of (x1, x2) unless a step changes them, float32 at least; with log_det
    (y1, y2, `log|det dy/dx|`), the last [N].

  Limits: the recomputation of a function has its weights, its state, its stream and these arguments as they
  were. Whatever else a function would take from outside, or do beside returning its output, is refused.

  Raises:
    ValueError: an argument is none of these; shapes do not fit; or a function cannot be run twice, or a
      gradient or loss of it would be lost, see docs/reversible.md.
    NotImplementedError: gradients of `Rebuild` are differentiated in turn, or in forward mode.

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
    units: Sequence[Unit],
    coupling: Coupling | Sequence[Coupling] | None = None,
    backward: Store | Rebuild | None = None,
    log_det: bool = False,
    grid_bits: int | None = None,
    **kwargs: Any,
  ) -> None:
    super().__init__(autocast=False, **kwargs)
    self.dtype_policy = keras.DTypePolicy(self.variable_dtype)  # Variables are read as they are.
    self.supports_masking = True
    require_units(units, Invertible)
    self.units = [unit if isinstance(unit, Invertible) else tuple(unit) for unit in units]
    self.functions = [function for unit in units if isinstance(unit, list | tuple) for function in unit]
    self.couplings = couplings_of(coupling, len(self.functions))
    self.backward = Rebuild() if backward is None else backward
    if not isinstance(self.backward, Store | Rebuild):
      raise ValueError(f"backward must be Store() or Rebuild(...), got {backward!r}")
    invertible = [unit for unit in units if isinstance(unit, Invertible)]
    if grid_bits is not None:
      if not isinstance(grid_bits, int) or not 0 <= grid_bits < 24:
        raise ValueError(f"grid_bits must be in [0, 24), since float32 has 24 bits; got {grid_bits!r}")
      changes: list[Any] = [*self.couplings, *invertible]
      if got := [type(change).__name__ for change in changes if change.invertible and not change.exact]:
        raise ValueError(f"grid_bits needs couplings and layers that add, negate or move numbers, got {got[0]}")
    self.log_det, self.grid_bits = log_det, grid_bits
    show_to_checkpoints(self, function=self.functions, coupling=self.couplings, invertible=invertible)

  @property
  def call_arguments(self) -> set[str]:
    """The names of the keyword arguments that a call takes."""
    return {"mask"}.union(*map(call_arguments, self.functions))

  def _steps(self) -> list[Step]:
    """In the order of the forward pass."""
    steps: list[Step] = []
    couplings = iter(self.couplings)
    for number, unit in enumerate(self.units):
      if isinstance(unit, Invertible):
        steps.append(InvertibleStep(number, f"unit {number} ({unit.name!r})", unit, grid_bits=self.grid_bits))
        continue
      for source, letter, function in zip((1, 0), "FG", unit, strict=True):
        name = f"{letter} of unit {number} ({function.name!r})"
        steps.append(CouplingStep(number, name, function, next(couplings), source, self.grid_bits))
    return steps

  def build(self, input_shape: Any) -> None:
    shapes = require_pair(self.name, input_shape)
    for step in self._steps():
      step.build(shapes, self.variable_dtype)
      shapes = step.shapes_after(shapes)

  def call(
    self, inputs: Inputs, training: bool = False, mask: Any = None, **kwargs: Any
  ) -> tuple[tf.Tensor, ...]:
    streams, masks, call = self._prepare(inputs, training, mask, kwargs)
    for segment in self._segments(call, streams, masks):
      streams, masks = segment.run(segment.steps, streams, masks, call)
    return *map(with_mask, streams, masks), *streams[2:]

  @tf.autograph.experimental.do_not_convert
  def intermediates(
    self, inputs: Inputs, units: Iterable[int], training: bool = False, mask: Any = None, **kwargs: Any
  ) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """(x1, x2) after each of some units, such as the last ones of a network's stages.

    Args:
      units: their numbers, from 0, increasing. The backward pass stores the streams after them as well.
      inputs, training, mask, kwargs: as of a call.
    """
    units = list(units)
    if units != sorted(set(units)) or not set(units) <= set(range(len(self.units))):
      raise ValueError(f"units must be increasing numbers from 0 to {len(self.units) - 1}, got {units}")
    streams, masks, call = self._prepare(inputs, training, mask, kwargs)
    found = {}
    for segment in self._segments(call, streams, masks, cuts=units):
      if segment.unit <= max(units, default=-1):
        streams, masks = segment.run(segment.steps, streams, masks, call)
        found[segment.unit] = (with_mask(streams[0], masks[0]), with_mask(streams[1], masks[1]))
    return [found[unit] for unit in units]

  @tf.autograph.experimental.do_not_convert
  def adapt(self, inputs: Inputs, training: bool = False, mask: Any = None, **kwargs: Any) -> None:
    """Adapts each invertible layer that has `adapt`, such as `ActNorm`, to the streams that come to it.

    Takes the arguments of a call.
    """
    streams, masks, call = self._prepare(inputs, training, mask, kwargs)
    for step in self._steps():
      if isinstance(step, InvertibleStep) and hasattr(step.layer, "adapt"):
        step.layer.adapt(streams[:2])
      streams, masks = run_plainly([step], streams, masks, call)

  @tf.autograph.experimental.do_not_convert
  def inverse(
    self, outputs: Inputs, training: bool = False, mask: Any = None, **kwargs: Any
  ) -> tuple[tf.Tensor, ...]:
    """The inputs that give `outputs` (in an exact chain, these on the grid), rebuilt. Assigns nothing.

    Takes the arguments of the call that it undoes, mask among them: the masks of the inputs, for which those
    that `outputs` carry are taken if it is not given. What layers save is computed again. Functions that draw
    random numbers draw others than they did. A coupling that has no inverse is refused by a ValueError.
    """
    for coupling in self.couplings:
      if not coupling.invertible:
        raise ValueError(f"{self.name} has no inverse, since its {type(coupling).__name__} has none")
    streams, masks, call = self._prepare(outputs, training, mask, kwargs)
    steps = self._steps()
    sequence = StepSequence([StatelessStep(step, call) for step in steps])
    weights, states = sequence.values()
    residuals = [*map(Residuals, states, passed_on(steps, streams, masks)[0])]
    return tuple(sequence.rebuild(Given(weights, call.floats), streams[:2], residuals))

  def reconstruction_error(self, inputs: Inputs, **kwargs: Any) -> tf.Tensor:
    """The largest of `reconstruction_errors`, a scalar: how well the backward pass rebuilds streams."""
    return tf.reduce_max(self.reconstruction_errors(inputs, **kwargs))

  @tf.autograph.experimental.do_not_convert
  def reconstruction_errors(
    self, inputs: Inputs, training: bool = True, mask: Any = None, **kwargs: Any
  ) -> tf.Tensor:
    """The norm of the error of the rebuilt streams over that of the streams, [stretches].

    A stretch is a row of steps that can be undone. It begins at the inputs, or after a step that cannot be
    (`Shortcut`), whose streams are kept. Takes the arguments of a call. Runs forward, and back as the backward
    pass does; assigns nothing. The errors of an exact chain are 0 unless streams have left the grid's range or
    a function does not repeat itself.
    """
    streams, masks, call = self._prepare(inputs, training, mask, kwargs)
    errors = []
    for invertible, stretch in itertools.groupby(self._steps(), lambda step: step.invertible):
      sequence, before = StepSequence([StatelessStep(step, call) for step in stretch]), streams
      weights, states = sequence.values()
      given = Given(weights, call.floats)
      streams, masks, _, residuals = sequence.run(given, states, streams, masks)
      if invertible:
        rebuilt = sequence.rebuild(given, streams, residuals)
        error = tf.linalg.global_norm([y - x for x, y in zip(before[:2], rebuilt)])
        norm = tf.linalg.global_norm(before[:2])
        errors.append(error / tf.where(norm > 0, norm, tf.ones_like(norm)))
    return tf.stack(errors or [0.0])

  @tf.autograph.experimental.do_not_convert
  def plan(
    self, inputs: Sequence[tf.Tensor | tf.TensorSpec], training: bool = True, mask: Any = None, **kwargs: Any
  ) -> ActivationPlan:
    """What the chain keeps for its backward pass, and an estimate of the memory that its activations take.

    Args:
      inputs: (x1, x2), or a `tf.TensorSpec` of each.
      training, mask, kwargs: as of a call.
    """
    with scratch_graph():
      require_streams(self.name, inputs)
      streams = [tf.compat.v1.placeholder(x.dtype, x.shape) for x in inputs]
      streams, masks, call = self._prepare(streams, training, mask, kwargs)
      if not all(x.shape[1:].is_fully_defined() for x in streams):
        raise ValueError(f"{self.name}: a plan needs streams of known sizes, but for the batch; got {inputs!r}")
      return self._plan(call, streams, masks, self._keep(streams))

  def _plan(self, call: Call, streams: Streams, masks: list[Mask], keep: str | float) -> ActivationPlan:
    key = str((keep, call.key, [(x.dtype, x.shape) for x in streams], [mask is None for mask in masks]))
    plans = _plans.setdefault(self, {})
    if key not in plans:
      with as_stored():
        plans[key] = make_plan(self._steps(), call, streams, masks, keep)
    return plans[key]

  def _keep(self, streams: Streams) -> str | float:
    """As of `Rebuild`; for streams of unknown size "least". Amounts of memory ask for the batch, too."""
    keep = "least" if self.backward.loop else self.backward.keep
    known = all(x.shape[isinstance(keep, str) :].is_fully_defined() for x in streams[:2])
    return keep if known or keep == "all" else "least"

  def _prepare(
    self, streams: Sequence[tf.Tensor], training: bool, mask: Any, arguments: dict[str, Any]
  ) -> tuple[Streams, list[Mask], Call]:
    """(the streams as steps take them, their masks, the `Call`) of a call.

    Streams are widened and on the grid, and with them is the sum of log_det so far where it is wanted.
    """
    require_streams(self.name, streams)
    if not self.built:  # Only `__call__` builds by itself.
      self.build([tuple(stream.shape) for stream in streams])
    masks = [by_value(one) for one in require_masks(self.name, mask) or map(keras_mask, streams)]
    call = self._call(training, arguments)
    self._build_by_calls(streams, call)
    dtype = stream_dtype(streams, self.variable_dtype)
    streams = [on_grid(tf.cast(by_value(stream), dtype), self.grid_bits) for stream in streams]
    if self.log_det:
      streams.append(tf.zeros_like(streams[0][(slice(None), *[0] * (streams[0].shape.rank - 1))]))
    return streams, masks, call

  def _call(self, training: bool, arguments: dict[str, Any]) -> Call:
    with without_autocast():  # As in `__call__`, where not all methods come through.
      call = Call(f"ReversibleChain {self.name!r}", training, arguments)
    require_taken(call.name, arguments, self.call_arguments)
    return call

  def _build_by_calls(self, streams: Sequence[tf.Tensor], call: Call) -> None:
    """Builds the functions whose `build` takes shapes of arguments."""
    for step in self._steps():
      if not step.layer.built:
        build_by_call(step.layer, streams[step.source], call.arguments_of(step.layer, call.floats))

  def _segments(
    self, call: Call, streams: Streams, masks: list[Mask], cuts: Sequence[int] = ()
  ) -> list[Segment]:
    steps, keep = self._steps(), self._keep(streams)
    kept: Sequence[Keep | None]
    if isinstance(self.backward, Store) or stored.get():
      kept = [None] * len(steps)
    elif keep in ("least", "all"):
      kept = [NOTHING if keep == "least" else EVERYTHING] * len(steps)
    else:
      kept = self._plan(call, streams, masks, keep).kept
    return segments(steps, call, kept, self.backward.loop, cuts)

  def compute_output_spec(
    self, inputs: Sequence[Any], training: bool = False, mask: Any = None, **kwargs: Any
  ) -> tuple[keras.KerasTensor, ...]:
    require_streams(self.name, inputs)
    self._build_by_calls(inputs, self._call(training, kwargs))
    dtype = stream_dtype(inputs, self.variable_dtype)
    shapes = self.compute_output_shape([stream.shape for stream in inputs])
    return tuple(keras.KerasTensor(shape, dtype) for shape in shapes)

  def compute_output_shape(self, input_shape: Any) -> Any:
    shapes = list(input_shape)
    for step in self._steps():
      shapes = step.shapes_after(shapes)
    return (*shapes, (input_shape[0][0],)) if self.log_det else type(input_shape)(shapes)

  def compute_mask(self, inputs: Sequence[Any], previous_mask: Any) -> Any:
    if not all(isinstance(stream, keras.KerasTensor) for stream in inputs):
      return None  # `call` has attached them.
    _, masks = passed_on(self._steps(), inputs, previous_mask or [None, None])
    return [*masks, None] if self.log_det else masks

  def get_config(self) -> dict[str, Any]:
    return {
      **super().get_config(),
      "units": [keras.saving.serialize_keras_object(unit) for unit in self.units],
      "coupling": [keras.saving.serialize_keras_object(coupling) for coupling in self.couplings],
      "backward": keras.saving.serialize_keras_object(self.backward),
      "log_det": self.log_det,
      "grid_bits": self.grid_bits,
    }

  @classmethod
  def from_config(cls, config: dict[str, Any]) -> "ReversibleChain":
    fields = {k: v for k, v in config.items() if k in ("name", "trainable", "dtype", "log_det", "grid_bits")}
    # Models of version 0.1 have pairs in place of units, and name no coupling.
    units, coupling, backward = (
      keras.saving.deserialize_keras_object(config.get(name))
      for name in ("units" if "units" in config else "pairs", "coupling", "backward")
    )
    if "manual_gradients" in config:
      backward = Rebuild(loop=config["form"] == "while_loop") if config["manual_gradients"] else Store()
    return cls(units, coupling, backward, **fields)


_plans: WeakKeyDictionary[ReversibleChain, dict[str, ActivationPlan]] = WeakKeyDictionary()
