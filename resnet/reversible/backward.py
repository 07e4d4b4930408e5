"""How the gradients of a chain are computed: `Store()` or `Rebuild(...)`, an argument of `ReversibleChain`."""

import dataclasses
import numbers
from typing import Any, NamedTuple

import keras


class Backward:
  """`Store` or `Rebuild`. Outputs, gradients and updates are the same by both."""

  keep: str | float = "all"  # Without arguments, as `Store` is.
  loop: bool = False

  def get_config(self) -> dict[str, Any]:
    return vars(self)

  @classmethod
  def from_config(cls, config: dict[str, Any]) -> "Backward":
    return cls(**config)


@keras.saving.register_keras_serializable("resnet")
@dataclasses.dataclass(frozen=True)
class Store(Backward):
  """Ordinary backpropagation: plain Keras, whose activations are all stored. It takes the least time.

  Choose it for short chains, to compare with, and where gradients of gradients are wanted.

  Example:
    >>> chain = ReversibleChain([(keras.layers.Dense(4), keras.layers.Dense(4))], backward=Store())
    >>> chain([np.ones([3, 4])] * 2)[0].shape
    TensorShape([3, 4])
  """


@keras.saving.register_keras_serializable("resnet")
@dataclasses.dataclass(frozen=True)
class Rebuild(Backward):
  """The backward pass rebuilds activations from the outputs, so that memory does not grow with depth.

  Args:
    keep: what may be kept to save time. "least": nothing, the choice for the largest batch. "auto": up to 1.75
      times the memory of "least", for about a quarter of the time that rebuilding takes. "all": everything, as
      by `Store`. A number of bytes: as much as the activations of a call may take. Sizes must be known when a
      call is traced, the batch as well for a number of bytes; otherwise nothing is kept.
    loop: units (F, G) alike that stand in a row run as one `tf.while_loop` over their stacked weights, which
      keeps nothing: a graph whose size does not depend on depth, for very deep chains that take long to trace.
      Alike are layers whose `get_config` says the same. Layers that speak to other devices, such as
      synchronised batch normalisation, cannot be in a loop.

  Raises:
    ValueError: keep or loop is none of these, or a loop is to keep something.

  Example:
    >>> units = [(keras.layers.Dense(4), keras.layers.Dense(4)) for _ in range(8)]
    >>> chain = ReversibleChain(units, backward=Rebuild(keep=2e6))
    >>> chain([np.ones([3, 4])] * 2)[0].shape
    TensorShape([3, 4])
  """

  keep: str | float = "least"
  loop: bool = False

  def __post_init__(self) -> None:
    keep = self.keep
    is_number = isinstance(keep, numbers.Real) and not isinstance(keep, bool)
    if not (keep in ("least", "auto", "all") if isinstance(keep, str) else is_number and keep > 0):
      raise ValueError(f"keep must be 'least', 'auto', 'all' or a number of bytes, got {keep!r}")
    if not isinstance(keep, str):
      object.__setattr__(self, "keep", float(keep))
    if not isinstance(self.loop, bool):
      raise ValueError(f"loop must be True or False, got {self.loop!r}")
    if self.loop and self.keep not in ("least", "auto"):
      raise ValueError(f"keep must be 'least' with loop=True, which keeps nothing; got {self.keep!r}")


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
