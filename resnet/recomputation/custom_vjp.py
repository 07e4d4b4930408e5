"""Functions with gradients of their own: what `tf.custom_gradient` does, and what it does not.

- What belongs to a graph goes when the graph goes. TensorFlow's registry would keep it, with all variables.
- Each position of the inputs has its own gradient, also where one tensor stands in several.
- Nothing but the inputs has a gradient; what else a function may depend on is refused by inspection.py.
"""

import itertools
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import tensorflow as tf

from resnet.recomputation.private_apis import (
  forget_gradient,
  has_tangents,
  is_watched,
  record_operation,
  stop_recording,
)

Tensors = Any  # a tensor, or lists, tuples and dicts of them

_numbers = itertools.count()
_ORDINARY = "use backward=Store() (in place of a Recompute: its layer) where they are needed"

# If set, a list of what `mark_boundary` is called with.
boundaries: ContextVar[list | None] = ContextVar("boundaries", default=None)


class Boundary:
  """What is computed from `given` and handed to `leave` has a gradient of its own: a vector-Jacobian product.

  Args:
    inputs: float tensors.

  Attributes:
    given: the inputs to compute with. No tape of eager mode sees what is computed from them.
  """

  def __init__(self, inputs: Tensors):
    self._flat = [local(tensor) for tensor in tf.nest.flatten(inputs)]
    self._inner = (
      [*map(tf.stop_gradient, self._flat)] if tf.executing_eagerly() else own_in_boundaries(self._flat)
    )
    self.given = tf.nest.pack_sequence_as(inputs, self._inner)

  def leave(self, outputs: Tensors, pullback: Callable) -> Tensors:
    """`outputs`, with `pullback` as their gradient.

    Args:
      outputs: float tensors.
      pullback: gradients of the outputs -> those of the inputs, in the inputs' structure, None where there is
        none.
    """
    results = tf.nest.flatten(outputs)
    mark_boundary(results, self._inner)

    def gradients(*d_results: tf.Tensor) -> list[tf.Tensor | None]:
      d_inputs = tf.nest.flatten(pullback(tf.nest.pack_sequence_as(outputs, d_results)))
      assert len(d_inputs) == len(self._flat)
      return d_inputs

    if tf.executing_eagerly():
      results = [*map(tf.identity, results)]
    else:
      results = _in_graph(results, self._flat, gradients)
    record_operation("custom_vjp", results, self._flat, gradients)
    return tf.nest.pack_sequence_as(outputs, results)

  def leave_without_storing(self, name: str, outputs: Tensors, held: Tensors, backward: Callable) -> Tensors:
    """`outputs`, of which and of `held` alone the backward pass knows. Its gradients have none.

    Args:
      name: of what was run, for errors.
      outputs: float tensors.
      held: a part of `given`, stored for the backward pass.
      backward: (outputs, their gradients, held) -> gradients of the inputs.

    Raises:
      NotImplementedError: the gradients that `backward` gives are differentiated in turn, or those of forward
        mode are wanted.
      ValueError: in eager mode, the outputs were computed from what a tape watches beside the inputs.
    """
    if has_tangents(self._flat):
      raise NotImplementedError(
        f"forward-mode gradients (tf.autodiff.ForwardAccumulator) through {name} are not supported; {_ORDINARY}"
      )
    if tf.executing_eagerly() and is_watched(tf.nest.flatten(outputs)):  # It was shown nothing that is watched.
      raise ValueError(
        f"{name} uses a tensor computed outside of it, which no gradient would reach; hand it over as an "
        "argument of the call"
      )
    link, outputs_held = _link(self._flat), unlinked(outputs)

    def pullback(d_outputs: Tensors) -> Tensors:
      # All captured anew: in control flow TensorFlow shows a tape the first capture of a tensor alone.
      d_inputs = backward(outputs_held, unlinked(d_outputs), unlinked(held))
      return _first_order(name, [link, _link(d_outputs)], d_inputs)

    return self.leave(outputs, pullback)


def custom_vjp(function: Callable, inputs: Tensors) -> Tensors:
  """The outputs of a function that says itself how gradients go back through it.

  Args:
    function: inputs -> (outputs, pullback), see `Boundary`.
    inputs: float tensors.
  """
  boundary = Boundary(inputs)
  return boundary.leave(*function(boundary.given))


