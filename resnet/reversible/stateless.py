"""Layers as functions of (weights, state, inputs), without side effects, which may be run a second time."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextvars import ContextVar

import keras
import tensorflow as tf

from resnet.reversible.custom_vjp import Tensors, custom_vjp, local
from resnet.reversible.gate import after
from resnet.reversible.inspection import inspected, require_repeatable
from resnet.reversible.masks import Mask
from resnet.reversible.private_apis import inlined_functions

# What may be kept of a first run.
STATISTICS = "statistics"  # what `replayed` keeps, small beside an activation
ACTIVATIONS = "activations"  # what `keep_output` keeps
KINDS = (STATISTICS, ACTIVATIONS)


@dataclasses.dataclass
class Entry:
  """What one call of `replayed` or `keep_output` kept.

  Attributes:
    layer: the name of the layer.
    shape: of its output.
    tensors: what is kept.
    inner: what the layers within kept, if it is `keep_output`'s.
    masks: that its input and its output carried.
  """

  layer: str
  shape: tf.TensorShape
  tensors: Tensors
  inner: "Kept | None" = None
  masks: tuple[Mask, Mask] = (None, None)


@dataclasses.dataclass
class Kept:
  """What a function's layers kept of its first run, in the order in which they ask for it in the second."""

  entries: list[Entry] = dataclasses.field(default_factory=list)

  @property
  def has_outputs(self) -> bool:
    """Whether an output is among it."""
    return any(entry.inner is not None for entry in self.entries)


@dataclasses.dataclass
class Run:
  kinds: Collection[str]  # that may be kept
  weights: dict[int, tf.Tensor]  # the values of trained variables, by their ids
  kept: Kept
  asked: int | None = None  # How often layers have asked; None in the first run.

  def next(self, layer: str) -> Entry:
    position = self.asked
    assert position is not None
    names = [entry.layer for entry in self.kept.entries]
    if names[position : position + 1] != [layer]:
      raise ValueError(
        f"layer {layer!r} calls `replayed` or `keep_output` as number {position} of the second run of its "
        f"function, but the first run's calls were by: {', '.join(names) or 'nothing'}. Both runs must make "
        "the same calls in the same order"
      )
    self.asked = position + 1
    return self.kept.entries[position]


current_run: ContextVar[Run | None] = ContextVar("run", default=None)


@contextlib.contextmanager
def running(run: Run | None) -> Iterator[None]:
  previous = current_run.set(run)
  try:
    yield
  finally:
    current_run.reset(previous)


def nothing_kept() -> contextlib.AbstractContextManager:
  """A context in which layers keep nothing, and are handed nothing that was kept."""
  return running(None)


