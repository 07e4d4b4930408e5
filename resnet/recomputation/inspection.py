"""What a recomputation would not repeat, or whose gradient would be lost: refused before the first run.

A function is traced into a scratch graph, of its explicit arguments alone. There all that it does can be
seen, in eager mode as well.
"""

import contextlib
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf

from resnet.recomputation.contexts import evaluates, setting
from resnet.recomputation.custom_vjp import Tensors, boundaries
from resnet.recomputation.private_apis import functions_called, number_of_results, scratch_graph, variable_name

# By how the type of a stateful op begins: ops that draw from a generator with a state of its own; that change a
# variable; and those that do nothing of what would matter in a recomputation: they read, call functions (which
# are looked into), print, or speak to other devices.
_RANDOM = ("Random", "TruncatedNormal", "ParameterizedTruncatedNormal", "Multinomial", "Rng") + ("Stateful",)
_ASSIGNING = ("Assign", "Resource")
_HARMLESS = ("ReadVariableOp", "ResourceGather", "VarIsInitializedOp", "VariableShape", "LookupTable") + (
  ("StatefulPartitionedCall", "If", "While", "Case", "Print", "Assert", "CheckNumerics", "XlaSharding")
  + ("Collective", "Nccl", "CudnnRNN", "TensorArray", "HashTable", "_")
)
_WITHOUT_GRADIENT = ("StopGradient", "PreventGradient", "ZerosLike", "OnesLike")

_fine: WeakKeyDictionary[Any, set[Hashable]] = WeakKeyDictionary()


def require_repeatable(
  name: str, run: Callable, weights: Tensors, others: Tensors, state: Tensors, owner: Any, key: Hashable
) -> None:
  """Refuses a function that cannot be run twice, or whose gradient would be lost.

  In eager mode a function is looked at once for each signature. Inside of a function that is looked at, or has
  been, nothing is done.

  Args:
    name: of the function, for errors.
    run: a function of (weights, others, state). What it returns does not count.
    weights, others, state: float tensors. Gradients are wanted for the first two.
    owner, key: what was found for a key is remembered as long as the owner is there.

  Raises:
    ValueError: what was found, and what to do.
  """
  if evaluates.get():
    return
  given = (weights, others, state)
  if tf.executing_eagerly():
    key = (key, str(tf.nest.map_structure(lambda tensor: (tensor.dtype, tensor.shape), given)))
    if key in _fine.get(owner, ()):
      return
  with setting(evaluates, True), scratch_graph() as graph:
    placeholders = tf.nest.map_structure(lambda t: tf.compat.v1.placeholder(t.dtype, t.shape), given)
    with setting(boundaries, []) as found, _explained(name):
      run(*placeholders)
    ops = list(_all_ops(graph))
    weights, others, state = (tf.nest.flatten(tensors) for tensors in placeholders)
    _refuse_ops(name, ops)
    _refuse_outside(name, graph)
    for op in ops:
      if op.node_def.attr["_gradient_op_type"].s.startswith(b"CustomGradient"):
        number = number_of_results(op)  # What it computed, and from what, are inputs of its op.
        _refuse_hidden(name, op.inputs[:number], op.inputs[number:], weights)
    for results, arguments in found:
      _refuse_hidden(name, results, arguments, [*weights, *others])
  if tf.executing_eagerly():
    _fine.setdefault(owner, set()).add(key)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
  """Says in the engine's words why a function cannot be traced."""
  try:
    yield
  except (tf.errors.OperatorNotAllowedInGraphError, AttributeError, NotImplementedError) as error:
    raise ValueError(
      f"{name} cannot be traced: {error}. If it needs the values of tensors in Python (`if`, `for`, numpy()), "
      "use TensorFlow's operations, or put it into a tf.function"
    ) from error
  except ValueError as error:
    if "custom_gradient decorator" in str(error):  # TensorFlow's word for a layer from a keras.RematScope.
      raise ValueError(_hidden(name)) from error
    raise


