"""The order of the backward pass, and what tapes see of it."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import tensorflow as tf

from resnet.reversible.private_apis import is_compiled_by_xla, optimization_barrier

Tensors = Any  # a tensor, or lists, tuples and dicts of them


_stored: ContextVar[bool] = ContextVar("stored", default=False)


@contextlib.contextmanager
def ordinary_backprop() -> Iterator[None]:
  """Within it chains and recomputed layers store activations, as ordinary backpropagation does.

  For comparisons of results, time and memory. A `tf.function` is what it was traced as.
  """
  before = _stored.set(True)
  try:
    yield
  finally:
    _stored.reset(before)


def activations_are_stored() -> bool:
  return _stored.get()


def after(done: Tensors, tensors: Tensors) -> Tensors:
  """`tensors`, of which nothing is computed before `done` is: the gate of the backward pass."""
  if tf.executing_eagerly():
    return tensors
  done, flat = tf.nest.flatten(done), tf.nest.flatten(tensors)
  if is_compiled_by_xla(tf.compat.v1.get_default_graph()):
    # XLA ignores control dependencies; to a barrier all results depend on all operands.
    gated = optimization_barrier([*flat, *done])[: len(flat)]
  else:
    with tf.control_dependencies(done):
      gated = [tf.identity(tensor) for tensor in flat]
  return tf.nest.pack_sequence_as(tensors, gated)


def without_storing(
  name: str, forward: Callable, backward: Callable, rebuilt: Tensors, held: Tensors
) -> tuple[Tensors, Tensors]:
  """`forward(rebuilt, held)`, of which nothing is stored for the backward pass but what is named here.

  Args:
    name: of what is run, for errors.
    forward: (rebuilt, held) -> (outputs, updates, records): what is differentiated, what is not, and whatever
      the backward pass needs. TensorFlow's tapes see none of it.
    backward: (outputs, their gradients, held, records, variables) -> the gradients of rebuilt, of held, and
      of the variables: a list of those that `forward` read on its own.
    rebuilt: float tensors that the backward pass does without.
    held: float tensors that are held for it.

  Returns:
    Outputs and updates.

  Raises:
    NotImplementedError: the gradients that `backward` gives are differentiated in turn.
  """
  link = _link(rebuilt, held)

  @tf.custom_gradient
  def run(rebuilt, held):
    outputs, updates, records = forward(*_unrecorded((rebuilt, held)))

    def gradient(*upstream, variables=()):
      d_outputs = tf.nest.pack_sequence_as(outputs, upstream[: len(tf.nest.flatten(outputs))])
      d_rebuilt, d_held, d_variables = _first_order(
        name, link, backward(outputs, d_outputs, held, records, variables)
      )
      return ((d_rebuilt, d_held), d_variables) if variables else (d_rebuilt, d_held)

    return (outputs, updates), gradient

  return run(rebuilt, held)


def _unrecorded(tensors: Tensors) -> Tensors:
  """`tensors`, unknown to the tapes of eager mode, which would store what is computed from them."""
  return tf.nest.map_structure(tf.stop_gradient, tensors)


def _link(*tensors: Tensors) -> tf.Tensor:
  """A scalar that tapes take for a function of `tensors`."""

  @tf.custom_gradient
  def link(*_):
    return tf.zeros([]), lambda *_: None  # Used by `_first_order` alone, which ends here.

  return link(*tf.nest.flatten(tensors))


def _first_order(name: str, link: tf.Tensor, gradients: Tensors) -> Tensors:
  """`gradients`, which cannot be differentiated.

  To a tape they are constants but for the last of their inputs, since it has not seen how the activations were
  computed that they are computed from: it would give gradients of gradients that are wrong. `link` connects
  them to all that they depend on, so that it always comes through here.
  """

  @tf.custom_gradient
  def identity(_, *flat):
    def refuse(*_, **__):
      raise NotImplementedError(
        f"gradients of gradients through {name} are not supported, since it stores no activations; "
        "set manual_gradients=False (in a Recompute: call its layer) where they are needed"
      )

    return flat, refuse

  return tf.nest.pack_sequence_as(gradients, identity(link, *tf.nest.flatten(gradients)))
