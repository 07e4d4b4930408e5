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
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from resnet.reversible.arguments import Call
from resnet.reversible.inspection import inspected
from resnet.reversible.likeness import likeness
from resnet.reversible.masks import Mask
from resnet.reversible.plain import Step, Streams
from resnet.reversible.private_apis import scratch_graph
from resnet.reversible.stateless import ACTIVATIONS, STATISTICS
from resnet.reversible.step import Gradients, StatelessStep

# "auto" takes up to so many times the least memory: what is kept first saves the most time.
AUTO = 1.75
# A budget in bytes must hold so many times the estimate, which is no more exact.
MARGIN = 1.15
# What moving a byte between memory and processor costs, in multiplications. It ranks what is kept, no more.
MULTIPLICATIONS_OF_A_BYTE = 10
# Ops whose results are their inputs, and ops whose inputs are multiplied with each other.
_ALIASES = ("Identity", "StopGradient", "PreventGradient", "Reshape", "Squeeze", "ExpandDims", "XlaOpt")
_PRODUCTS = ("Conv", "Depthwise", "MatMul", "BatchMatMul", "Einsum")


class Keep(NamedTuple):
  """What a step keeps for the backward pass.

  Attributes:
    streams: the streams that it changes.
    outputs: those that layers within offer by `keep_output`.
    everything: all that ordinary backpropagation stores.

  Example:
    >>> chain = ReversibleChain([(keras.layers.Dense(4), keras.layers.Dense(4))], backward=Store())
    >>> chain.plan([tf.TensorSpec([3, 4])] * 2).kept == (Keep(everything=True),) * 2
    True
  """

  streams: bool = False
  outputs: bool = False
  everything: bool = False


NOTHING, EVERYTHING = Keep(), Keep(everything=True)
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


class _Cost(NamedTuple):
  """Of undoing a step: bytes kept for it, bytes at the peak (these included), and operations."""

  kept: int
  peak: int
  operations: float


def keep_kinds(keep: Keep, exact: bool, loops: bool = False) -> tuple[str, ...]:
  """The kinds of tensors that layers save, see stateless.py. On a grid no statistics, which round otherwise."""
  return (*(() if exact or loops else (STATISTICS,)), *((ACTIVATIONS,) if keep.outputs else ()))


def make_plan(
  steps: Sequence[Step], call: Call, streams: Streams, masks: list[Mask], budget: str | float, exact: bool
) -> ActivationPlan:
  """The plan of a chain.

  Args:
    steps: of the chain.
    call: what it is called with.
    streams, masks: its inputs. Shapes and dtypes count, values do not.
    budget: "least", "auto", "all" or bytes, see `Rebuild`.
    exact: whether streams are on a grid.
  """
  costs, after = _costs(steps, call, streams, masks, exact, chooses=budget not in ("least", "all"))
  kept = [NOTHING] * len(steps)
  least = _peak(kept, costs, after)
  if budget in ("least", "all"):
    kept = kept if budget == "least" else [EVERYTHING] * len(steps)
    return ActivationPlan(_peak(kept, costs, after), least, tuple(kept))
  most = AUTO * least if isinstance(budget, str) else budget / MARGIN
  too_much: set[tuple[int, Keep]] = set()
  while upgrades := [
    (saved / more, k, choice)
    for k, cost in enumerate(costs)
    for choice in cost
    if (k, choice) not in too_much
    and (more := cost[choice].kept - cost[kept[k]].kept) > 0
    and (saved := cost[kept[k]].operations - cost[choice].operations) > 0
  ]:
    _, k, choice = max(upgrades, key=lambda upgrade: upgrade[:2])
    before, kept[k] = kept[k], choice
    if _peak(kept, costs, after) > most:
      kept[k] = before
      too_much.add((k, choice))
  for k in range(len(steps) - 1)[::-1]:  # What costs nothing to store does not part what is stored.
    if kept[k + 1] == EVERYTHING and costs[k][EVERYTHING].kept <= costs[k][kept[k]].kept:
      kept[k] = EVERYTHING
  return ActivationPlan(_peak(kept, costs, after), least, tuple(kept))


def _peak(kept: Sequence[Keep], costs: Sequence[dict[Keep, _Cost]], after: Sequence[int]) -> int:
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
  steps: Sequence[Step], call: Call, streams: Streams, masks: list[Mask], exact: bool, chooses: bool
) -> tuple[list[dict[Keep, _Cost]], list[int]]:
  """Of each step its costs by what it keeps, and the bytes of the streams after it."""
  found: dict[str, tuple[dict[Keep, _Cost], list[Any]]] = {}
  costs, after = [], []
  specs = [_spec(stream) for stream in streams]
  masks = [None if mask is None else _spec(mask) for mask in masks]
  for k, step in enumerate(steps):
    order = slice(None, None, -1 if step.source else 1)  # F and G may be alike.
    key = str((type(step), likeness(step.layers), specs[:2][order], specs[2:], masks[order], k == 0))
    if key not in found:
      traced = functools.partial(_traced, step, call, specs, masks, exact, k == 0)
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
    after.append(sum(map(_bytes, specs)))
  return costs, after


