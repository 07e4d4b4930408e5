"""The order of the backward pass."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import tensorflow as tf

from resnet.reversible.custom_vjp import Tensors, custom_vjp, fresh
from resnet.reversible.private_apis import is_compiled_by_xla, optimization_barrier

_stored: ContextVar[bool] = ContextVar("stored", default=False)


@contextlib.contextmanager
def ordinary_backprop() -> Iterator[None]:
  """A context in which chains and recomputed layers store activations, as ordinary backpropagation does.

  For comparisons of results, time and memory. A `tf.function` keeps the form in which it was traced.

  Example:
    >>> chain = ReversibleChain([(keras.layers.Dense(4), keras.layers.Dense(4))])
    >>> streams = [np.ones([3, 4])] * 2
    >>> with ordinary_backprop():
    ...   ordinary = chain(streams)
    >>> np.allclose(ordinary, chain(streams))
    True
  """
  before = _stored.set(True)
  try:
    yield
  finally:
    _stored.reset(before)


def activations_are_stored() -> bool:
  """Whether `ordinary_backprop` is in force."""
  return _stored.get()


def after(done: Tensors, tensors: Tensors) -> Tensors:
  """`tensors`, whose users in a graph wait until `done` is computed: the gate of the backward pass.

  Args:
    done: what is waited for.
    tensors: what is handed on.
  """
  if tf.executing_eagerly():
    return tensors
  done, flat = tf.nest.flatten(done), tf.nest.flatten(tensors)
  if is_compiled_by_xla(tf.compat.v1.get_default_graph()):
    # XLA ignores control dependencies, but all results of a barrier depend on all of its operands.
    gated = custom_vjp(lambda given: (optimization_barrier([*given, *done])[: len(flat)], lambda d: d), flat)
  else:
    with tf.control_dependencies(done):
      gate = tf.no_op()  # One op that waits for all spares an edge for each of them to each of the others.
    with tf.control_dependencies([gate]):
      gated = [tf.identity(tensor) for tensor in flat]
  return tf.nest.pack_sequence_as(tensors, gated)


def released_together(streams: Tensors, weights: Tensors) -> tuple[Tensors, Tensors]:
  """Both as they are. In the backward pass the gradients of the streams wait for those of the weights."""

  def pullback(d: Tensors) -> Tensors:
    d_streams, d_weights = d
    return after(d_weights, d_streams), d_weights

  return custom_vjp(lambda given: (fresh(given), pullback), (streams, weights))
