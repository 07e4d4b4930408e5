"""What a second run would not repeat, found in the graph of the first."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from resnet.reversible.gate import Tensors
from resnet.reversible.private_apis import function_nodes

# Op types that draw from a generator with a state of its own, and those that change a variable.
_RANDOM = ("Random", "TruncatedNormal", "ParameterizedTruncatedNormal", "Multinomial", "Rng") + (
  "StatefulRandom",
  "StatefulStandardNormal",
  "StatefulUniform",
  "StatefulTruncatedNormal",
)
_ASSIGNING = ("Assign", "Resource")
_READING = ("ResourceGather", "ResourceGatherNd")


@contextlib.contextmanager
def require_repeatable(name: str, given: Tensors) -> Iterator[None]:
  """A context that refuses code which a second run would not repeat, or whose gradient would be lost.

  It looks at the graph. Eager mode has none: there such code is not refused, and gives wrong gradients.

  Args:
    name: of what runs, for errors.
    given: the tensors that the code is a function of.

  Raises:
    ValueError: random numbers that a second run would draw anew, a variable that is assigned to twice, or a
      float tensor from outside, which no gradient would reach.
  """
  if tf.executing_eagerly():
    yield
    return
  graph = tf.compat.v1.get_default_graph()
  before = len(graph.get_operations())
  with tf.name_scope("function") as scope:  # Of its own: other replicas' threads may add ops meanwhile.
    yield
  ops = [op for op in graph.get_operations()[before:] if op.name.startswith(scope)]
  for op in ops:
    for kind in _types(graph, op.node_def):
      if kind.startswith(_RANDOM):
        raise ValueError(
          f"{name} draws random numbers by TensorFlow's op {kind}, which would draw others when run again in "
          "the backward pass; draw them by keras.random with a keras.random.SeedGenerator of the layer"
        )
      if kind.startswith(_ASSIGNING) and kind not in _READING:
        raise ValueError(
          f"{name} changes a variable by TensorFlow's op {kind}, which would be done again in the backward "
          "pass; make it a weight of the layer (add_weight)"
        )
  if tf.distribute.get_replica_context().num_replicas_in_sync > 1:
    return  # Tensors that replicas hand to each other rightly come from outside.
  known = {id(tensor) for op in ops if op.type != "Placeholder" for tensor in op.outputs}
  known |= {id(tensor) for tensor in tf.nest.flatten(given)}
  for op in ops:
    for tensor in op.inputs:
      outside = tensor if id(tensor) in known else _captured(tensor)
      if id(outside) not in known and outside.dtype.is_floating and not _is_constant(outside):
        raise ValueError(
          f"{name} uses the tensor {outside.name!r}, computed outside of it, which no gradient would "
          "reach; hand it over as an argument of the call"
        )


def _types(graph: tf.Graph, node: Any) -> Iterator[str]:
  """The type of an op, and the types of the ops in functions that it calls."""
  yield node.op
  for value in node.attr.values():
    for function in (value.func, *value.list.func):
      if function.name:
        for inner in function_nodes(graph, function.name):
          yield from _types(graph, inner)


def _captured(tensor: tf.Tensor) -> tf.Tensor:
  """The tensor of an outer graph or of eager mode that `tensor` is a placeholder of; otherwise `tensor`."""
  while tf.is_symbolic_tensor(tensor) and tensor.op.type == "Placeholder":
    outside = [outer for outer, inner in getattr(tensor.graph, "captures", ()) if inner is tensor]
    if not outside:
      break
    (tensor,) = outside
  return tensor


def _is_constant(tensor: tf.Tensor) -> bool:
  return not tf.is_symbolic_tensor(tensor) or tensor.op.type == "Const"
