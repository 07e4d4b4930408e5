"""What is in force in a `with`; and one for users: ordinary backpropagation, to compare with."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

# Whether layers are evaluated on given values. What is in them is then part of something larger, which has been
# inspected. private_apis.py says what TensorFlow does otherwise then.
evaluates: ContextVar[bool] = ContextVar("evaluates", default=False)
# Whether activations are stored, by `ordinary_backprop`.
stored: ContextVar[bool] = ContextVar("stored", default=False)


@contextlib.contextmanager
def setting(variable: ContextVar, value: Any) -> Iterator[Any]:
  """A context in which the variable has this value, which it gives."""
  before = variable.set(value)
  try:
    yield value
  finally:
    variable.reset(before)


def ordinary_backprop() -> contextlib.AbstractContextManager:
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
  return setting(stored, True)