def _hidden(name: str) -> str:
  return (
    f"{name} uses a weight or an input inside of a custom gradient (tf.custom_gradient, tf.recompute_grad, "
    "keras.remat, Recompute) that does not take it as an argument, so its gradient would be lost; hand it over "
    "as an argument there, or use resnet.reversible.Recompute(layer) with a layer that has the weight"
  )


def _all_ops(graph: tf.Graph) -> Iterator[tf.Operation]:
  """The ops of a graph and of the functions that it calls."""
  for op in graph.get_operations():
    yield op
    for function in functions_called(op):
      yield from _all_ops(function)


def _refuse_ops(name: str, ops: Collection[tf.Operation]) -> None:
  """Refuses stateful ops, but the harmless."""
  for op in ops:
    if not op.op_def.is_stateful or op.type.startswith(_HARMLESS):
      continue
    if op.type.startswith(_RANDOM):
      raise ValueError(
        f"{name} draws random numbers by TensorFlow's op {op.type}, which would draw others when run again in "
        "the backward pass; draw them by keras.random with a keras.random.SeedGenerator of the layer"
      )
    if op.type.startswith(_ASSIGNING):
      raise ValueError(
        f"{name} changes a variable by TensorFlow's op {op.type}, which would be done again in the backward "
        "pass; make it a weight of the layer (add_weight)"
      )
    raise ValueError(
      f"{name} uses TensorFlow's op {op.type}, which has a state of its own: it may do something else when run "
      "again in the backward pass; compute it outside, and hand it over as an argument of the call"
    )


def _refuse_outside(name: str, graph: tf.Graph) -> None:
  """Refuses variables and float tensors that are none of the arguments, but constants."""
  for outside, _ in graph.captures:
    while captured := _captured(outside):
      (outside,) = captured
    if outside.dtype == tf.resource:
      variable = variable_name(outside)
      if variable is not None:
        raise ValueError(
          f"{name} reads the variable {variable!r} otherwise than as one of its weights, and it may change "
          "before the backward pass reads it again; make it a weight (add_weight, or a layer that is an "
          "attribute), hand its value over as an argument of the call, or use backward=Store()"
        )
    elif _carries_gradients(outside) and tf.is_symbolic_tensor(outside) and outside.op.type != "Const":
      raise ValueError(
        f"{name} uses the tensor {outside.name!r}, computed outside of it, which no gradient would reach; hand "
        "it over as an argument of the call"
      )


def _refuse_hidden(
  name: str, results: Sequence[tf.Tensor], arguments: Sequence[tf.Tensor], sources: Sequence[tf.Tensor]
) -> None:
  """Refuses a custom gradient whose results depend on one of `sources` otherwise than by its arguments."""
  seen = {id(tensor) for tensor in arguments}
  sought = {id(tensor) for tensor in sources}
  todo = [tensor for tensor in results if id(tensor) not in seen]
  while todo:
    tensor = todo.pop()
    if id(tensor) in seen or not _carries_gradients(tensor) or not tf.is_symbolic_tensor(tensor):
      continue
    seen.add(id(tensor))
    if id(tensor) in sought:
      raise ValueError(_hidden(name))
    if tensor.op.type not in _WITHOUT_GRADIENT:
      todo += [*_captured(tensor), *tensor.op.inputs]


def _carries_gradients(tensor: tf.Tensor) -> bool:
  """Whether gradients may go through it: numbers that are not whole, or a list of them."""
  return tensor.dtype.is_floating or tensor.dtype.is_complex or tensor.dtype == tf.variant


def _captured(tensor: tf.Tensor) -> list[tf.Tensor]:
  """The tensor of an outer graph or of eager mode that `tensor` is a placeholder of, if it is one."""
  if not tf.is_symbolic_tensor(tensor) or tensor.op.type != "Placeholder":
    return []
  return [outer for outer, inner in getattr(tensor.graph, "captures", ()) if inner is tensor]
