"""One step of a chain as a function of explicit values: forward, and back with and without gradients."""

import copy
import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

import tensorflow as tf

from resnet.reversible.arguments import Call
from resnet.reversible.custom_vjp import unlinked, watched
from resnet.reversible.inspection import require_repeatable
from resnet.reversible.masks import Mask
from resnet.reversible.ordering import wait_for
from resnet.reversible.plain import Step, Streams
from resnet.reversible.stateless import Saved, StatelessLayers, evaluating

Context = list[tf.Tensor]  # the float tensors among the arguments of a call


class Gradients(NamedTuple):
  """Of the streams before a step or segment, of its weights, and of the float arguments of the call.

  One of the last is None if nothing depends on it.
  """

  streams: Streams
  weights: list
  context: list[tf.Tensor | None] | None


@dataclasses.dataclass
class Residuals:
  """What the backward pass has of a step's forward run. To `tf.nest` a structure of what rule 4 orders.

  Attributes:
    state: that the run saw.
    mask: Keras' mask of the stream that the function took.
    saved: what its layers saved.
    before: the streams that the step changed, as they were; None if they are to be rebuilt.
  """

  state: list[tf.Tensor]
  mask: Mask = None
  saved: list[Saved] = dataclasses.field(default_factory=list)
  before: Streams | None = None

  def __tf_flatten__(self) -> tuple[tuple, tuple]:
    return (self.state, self.mask), (self.saved, self.before)

  @classmethod
  def __tf_unflatten__(cls, metadata: tuple, components: tuple) -> "Residuals":
    return cls(*metadata, *components)


def sums(one: list[tf.Tensor | None] | None, other: list[tf.Tensor | None] | None) -> Any:
  """The sums of gradients, of which None is 0."""
  if one is None or other is None:
    return one or other
  return [b if a is None else a if b is None else a + b for a, b in zip(one, other, strict=True)]