class StatelessLayers:
  """Runs layers on given values in place of their variables, which do not change.

  Args:
    layers: built.
    name: of the whole, for errors.
    keep: the kinds of tensors, see above, that the first run may keep for the second.

  Attributes:
    variables: those that are not trained, whose values are the state, then the trained ones.
  """

  def __init__(self, layers: Sequence[keras.layers.Layer], name: str, keep: Collection[str] = ()):
    variables = {id(variable): variable for layer in layers for variable in layer.variables}
    # In the order of `variables`, which freezing does not change. As in a model, it is the variable's word that
    # counts: a layer that is frozen before it is built has variables that are trained.
    self._trained = [variable for variable in variables.values() if variable.trainable]
    self._state = [variable for variable in variables.values() if not variable.trainable]
    self.variables = [*self._state, *self._trained]
    self._owner = layers[-1]
    self._name = name
    self._keep = tuple(keep)

  def weights(self) -> list[tf.Tensor]:
    """The values of the trained variables."""
    return [tf.convert_to_tensor(variable.value) for variable in self._trained]

  def state(self) -> list[tf.Tensor]:
    """The values of the other variables, as tensors: the variables change before the second run."""
    values = [local(variable.value) for variable in self._state]
    # Tapes of eager mode watch frozen weights, too, and would store what is computed from them.
    return [tf.stop_gradient(value) for value in values] if tf.executing_eagerly() else values

  def run(
    self,
    call: Callable,
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    *inputs: Tensors,
    kept: Kept | None = None,
    key: Hashable = None,
  ) -> tuple[Tensors, dict[int, tf.Tensor], Kept]:
    """`call(*inputs)`: (what it returns, new values of `variables` that it changes by index, what was kept).

    Args:
      call: a function of `inputs` and the layers' variables.
      weights, state: as of `weights()` and `state()`.
      kept: what the first run kept; makes this the second run.
      key: what else `call` depends on, but for values of tensors, in a first run that a second one follows.

    Raises:
      ValueError: the code cannot be run twice, see inspection.py and `replayed`, or adds a loss.
    """
    if kept is None and key is not None:

      def first_run(weights: list[tf.Tensor], inputs: Tensors, state: list[tf.Tensor]) -> Tensors:
        return self._run(call, weights, state, inputs, None)[0]

      require_repeatable(self._name, first_run, weights, list(inputs), state, self._owner, (key, self._keep))
    with inspected():
      outputs, updates, kept = self._run(call, weights, state, inputs, kept)
    for k, value in updates.items():
      if tf.is_symbolic_tensor(value) and value.graph is not tf.compat.v1.get_default_graph():
        raise ValueError(
          f"{self._name} moves {self.variables[k].path!r} in a branch or loop (tf.cond, tf.while_loop), where "
          "its new value is lost; move it outside of these, or use manual_gradients=False"
        )
    return outputs, updates, kept

  def _run(
    self,
    call: Callable,
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    inputs: Sequence[Tensors],
    kept: Kept | None,
  ) -> tuple[Tensors, dict[int, tf.Tensor], Kept]:
    given = {id(variable): weight for variable, weight in zip(self._trained, weights, strict=True)}
    run = Run(self._keep, given, Kept()) if kept is None else Run(self._keep, given, kept, asked=0)
    with (
      running(run),
      inlined_functions(),
      _Scope(zip(self.variables, [*state, *weights], strict=True), given) as scope,
    ):
      old = [scope.get_current_value(variable) for variable in self.variables]
      outputs = call(*inputs)
    if run.asked is not None and run.asked < len(run.kept.entries):
      raise ValueError(
        f"{self._name}: layer {run.kept.entries[run.asked].layer!r} did not call `replayed` or `keep_output` "
        "in the second run"
      )
    if scope.losses:
      raise ValueError(
        f"{self._name} adds a loss (add_loss, activity_regularizer), which would be lost; compute it from what "
        "the whole returns"
      )
    new = [scope.get_current_value(variable) for variable in self.variables]
    return outputs, {k: value for k, value in enumerate(new) if value is not old[k]}, run.kept


def gated(kept: Kept, inputs: Tensors) -> Kept:
  """`kept`, whose users wait until `inputs` are computed: what depends on kept tensors must be gated, too."""
  return Kept(
    [
      dataclasses.replace(
        entry,
        tensors=after(inputs, entry.tensors),
        inner=None if entry.inner is None else gated(entry.inner, inputs),
      )
      for entry in kept.entries
    ]
  )


def require_kinds(keep: Collection[str]) -> None:
  """Raises ValueError unless `keep` is a collection of kinds that may be kept."""
  if isinstance(keep, str) or not set(keep) <= set(KINDS):
    raise ValueError(f"keep must be a list of {', '.join(map(repr, KINDS))}; got {keep!r}")


class _Scope(keras.StatelessScope):
  """A `StatelessScope` in which a layer may assign to trained weights, as Keras' SpectralNormalization does.

  As with variables, what is read later has the new value, and its gradient is the weight's; none goes through
  what was assigned.
  """

  def __init__(self, values: Iterable, weights: dict[int, tf.Tensor]):
    super().__init__(values, collect_losses=True)
    self._weights = weights

  def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
    variable, value = update
    if id(variable) in self._weights:
      assigned = tf.stop_gradient(value)
      value = custom_vjp(lambda _: (assigned, lambda d: d), self._weights[id(variable)])
    super().add_update((variable, value))
