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
  """A context in which chains and recomputed layers store activations, as ordinary backpropagation does.

  For comparisons of results, time and memory. A `tf.function` keeps the form in which it was traced.
  """
  before = _stored.set(True)
  try:
    yield
  finally:
    _stored.reset(before)


def activations_are_stored() -> bool:
  """Whether `ordinary_backprop` is in force."""
  return _stored.get()


def after(done: Tensors, tensors: Tensors, hand_on: Callable = tf.identity) -> Tensors:
  """`tensors`, whose users in a graph wait until `done` is computed: the gate of the backward pass.

  Args:
    done: what is waited for.
    tensors: what is handed on.
    hand_on: the op that does it, but for XLA.
  """
  if tf.executing_eagerly():
    return tensors
  done, flat = tf.nest.flatten(done), tf.nest.flatten(tensors)
  if is_compiled_by_xla(tf.compat.v1.get_default_graph()):
    # XLA ignores control dependencies, but all results of a barrier depend on all of its operands.
    gated = optimization_barrier([*flat, *done])[: len(flat)]
  else:
    with tf.control_dependencies(done):
      gate = tf.no_op()  # One op that waits for all spares an edge for each of them to each of the others.
    with tf.control_dependencies([gate]):
      gated = [hand_on(tensor) for tensor in flat]
  return tf.nest.pack_sequence_as(tensors, gated)


def without_storing(
  name: str, forward: Callable, backward: Callable, rebuilt: Tensors, held: Tensors
) -> tuple[Tensors, Tensors]:
  """Runs `forward(rebuilt, held)`. Only `held`, outputs and records are stored for the backward pass.

  Args:
    name: of what is run, for errors.
    forward: (rebuilt, held) -> (outputs, updates, records). Outputs are differentiated, updates are not, and
      records are whatever the backward pass needs. TensorFlow's tapes see nothing of `forward`.
    backward: (outputs, their gradients, held, records, variables) -> (gradients of rebuilt, of held, of
      variables). `variables` is a list of those that `forward` read although they are not its arguments.
    rebuilt: float tensors that are not stored for the backward pass.
    held: float tensors that are stored for the backward pass.

  Returns:
    Outputs and updates.

  Raises:
    NotImplementedError: the gradients that `backward` gives are differentiated in turn.
  """
  link = _link(rebuilt, held)
  # Not among the results of `run`: for each of these the backward pass has ops.
  updates: Tensors = None

  @tf.custom_gradient
  def run(rebuilt, held):
    nonlocal updates
    outputs, updates, records = forward(*_unrecorded((rebuilt, held)))

    def gradient(*upstream, variables=()):
      d_outputs = tf.nest.pack_sequence_as(outputs, upstream)
      d_rebuilt, d_held, d_variables = _first_order(
        name, link, backward(outputs, d_outputs, held, records, variables)
      )
      return ((d_rebuilt, d_held), d_variables) if variables else (d_rebuilt, d_held)

    return outputs, gradient

  return run(rebuilt, held), updates


def _unrecorded(tensors: Tensors) -> Tensors:
  """`tensors`, hidden from the tapes of eager mode, which would store what is computed from them."""
  return tf.nest.map_structure(tf.stop_gradient, tensors) if tf.executing_eagerly() else tensors


def _link(*tensors: Tensors) -> tf.Tensor:
  """A scalar that tapes take for a function of `tensors`."""

  @tf.custom_gradient
  def link(*_):
    return tf.zeros([]), lambda *_: None  # Only `_first_order` uses the link, and it refuses gradients.

  return link(*tf.nest.flatten(tensors))


def _first_order(name: str, link: tf.Tensor, gradients: Tensors) -> Tensors:
  """`gradients`, made to refuse differentiation.

  A tape has not seen how the activations behind `gradients` were computed, so its gradients of them would be
  wrong. `link` connects `gradients` to all that they depend on, so that a tape always comes through here.
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