class StatelessStep:
  """A step whose layers have given values: those that `given` was called with.

  Args:
    step: the step.
    call: what the chain was called with.
    keep: the kinds of tensors that layers may save for the recomputation, see stateless.py.
    keeps_streams: whether the streams that it changes are kept, too, and need no rebuilding. Those of a step
      that cannot be undone always are.
    is_first: whether no step before it needs the streams as they were.

  Attributes:
    layers: those of the step.
  """

  def __init__(
    self, step: Step, call: Call, keep: Collection[str], keeps_streams: bool, is_first: bool = False
  ):
    self.step, self._call, self._keep, self._is_first = step, call, keep, is_first
    self._keeps_streams = keeps_streams or not step.invertible
    self.layers = StatelessLayers(step.layers, step.name, keep, call.handed_on)
    self._weights: list[tf.Tensor] = []
    self._state: list[tf.Tensor] = []
    self._context: Context = []

  def given(self, weights: list[tf.Tensor], state: list[tf.Tensor], context: Context) -> "StatelessStep":
    """The same step with these values of the layers' weights and state, and of the call's float arguments."""
    same = copy.copy(self)
    same._weights, same._state, same._context = weights, state, context
    return same

  def sharing(self, latest: dict[int, tf.Tensor]) -> "StatelessStep":
    """The same step, whose state is what steps before left of it.

    Args:
      latest: new values of variables, by their ids.

    Raises:
      ValueError: they have assigned to a trained weight of this step.
    """
    for variable in self.layers.trained:
      if id(variable) in latest:
        raise ValueError(
          f"{self.step.name} shares {variable.path!r}, a trained weight that is assigned to, with a function "
          "before it; use backward=Store()"
        )
    state = [latest.get(id(v), value) for v, value in zip(self.layers.untrained, self._state, strict=True)]
    return self.given(self._weights, state, self._context)

  def inspect(self, streams: Streams, masks: list[Mask]) -> None:
    """Raises ValueError if `run` cannot be repeated, see inspection.py."""

    def outputs(weights: list[tf.Tensor], others: tuple[Streams, Context], state: list[tf.Tensor]) -> Streams:
      streams, context = others
      return self.given(weights, state, context).run(streams, masks)[0]

    key = str((self.step.source, self._call.key, self._keep, [mask is None for mask in masks]))
    others, owner = (streams, self._context), self.step.layers[-1]
    require_repeatable(self.step.name, outputs, self._weights, others, self._state, owner, key)

  def run(
    self, streams: Streams, masks: list[Mask]
  ) -> tuple[Streams, list[Mask], dict[int, tf.Tensor], Residuals]:
    """Forward: (the streams after the step, their masks, new values of variables by index, residuals)."""
    step, mask = self.step, masks[self.step.source]
    with self.layers.evaluation(self._weights, self._state) as evaluation:
      parts, of_change = step.change(streams, mask, self._call.arguments_of(step.layer, self._context))
      with evaluating(None):
        after = step.couple(streams, parts)
    before = unlinked([streams[k] for k in step.targets]) if self._keeps_streams else None
    residuals = Residuals(self._state, mask, evaluation.saved, before)
    return after, step.masks_after(masks, of_change), evaluation.updates, residuals

  def rebuild(self, streams: Streams, residuals: Residuals, inverts: bool = False) -> Streams:
    """The streams before the step, from those after it; with `inverts` by nothing but the inverse."""
    step = self.step
    if residuals.before is not None and not inverts:
      return self._with_targets(streams, residuals.before)
    with self.layers.evaluation(self._weights, residuals.state, None if inverts else residuals.saved):
      parts, _ = step.change(streams, residuals.mask, self._call.arguments_of(step.layer, self._context))
      return step.uncouple(streams, parts)

  def undo(self, streams: Streams, d_streams: Streams, residuals: Residuals) -> tuple[Streams, Gradients]:
    """Backward: (the streams before the step, gradients).

    The function runs again under a tape. Its output rebuilds the stream that it changed, unless that was kept;
    its gradient goes to the other one.
    """
    step, residuals = self.step, wait_for(streams, residuals)  # Rule 4.
    given_shapes = [stream.shape for stream in streams]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      streams, weights, context = watched(tape, (streams, self._weights, self._context))
      with self.layers.evaluation(weights, residuals.state, residuals.saved) as evaluation:
        parts, _ = step.change(streams, residuals.mask, self._call.arguments_of(step.layer, context))
        with tape.stop_recording(), evaluation.changing_nothing():
          before = residuals.before
          if before is None:
            rebuilt = step.uncouple(streams, parts)
            before = [rebuilt[k] for k in step.targets]
        streams = self._with_targets(streams, watched(tape, before))
        with evaluating(None):
          after = step.couple(streams, parts)
    for k in step.targets:
      if not after[k].shape.is_compatible_with(shape := given_shapes[k]):
        raise ValueError(f"{step.name}: what its inverse gives becomes {after[k].shape}, not {shape} as it was")
    changed = [k for k, stream in enumerate(streams) if after[k] is not stream]
    d_after = [d_streams[k] for k in changed]
    if not (self._keeps_streams or self._is_first):
      d_after = wait_for([streams[k] for k in step.targets], d_after)  # Rule 3.
    sources = (streams, weights, context)
    d_before, d_weights, d_context = tape.gradient([after[k] for k in changed], sources, d_after)
    # A stream that passes the step by has its gradient already, to which the function's is added.
    d_streams = sums([None if k in changed else d for k, d in enumerate(d_streams)], d_before)
    # Dense also for weights of which rows were taken.
    d_weights = [tf.zeros_like(w) if d is None else tf.convert_to_tensor(d) for w, d in zip(weights, d_weights)]
    return streams, Gradients(
      d_streams, d_weights, [d if d is None else tf.convert_to_tensor(d) for d in d_context]
    )

  def _with_targets(self, streams: Streams, targets: Streams) -> Streams:
    streams = list(streams)
    for k, stream in zip(self.step.targets, targets, strict=True):
      streams[k] = stream
    return streams
