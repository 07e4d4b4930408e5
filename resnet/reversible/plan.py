"""What a chain keeps for its backward pass, and what memory that takes: from its own traced steps and shapes.

Each step may keep three things:

- streams: those that it changes, which then are not rebuilt. What of the function serves this alone, its last
  layer mostly, does not run again.
- outputs: what layers within offer by `keep_output`. These layers run again for their gradients alone.
- everything: as ordinary backpropagation does. Nothing runs again.

A step's undoing is traced with each of these choices. The trace says what is kept, the most memory that it
takes at a time, and how much is computed. Step by step, the choice that saves the most computation for a byte
is taken, later steps first, since what they keep is freed sooner, as long as the peak stays within the budget.

Literature: activation or checkpoint policies; rematerialisation (Chen et al. 2016, "Training Deep Nets with
Sublinear Memory Cost"; Jain et al. 2020, "Checkmate"). Not known here: in which order a device runs what is
free to run, and how its allocator divides memory.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from resnet.recomputation.arguments import Call
from resnet.recomputation.contexts import evaluates, setting
from resnet.recomputation.costs import Cost, bytes_of, cost_of, made_of
from resnet.recomputation.custom_vjp import Tensors
from resnet.recomputation.likeness import likeness
from resnet.recomputation.masks import Mask
from resnet.recomputation.private_apis import scratch_graph
from resnet.reversible.backward import EVERYTHING, NOTHING, Keep
from resnet.reversible.plain import Step, Streams
from resnet.reversible.step import Given, StatelessStep

# "auto" takes up to so many times the least memory: what is kept first saves the most time.
AUTO = 1.75
# A budget in bytes must hold so many times the estimate, which is no more exact.
MARGIN = 1.15


_STREAMS, _OUTPUTS, _BOTH = Keep(streams=True), Keep(outputs=True), Keep(streams=True, outputs=True)


class ActivationPlan(NamedTuple):
  """What each step of a chain keeps, and an estimate of what that takes.

  Attributes:
    bytes: the most memory that activations and their gradients take in the backward pass, for the batch that
      was planned for; for one example if that is unknown.
    least: the same if nothing is kept.
    kept: by each step.

  Example:
    >>> units = [(keras.layers.Dense(50, "tanh"), keras.layers.Dense(50, "tanh")) for _ in range(8)]
    >>> chain = ReversibleChain(units, backward=Rebuild("auto"))
    >>> plan = chain.plan([tf.TensorSpec([100, 50])] * 2)
    >>> plan.least < plan.bytes <= 1.75 * plan.least
    True
  """

  bytes: int
  least: int
  kept: tuple[Keep, ...]

  def __str__(self) -> str:
    """E.g. "of 54 steps 18 keep the streams that they change, 12 outputs within, 8 everything"."""
    streams, outputs, everything = (sum(kept) for kept in zip(*self.kept, strict=True))
    return (
      f"of {len(self.kept)} steps {streams} keep the streams that they change, {outputs} outputs within, "
      f"{everything} everything: about {self.bytes / 1e6:.0f} MB of activations (an estimate)"
    )


def make_plan(
  steps: Sequence[Step], call: Call, streams: Streams, masks: list[Mask], budget: str | float
) -> ActivationPlan:
  """The plan of a chain.

  Args:
    steps: of the chain.
    call: what it is called with.
    streams, masks: its inputs. Shapes and dtypes count, values do not.
    budget: "least", "auto", "all" or bytes, see `Rebuild`.
  """
  chooses = budget not in ("least", "all")
  costs, after = _costs(steps, call, streams, masks, chooses)
  least = _peak([NOTHING] * len(steps), costs, after)
  most = AUTO * least if isinstance(budget, str) else budget / MARGIN
  kept = [EVERYTHING if budget == "all" else NOTHING] * len(steps)
  choices = [[*cost] if chooses else [] for cost in costs]
  while upgrades := [
    (saved / more, k, choice)
    for k, cost in enumerate(costs)
    for choice in choices[k]
    if (more := cost[choice].kept - cost[kept[k]].kept) > 0
    and (saved := cost[kept[k]].operations - cost[choice].operations) > 0
  ]:
    _, k, choice = max(upgrades, key=lambda upgrade: upgrade[:2])
    before, kept[k] = kept[k], choice
    if _peak(kept, costs, after) > most:
      kept[k] = before
      choices[k].remove(choice)  # It is too much.
  for k in range(len(steps) - 1)[::-1]:  # What costs nothing to store does not part what is stored.
    if kept[k + 1] == EVERYTHING and costs[k][EVERYTHING].kept <= costs[k][kept[k]].kept:
      kept[k] = EVERYTHING
  return ActivationPlan(_peak(kept, costs, after), least, tuple(kept))


def _peak(kept: Sequence[Keep], costs: Sequence[dict[Keep, Cost]], after: Sequence[int]) -> int:
  """The most bytes at a time, from step to step backward.

  Where stored units follow others, the streams between them (`after`) are held until the others are undone.
  """
  before = peak = 0
  for k, keep in enumerate(kept):
    cost = costs[k][keep]
    peak = max(peak, before + cost.peak)
    before += cost.kept
    if not keep.everything and k + 1 < len(kept) and kept[k + 1].everything:
      before += after[k]
  return peak


def _costs(
  steps: Sequence[Step], call: Call, streams: Streams, masks: list[Mask], chooses: bool
) -> tuple[list[dict[Keep, Cost]], list[int]]:
  """Of each step its costs by what it keeps, and the bytes of the streams after it."""
  found: dict[str, tuple[dict[Keep, Cost], list[Any]]] = {}
  costs, after = [], []
  specs, masks = [*map(_spec, streams)], [*map(_spec, masks)]
  for k, step in enumerate(steps):
    order = slice(None, None, -1 if step.source else 1)  # F and G may be alike.
    key = str((type(step), likeness(step.layers), specs[:2][order], specs[2:], masks[order], k == 0))
    if key not in found:
      traced = functools.partial(_traced, step, call, specs, masks, k == 0)
      nothing, masks_after = traced(NOTHING)
      choices = {NOTHING: nothing, EVERYTHING: traced(EVERYTHING)[0]}
      outputs = traced(_OUTPUTS)[0] if chooses else nothing
      if outputs.kept > nothing.kept:  # Layers within offer some.
        choices |= {_OUTPUTS: outputs, _BOTH: traced(_BOTH)[0]}
      elif chooses:
        choices |= {_STREAMS: traced(_STREAMS)[0]}
      found[key] = choices, masks_after[order]
    cost, masks = found[key][0], found[key][1][order]
    costs.append(cost)
    shapes = step.shapes_after([tuple(spec.shape) for spec in specs[:2]])
    specs = [*(tf.TensorSpec(shape, specs[0].dtype) for shape in shapes), *specs[2:]]
    after.append(sum(map(bytes_of, specs)))
  return costs, after


def _traced(
  step: Step, call: Call, specs: list[tf.TensorSpec], masks: list[Any], is_first: bool, keep: Keep
) -> tuple[Cost, list[Any]]:
  """(what undoing the step costs if it keeps this, the masks after the step); masks are specs or None."""
  with setting(evaluates, True), scratch_graph() as graph:
    stateless = StatelessStep(step, call, keep, is_first=is_first)
    layers = stateless.layers
    streams, masks, state = _placeholders([specs, masks, layers.untrained])
    given = Given(*_placeholders([layers.trained, call.floats]))
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch((streams, given))
      after, masks, _, residuals = stateless.run(given, state, streams, masks)
    again, d_after = _placeholders([after, after])
    forward = len(graph.get_operations())
    before: Streams = []
    if keep.everything:
      d_before, d = tape.gradient(after, (streams, given), d_after)
    else:
      before, d_before, d = stateless.undo(given, again, d_after, residuals)
    free = made_of(graph, [*given.weights, *state], d.weights) | set(map(id, given.context))
    cost = cost_of(graph.get_operations()[forward:], (before, d_before, d), free, passing=(again, d_after))
    return cost, [*map(_spec, masks)]


def _spec(value: Any) -> Any:
  """Of a tensor or variable, if there is one; of one example if it is not known of how many."""
  if value is None:
    return None
  return tf.TensorSpec([1 if size is None else size for size in tf.TensorShape(value.shape)], value.dtype)


def _placeholders(like: Tensors) -> Any:
  def placeholder(spec: Any) -> Any:
    return None if spec is None else tf.compat.v1.placeholder(spec.dtype, spec.shape)

  return tf.nest.map_structure(placeholder, tf.nest.map_structure(_spec, like))
