"""Steps of a chain as functions of explicit values: forward, and back with and without gradients."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from resnet.recomputation.arguments import Call
from resnet.recomputation.custom_vjp import unlinked, watched
from resnet.recomputation.inspection import require_repeatable
from resnet.recomputation.masks import Mask
from resnet.recomputation.ordering import wait_for
from resnet.recomputation.stateless import ACTIVATIONS, STATISTICS, Saved, StatelessLayers, evaluating
from resnet.reversible.backward import NOTHING, Keep
from resnet.reversible.plain import Step, Streams, replaced


class Given(NamedTuple):
  """The values, beside the streams, that gradients are wanted for. Their gradients have the same structure.

  Attributes:
    weights: of a step's layers; of several steps an entry for each.
    context: the float tensors among the arguments of the call. A gradient is None if nothing depends on one.
  """

  weights: list
  context: list

  def of(self, step: int) -> "Given":
    """Those of one of several steps."""
    return Given(self.weights[step], self.context)


class Residuals(NamedTuple):
  """What the backward pass has of a step's forward run.

  Attributes:
    state: that the run saw.
    mask: Keras' mask of the stream that the function took.
    saved: what its layers saved; None if they are to compute it again.
    before: the streams that the step changed, as they were; None if they are to be rebuilt.
  """

  state: list[tf.Tensor]
  mask: Mask = None
  saved: Sequence[Saved] | None = None
  before: Streams | None = None


def sums(one: list[tf.Tensor | None], other: list[tf.Tensor | None]) -> list:
  """The sums of gradients, of which None is 0."""
  return [b if a is None else a if b is None else a + b for a, b in zip(one, other, strict=True)]


class StatelessStep:
  """A step as a function of given values.

  Args:
    step: the step.
    call: what the chain was called with.
    keep: what it keeps for its backward pass. The streams that it changes are kept in any case if it cannot be
      undone, and statistics unless they would round otherwise, on a grid.
    is_first: whether no step before it needs the streams as they were.

  Attributes:
    layers: those of the step.
  """

  def __init__(self, step: Step, call: Call, keep: Keep = NOTHING, is_first: bool = False):
    self.step, self._call, self._is_first = step, call, is_first
    self._keeps_streams = keep.streams or not step.invertible
    statistics = () if step.grid_bits is not None else (STATISTICS,)
    self._kinds = (*statistics, ACTIVATIONS) if keep.outputs else statistics
    self.layers = StatelessLayers(step.layers, step.name, self._kinds, call.surroundings)

  def values(self) -> tuple[list, list]:
    """(weights, state): the values that the variables have now."""
    return self.layers.weights(), self.layers.state()

  def sharing(self, state: list[tf.Tensor], latest: dict) -> list[tf.Tensor]:
    """The state as steps before left it; `latest` has (variable, its new value) by the variable's id.

    Raises:
      ValueError: they have assigned to a trained weight of this step.
    """
    for v in self.layers.trained:
      if id(v) in latest:
        raise ValueError(
          f"{self.step.name} shares {v.path!r}, a trained weight that is assigned to, with one before it; use "
          "backward=Store()"
        )
    return [latest.get(id(v), (v, value))[1] for v, value in zip(self.layers.untrained, state, strict=True)]

  def run(
    self, given: Given, state: list[tf.Tensor], streams: Streams, masks: list[Mask]
  ) -> tuple[Streams, list[Mask], list[tuple[Any, tf.Tensor]], Residuals]:
    """Forward: (the streams after the step, their masks, variables with their new values, residuals).

    Raises:
      ValueError: it cannot be repeated, see inspection.py.
    """

    def outputs(weights: list[tf.Tensor], others: tuple[Streams, list], state: list[tf.Tensor]) -> Streams:
      return self.run(Given(weights, others[1]), state, others[0], masks)[0]

    key = str((self.step.source, self._call.key, self._kinds, [mask is None for mask in masks]))
    others, owner = (streams, given.context), self.step.layers[-1]
    require_repeatable(self.step.name, outputs, given.weights, others, state, owner, key)
    step, mask = self.step, masks[self.step.source]
    with self.layers.evaluation(given.weights, state) as evaluation:
      parts, of_change = step.change(streams, mask, self._call, given.context)
      with evaluating(None):
        after = step.couple(streams, parts)
    before = unlinked([streams[k] for k in step.targets]) if self._keeps_streams else None
    residuals = Residuals(state, mask, evaluation.saved, before)
    return after, step.masks_after(masks, of_change), evaluation.updates, residuals

  def rebuild(self, given: Given, streams: Streams, residuals: Residuals) -> Streams:
    """The streams before the step, from those after it."""
    step, before = self.step, residuals.before
    if before is None:
      with self.layers.evaluation(given.weights, residuals.state, residuals.saved) as evaluation:
        parts, _ = step.change(streams, residuals.mask, self._call, given.context)
        with evaluation.changing_nothing():
          before = step.uncouple(streams, parts)
    return replaced(streams, step.targets, before)

  def undo(
    self, given: Given, streams: Streams, d_streams: Streams, residuals: Residuals
  ) -> tuple[Streams, Streams, Given]:
    """Backward: (the streams before the step, their gradients, those of `given`).

    The function runs again under a tape. Its output rebuilds the stream that it changed, unless that was kept;
    its gradient goes to the other one.
    """
    step, (saved, before) = self.step, wait_for(streams, (residuals.saved, residuals.before))  # Rule 4.
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      outputs, weights, context = watched(tape, (streams, *given))
      with self.layers.evaluation(weights, residuals.state, saved) as evaluation:
        parts, _ = step.change(outputs, residuals.mask, self._call, context)
        with tape.stop_recording(), evaluation.changing_nothing():
          before = before or step.uncouple(outputs, parts)
        before = watched(tape, before)
        inputs = replaced(outputs, step.targets, before)
        with evaluating(None):
          after = step.couple(inputs, parts)
    for k in step.targets:
      shape, expected = after[k].shape, streams[k].shape
      if not shape.is_compatible_with(expected):
        raise ValueError(f"{step.name}: what its inverse gives becomes {shape}, not {expected}")
    changed = [k for k, stream in enumerate(inputs) if after[k] is not stream]
    d_after = [d_streams[k] for k in changed]
    if not (self._keeps_streams or self._is_first):
      d_after = wait_for(before, d_after)  # Rule 3.
    with self.layers.scope(weights, residuals.state):
      d_before, *d_given = tape.gradient([after[k] for k in changed], (inputs, weights, context), d_after)
    # A stream that passes the step by has its gradient already, to which the function's is added.
    d_streams = sums([None if k in changed else d for k, d in enumerate(d_streams)], d_before)
    d_streams = [tf.zeros_like(x) if d is None else d for x, d in zip(inputs, d_streams, strict=True)]
    # Dense also for weights of which rows were taken.
    d_weights, d_context = ([d if d is None else tf.convert_to_tensor(d) for d in some] for some in d_given)
    d_weights = [tf.zeros_like(w) if d is None else d for w, d in zip(weights, d_weights, strict=True)]
    return inputs, d_streams, Given(d_weights, d_context)


class StepSequence:
  """Steps and loops (`Loop`, which has the methods of a step) that run one after the other."""

  def __init__(self, steps: Sequence[Any]):
    self.steps = steps

  def values(self) -> tuple[list, list]:
    """(weights, states): those of each step."""
    weights, states = zip(*(step.values() for step in self.steps), strict=True)
    return [*weights], [*states]

  def run(
    self, given: Given, states: list, streams: Streams, masks: list[Mask]
  ) -> tuple[Streams, list[Mask], list[tuple[Any, tf.Tensor]], list]:
    """Forward: ((y1, y2), their masks, variables with their new values, what `undo` needs)."""
    latest: dict[int, tuple[Any, tf.Tensor]] = {}
    residuals = []
    for k, step in enumerate(self.steps):
      state = step.sharing(states[k], latest)
      streams, masks, changed, residual = step.run(given.of(k), state, streams, masks)
      latest |= {id(v): (v, value) for v, value in changed}
      residuals.append(residual)
    return streams, masks, [*latest.values()], residuals

  def undo(
    self, given: Given, streams: Streams, d_streams: Streams, residuals: Sequence[Any]
  ) -> tuple[Streams, Streams, Given]:
    """Backward, from (y1, y2) and their gradients: ((x1, x2), their gradients, those of `given`)."""
    d = Given([], [None] * len(given.context))
    for k, step in reversed([*enumerate(self.steps)]):
      streams, d_streams, here = step.undo(given.of(k), streams, d_streams, residuals[k])
      d = Given([here.weights, *d.weights], sums(d.context, here.context))
      streams, d_streams = wait_for((d_streams, here.weights, d.context), (streams, d_streams))  # Rule 2.
    return streams, d_streams, d

  def rebuild(self, given: Given, streams: Streams, residuals: Sequence[Residuals]) -> Streams:
    """(x1, x2), from (y1, y2), as the backward pass does."""
    for k, step in reversed([*enumerate(self.steps)]):
      streams = step.rebuild(given.of(k), streams, residuals[k])
    return streams
