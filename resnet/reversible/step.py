"""One step of a chain as a function of explicit values: forward, and back with and without gradients."""

import dataclasses
from collections.abc import Collection

import tensorflow as tf

from resnet.reversible.arguments import Call
from resnet.reversible.custom_vjp import unlinked, watched
from resnet.reversible.inspection import require_repeatable
from resnet.reversible.masks import Mask
from resnet.reversible.ordering import wait_for
from resnet.reversible.plain import Step, Streams
from resnet.reversible.stateless import Saved, StatelessLayers, evaluating

Context = list[tf.Tensor]  # the float tensors among the arguments of a call


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


class StatelessStep:
  """A step whose layers have given weights and states.

  Args:
    step: the step.
    call: what the chain was called with.
    keep: the kinds of tensors that layers may save for the recomputation, see stateless.py.
    keeps_streams: whether the streams that it changes are kept, too, and need no rebuilding. Those of a step that
      cannot be undone always are.
    is_first: whether no step before it needs the streams as they were.

  Attributes:
    weights, state, variables, untrained, trained: of the layers, see `StatelessLayers`.
  """

  def __init__(self, step: Step, call: Call, keep: Collection[str], keeps_streams: bool, is_first: bool):
    self.step, self.name = step, step.name
    self._call, self._keep, self._is_first = call, keep, is_first
    self._keeps_streams = keeps_streams or not step.invertible
    self._layers = StatelessLayers(step.layers, step.name, keep)
    self.weights, self.state, self.variables = self._layers.weights, self._layers.state, self._layers.variables
    self.untrained, self.trained = self._layers.untrained, self._layers.trained

  def inspect(
    self,
    streams: Streams,
    masks: list[Mask],
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    context: Context,
  ) -> None:
    """Raises ValueError if `run` with these values cannot be run twice, see inspection.py."""

    def outputs(weights: list[tf.Tensor], given: tuple[Streams, Context], state: list[tf.Tensor]) -> Streams:
      streams, context = given
      return self.run(streams, masks, weights, state, context)[0]

    key = (self.step.source, self._call.key, self._keep, [mask is None for mask in masks])
    owner = self.step.layers[-1]
    require_repeatable(self.name, outputs, weights, (streams, context), state, owner, str(key))

  def run(
    self,
    streams: Streams,
    masks: list[Mask],
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    context: Context,
  ) -> tuple[Streams, list[Mask], dict[int, tf.Tensor], Residuals]:
    """Forward: (the streams after the step, their masks, new values of variables by index, residuals)."""
    step, mask = self.step, masks[self.step.source]
    with self._layers.evaluation(weights, state) as evaluation:
      parts, of_change = step.change(streams, mask, self._call.arguments_of(step.layer, context))
      with evaluating(None):
        after = step.couple(streams, parts)
    before = unlinked([streams[k] for k in step.targets]) if self._keeps_streams else None
    residuals = Residuals(state, mask, evaluation.saved, before)
    return after, step.masks_after(masks, of_change), evaluation.updates, residuals

  def rebuild(
    self,
    streams: Streams,
    weights: list[tf.Tensor],
    residuals: Residuals,
    context: Context,
    inverts: bool = False,
  ) -> Streams:
    """The streams before the step, from those after it; with `inverts` by nothing but the inverse."""
    if residuals.before is not None and not inverts:
      return self._with_targets(streams, residuals.before)
    step = self.step
    with self._layers.evaluation(weights, residuals.state, None if inverts else residuals.saved):
      parts, _ = step.change(streams, residuals.mask, self._call.arguments_of(step.layer, context))
      return step.uncouple(streams, parts)

  def undo(
    self,
    streams: Streams,
    d_streams: Streams,
    weights: list[tf.Tensor],
    residuals: Residuals,
    context: Context,
  ) -> tuple[Streams, Streams, list[tf.Tensor], list[tf.Tensor | None]]:
    """Backward: (the streams before the step, gradients of these, of the weights, of context).

    The function runs again under a tape. Its output rebuilds the stream that it changed, unless that was kept;
    its gradient goes to the other one. One of context is None if the step does not depend on the tensor.
    """
    step, residuals = self.step, wait_for(streams, residuals)  # Rule 4.
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      streams, weights, context = watched(tape, (streams, weights, context))
      with self._layers.evaluation(weights, residuals.state, residuals.saved):
        parts, _ = step.change(streams, residuals.mask, self._call.arguments_of(step.layer, context))
        with tape.stop_recording():
          rebuilt = residuals.before
          if rebuilt is None:
            before = step.uncouple(streams, parts)
            rebuilt = [before[k] for k in step.targets]
        streams = self._with_targets(streams, watched(tape, rebuilt))
        with evaluating(None):
          after = step.couple(streams, parts)
    if not (self._keeps_streams or self._is_first):
      d_streams = wait_for([streams[k] for k in step.targets], d_streams)  # Rule 3.
    d_before, d_weights, d_context = tape.gradient(after, (streams, weights, context), d_streams)
    d_weights = [
      tf.zeros_like(weight) if d is None else tf.convert_to_tensor(d) for weight, d in zip(weights, d_weights)
    ]
    return streams, d_before, d_weights, [d if d is None else tf.convert_to_tensor(d) for d in d_context]

  def _with_targets(self, streams: Streams, targets: Streams) -> Streams:
    streams = list(streams)
    for k, stream in zip(self.step.targets, targets, strict=True):
      streams[k] = stream
    return streams