def own_in_boundaries(tensors: Tensors) -> Tensors:
  """`tensors`; where `boundaries` are listed copies, which differ from what is used from outside."""
  return tensors if boundaries.get() is None else fresh(tensors)


def mark_boundary(results: list[tf.Tensor], inputs: list[tf.Tensor]) -> None:
  """Lists in `boundaries` that the gradients of `results` go to `inputs` alone."""
  if (found := boundaries.get()) is not None:
    found.append((results, inputs))


def local(tensor: Any) -> tf.Tensor:
  """The tensor, or the value of a variable, as a tensor of the graph that is being built.

  The gradient of a branch or of a loop's body finds no others.
  """
  tensor = tf.convert_to_tensor(tensor)
  if tf.executing_eagerly() or getattr(tensor, "graph", None) is tf.compat.v1.get_default_graph():
    return tensor
  return tf.identity(tensor)


def fresh(tensors: Tensors) -> Tensors:
  """The same values, each position a tensor of its own."""
  return tf.nest.map_structure(tf.identity, tensors)


def unlinked(tensors: Tensors) -> Tensors:
  """The same values, for a backward pass: who differentiates that finds no way into the forward pass."""
  return tf.nest.map_structure(tf.stop_gradient, tensors)


def watched(tape: tf.GradientTape, tensors: Tensors) -> Tensors:
  """`fresh` tensors that the tape watches."""
  with tape.stop_recording():
    tensors = fresh(tensors)
  tape.watch(tensors)
  return tensors


def _in_graph(results: list[tf.Tensor], inputs: list[tf.Tensor], gradients: Callable) -> list[tf.Tensor]:
  """`results`, behind an op whose gradient is `gradients`, for who differentiates the graph without a tape."""

  def pullback(*d_outputs: tf.Tensor) -> list[tf.Tensor | None]:
    return [*[None] * len(results), *gradients(*d_outputs[: len(results)])]

  graph = tf.compat.v1.get_default_graph()
  op_type = f"ReversibleCustomVjp-{next(_numbers)}"
  with stop_recording(), graph.gradient_override_map({"IdentityN": op_type}):
    outputs = tf.identity_n([*results, *inputs])
  # TensorFlow's registry is for ever. It refers to what the graph holds, and forgets it with the graph.
  setattr(graph, op_type, pullback)
  of_graph = weakref.ref(graph)

  @tf.RegisterGradient(op_type)
  def gradient(op: tf.Operation | None, *d_outputs: tf.Tensor) -> list[tf.Tensor | None]:
    graph = of_graph()
    if op is not None and op.graph is not graph:  # It is None for a SavedModel's gradients.
      raise NotImplementedError(
        f"the gradient of {op.name!r} in a copy of its graph is not supported (tf.cond in forward mode, say); "
        f"{_ORDINARY}"
      )
    return getattr(graph, op_type)(*d_outputs)

  weakref.finalize(graph, forget_gradient, op_type)
  return outputs[: len(results)]


def _link(tensors: Tensors) -> tf.Tensor:
  """A scalar that tapes take for a function of `tensors`."""
  return custom_vjp(
    lambda given: (tf.zeros([]), lambda _: tf.nest.map_structure(lambda _: None, given)), tensors
  )


def _first_order(name: str, links: list[tf.Tensor], gradients: Tensors) -> Tensors:
  """`gradients`, made to refuse differentiation.

  A tape has not seen how they were computed. `links` connect them to all that they depend on, so that a tape
  always comes through here.
  """

  def identity(given: Tensors) -> tuple[Tensors, Callable]:
    def refuse(_: Tensors) -> Tensors:
      raise NotImplementedError(
        f"gradients of gradients through {name} are not supported, since it stores no activations; {_ORDINARY}"
      )

    return given[1], refuse

  flat = [d for d in tf.nest.flatten(gradients) if d is not None]
  refused = iter(custom_vjp(identity, (links, flat)))
  return tf.nest.map_structure(lambda d: None if d is None else next(refused), gradients)
