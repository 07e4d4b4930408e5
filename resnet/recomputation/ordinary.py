"""Ordinary backpropagation on demand, to compare with."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_stored: ContextVar[bool] = ContextVar("stored", default=False)


@contextlib.contextmanager
def ordinary_backprop() -> Iterator[None]:
  """A context in which chains and recomputed layers store activations, as ordinary backpropagation does.

  For comparisons of results, time and memory. A `tf.function` keeps the way in which it was traced.

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