def _traced(
  step: Step, call: Call, specs: list[tf.TensorSpec], masks: list[Any], exact: bool, is_first: bool, keep: Keep
) -> tuple[_Cost, list[Any]]:
  """(what undoing the step costs if it keeps this, the masks after the step); masks are specs or None."""
  with inspected(), scratch_graph() as graph:
    stateless = StatelessStep(step, call, keep_kinds(keep, exact), keep.streams, is_first)
    state, weights, context = (
      [_placeholder(_spec(value)) for value in values]
      for values in (stateless.layers.untrained, stateless.layers.trained, call.context)
    )
    streams = [_placeholder(spec) for spec in specs]
    masks = [None if mask is None else _placeholder(mask) for mask in masks]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(given := (streams, weights, context))
      after, masks, _, residuals = stateless.given(weights, state, context).run(streams, masks)
    again, d_after = ([_placeholder(_spec(stream)) for stream in after] for _ in range(2))
    forward = len(graph.get_operations())
    before: Streams = []
    if keep.everything:
      gradients = Gradients(*tape.gradient(after, given, d_after))
    else:
      before, gradients = stateless.given(weights, state, context).undo(again, d_after, residuals)
    results = [_root(t) for t in tf.nest.flatten((before, *gradients)) if t is not None]
    free = _of_weights(graph, [*weights, *state], gradients.weights) | {id(_root(t)) for t in context}
    ops = _needed(results, graph.get_operations()[forward:])
    cost = _cost(ops, results, free, passing={id(t) for t in (*again, *d_after)})
    return cost, [None if mask is None else _spec(mask) for mask in masks]


def _of_weights(graph: tf.Graph, weights: list[tf.Tensor], d_weights: list[tf.Tensor | None]) -> set[int]:
  """The ids of tensors that are no activations: what is made of weights alone, and weights' gradients."""
  found = {id(weight) for weight in weights}
  ops = graph.get_operations()
  for op in ops:
    if op.type != "Placeholder" and all(id(_root(tensor)) in found for tensor in op.inputs):
      found.update(map(id, op.outputs))
  found |= {id(_root(d)) for d in d_weights if d is not None}
  for op in reversed(ops):
    if op.type == "Cast" and id(op.outputs[0]) in found:
      found.add(id(_root(op.inputs[0])))
  return found


def _cost(ops: list[tf.Operation], results: list[tf.Tensor], free: set[int], passing: set[int]) -> _Cost:
  """The cost of running ops in this order.

  Args:
    results: that must be there at the end.
    free: ids of tensors whose size does not count.
    passing: ids of inputs that come from the step after; other inputs are kept for this one.
  """
  made = {id(output) for op in ops for output in op.outputs}
  tensors: dict[int, tf.Tensor] = {}
  last_use = dict.fromkeys(map(id, results), len(ops))
  for k, op in enumerate(ops):
    for tensor in (*map(_root, op.inputs), *op.outputs):
      tensors[id(tensor)] = tensor
      last_use[id(tensor)] = max(k, last_use.get(id(tensor), 0))
  tensors |= {id(tensor): tensor for tensor in results}
  # Compilers cast where a number is used.
  free = free | {id(op.outputs[0]) for op in ops if op.type == "Cast"}
  sizes = {key: 0 if key in free else _bytes(tensor) for key, tensor in tensors.items()}
  inputs = [key for key in sizes if key not in made]
  kept = sum(sizes[key] for key in inputs if key not in passing)
  alive = peak = sum(sizes[key] for key in inputs)
  operations = 0.0
  for k, op in enumerate(ops):
    if op.type.startswith(_ALIASES):
      continue
    read = {id(_root(tensor)) for tensor in op.inputs}
    freed = sum(sizes[key] for key in read if last_use[key] == k)
    written = sum(sizes[id(output)] for output in op.outputs)
    peak = max(peak, alive + written)
    alive += written - freed - sum(sizes[id(output)] for output in op.outputs if last_use[id(output)] == k)
    moved = sum(map(_bytes, op.inputs)) + sum(map(_bytes, op.outputs))
    operations += MULTIPLICATIONS_OF_A_BYTE * moved + _multiplications(op)
  return _Cost(kept, peak, operations)


def _multiplications(op: tf.Operation) -> float:
  """Of a product, exact for convolutions and for two matrices."""
  if not op.type.startswith(_PRODUCTS):
    return 0
  if "Conv" in op.type:  # Each number of the kernel is used at each pixel of the output.
    kernel = op.outputs[0] if "BackpropFilter" in op.type else op.inputs[1]
    y = op.inputs[2] if "Backprop" in op.type else op.outputs[0]
    return _size(kernel) * _size(y) / (y.shape[-1] or 1)
  return math.sqrt(math.prod(_size(t) for t in (*op.inputs, *op.outputs) if t.dtype.is_floating))


def _needed(results: Iterable[tf.Tensor], ops: Sequence[tf.Operation]) -> list[tf.Operation]:
  """Those of `ops` that the results depend on."""
  among, needed = set(ops), set()
  todo = [tensor.op for tensor in results]
  while todo:
    op = todo.pop()
    if op in among and op not in needed:
      needed.add(op)
      todo += [tensor.op for tensor in op.inputs]
  return [op for op in ops if op in needed]


def _root(tensor: tf.Tensor) -> tf.Tensor:
  """The tensor whose memory this one is."""
  while tensor.op.type.startswith(_ALIASES) and tensor.op.inputs:
    tensor = tensor.op.inputs[min(tensor.value_index, len(tensor.op.inputs) - 1)]
  return tensor


def _spec(value: Any) -> tf.TensorSpec:
  """Of a tensor or variable; of one example if it is not known of how many."""
  shape = [1 if size is None else size for size in tf.TensorShape(value.shape)]
  return tf.TensorSpec(shape, value.dtype)


def _placeholder(spec: tf.TensorSpec) -> tf.Tensor:
  return tf.compat.v1.placeholder(spec.dtype, spec.shape)


def _bytes(tensor: Any) -> int:
  return _size(tensor) * tensor.dtype.size


def _size(tensor: Any) -> int:
  """How many numbers it has, 0 if that is unknown."""
  return tensor.shape.num_elements() or 0
