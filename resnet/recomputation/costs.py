"""What a traced computation holds in memory, and how much it computes."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from resnet.recomputation.custom_vjp import Tensors

# What moving a byte between memory and processor costs, in multiplications. It ranks costs, no more.
MULTIPLICATIONS_OF_A_BYTE = 10
# Ops whose results are their inputs, and ops whose inputs are multiplied with each other.
_ALIASES = ("Identity", "StopGradient", "PreventGradient", "Reshape", "Squeeze", "ExpandDims", "XlaOpt")
_PRODUCTS = ("Conv", "Depthwise", "MatMul", "BatchMatMul", "Einsum")


class Cost(NamedTuple):
  """Bytes of inputs that are kept for the computation, bytes at its peak (these included), and operations."""

  kept: int
  peak: int
  operations: float


def made_of(graph: tf.Graph, weights: list[tf.Tensor], d_weights: list[tf.Tensor | None]) -> set[int]:
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


def cost_of(ops: Sequence[tf.Operation], results: Tensors, free: set[int], passing: Tensors) -> Cost:
  """The cost of running those of `ops` that the results depend on, in this order.

  Args:
    results: that must be there at the end, or None.
    free: ids of tensors whose size does not count.
    passing: inputs that are not kept for this; others are.
  """
  results = [_root(tensor) for tensor in tf.nest.flatten(results) if tensor is not None]
  ops, passing = _needed(results, ops), set(map(id, tf.nest.flatten(passing)))
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
  sizes = {key: 0 if key in free else _bytes_stored(tensor) for key, tensor in tensors.items()}
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
    moved = sum(map(bytes_of, op.inputs)) + sum(map(bytes_of, op.outputs))
    operations += MULTIPLICATIONS_OF_A_BYTE * moved + _multiplications(op)
  return Cost(kept, peak, operations)


def _bytes_stored(tensor: tf.Tensor) -> int:
  """Of a number that was cast compilers store the one or the other, so the mean is taken."""
  either = tensor.op.inputs if tensor.op.type == "Cast" else [tensor]
  return (bytes_of(tensor) + bytes_of(either[0])) // 2


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


def bytes_of(tensor: Any) -> int:
  return _size(tensor) * tensor.dtype.size


def _size(tensor: Any) -> int:
  """How many numbers it has, 0 if that is unknown."""
  return tensor.shape.num_elements() or 0
