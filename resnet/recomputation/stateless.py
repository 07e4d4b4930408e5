"""Layers as functions of (weights, state, inputs), without side effects, which may be evaluated twice."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf

from resnet.recomputation.contexts import evaluates, setting
from resnet.recomputation.custom_vjp import Tensors, custom_vjp, local
from resnet.recomputation.masks import Mask
from resnet.recomputation.private_apis import as_stored, surrounded, surroundings

# What layers may save for their recomputation.
STATISTICS = "statistics"  # what `replayed` saves, small beside an activation
ACTIVATIONS = "activations"  # what `keep_output` saves
KINDS = (STATISTICS, ACTIVATIONS)


@dataclasses.dataclass
class Saved:
  """What one call of `replayed` or `keep_output` saved, a structure of tensors to `tf.nest`.

  Attributes:
    layer: the name of the layer.
    shape: of its output.
    masks: that its input and its output carried.
    tensors: what is saved.
    inner: what the layers within saved, if it is `keep_output`'s.
  """

  layer: str
  shape: tf.TensorShape
  masks: tuple[Mask, Mask]
  tensors: Tensors
  inner: "list[Saved] | None" = None

  def __tf_flatten__(self) -> tuple[tuple, tuple]:
    return (self.layer, self.shape, self.masks), (self.tensors, self.inner)

  @classmethod
  def __tf_unflatten__(cls, metadata: tuple, components: tuple) -> "Saved":
    return cls(*metadata, *components)


@dataclasses.dataclass
class Evaluation:
  """One evaluation of layers.

  Attributes:
    kinds: of what the layers may save.
    weights: the values of the trained variables, by their ids.
    saved: what they save, in the order in which the recomputation asks for it.
    asked: how often the recomputation has asked; None in a first evaluation.
    updates: the variables that have changed, with their new values. It is there at the end.
    scope: that has the values of variables.
  """

  kinds: Collection[str]
  weights: dict[int, tf.Tensor]
  saved: list[Saved] = dataclasses.field(default_factory=list)
  asked: int | None = None
  updates: list[tuple[keras.Variable, tf.Tensor]] = dataclasses.field(default_factory=list)
  scope: keras.StatelessScope | None = None

  @contextlib.contextmanager
  def changing_nothing(self) -> Iterator[None]:
    """A context in which nothing is saved, and after which variables have the values that they had before."""
    assert self.scope is not None
    before = dict(self.scope.state_mapping)
    with evaluating(None):
      yield
    self.scope.state_mapping = before

  def next(self, layer: str) -> Saved:
    position = self.asked
    assert position is not None
    names = [saved.layer for saved in self.saved]
    if names[position : position + 1] != [layer]:
      raise ValueError(
        f"layer {layer!r} calls `replayed` or `keep_output` as number {position} of the recomputation of its "
        f"function, but the first run's calls were by: {', '.join(names) or 'nothing'}. Both runs must make "
        "the same calls in the same order"
      )
    self.asked = position + 1
    return self.saved[position]


current: ContextVar[Evaluation | None] = ContextVar("current", default=None)


def evaluating(evaluation: Evaluation | None) -> contextlib.AbstractContextManager:
  """A context in which layers save to `evaluation`, or take from it; to None, nothing."""
  return setting(current, evaluation)


class StatelessLayers:
  """Evaluates layers on given values in place of their variables, which do not change.

  Args:
    layers: built.
    name: of the whole, for errors.
    keep: the kinds of tensors, see above, that layers may save for the recomputation.
    around: the `surroundings` of the evaluations, by default those that are there now.

  Attributes:
    untrained, trained: the variables whose values are the state, and those whose values are the weights.
    variables: both, in this order.
  """

  def __init__(
    self,
    layers: Sequence[keras.layers.Layer],
    name: str,
    keep: Collection[str] = (),
    around: dict[str, Any] | None = None,
  ):
    variables = {id(variable): variable for layer in layers for variable in layer.variables}
    # In the order of `variables`, which freezing does not change. As in a model, it is the variable's word that
    # counts: a layer that is frozen before it is built has variables that are trained.
    self.trained = [variable for variable in variables.values() if variable.trainable]
    self.untrained = [variable for variable in variables.values() if not variable.trainable]
    self.variables = [*self.untrained, *self.trained]
    self._name = name
    self._keep, self._around = tuple(keep), surroundings() if around is None else around

  def weights(self) -> list[tf.Tensor]:
    """The values of the trained variables."""
    with as_stored():
      return [tf.convert_to_tensor(variable.value) for variable in self.trained]

  def state(self) -> list[tf.Tensor]:
    """The values of the other variables, as tensors: the variables change before the recomputation."""
    with as_stored():
      values = [local(variable.value) for variable in self.untrained]
    # Tapes of eager mode watch frozen weights, too, and would store what is computed from them.
    return [tf.stop_gradient(value) for value in values] if tf.executing_eagerly() else values

  @contextlib.contextmanager
  def scope(self, weights: list[tf.Tensor], state: list[tf.Tensor]) -> "Iterator[_Scope]":
    """A context in which the layers have these values.

    Gradients are taken in one, too: in a layer, `tf.recompute_grad` reads variables when its gradient is taken.
    """
    given = {id(variable): weight for variable, weight in zip(self.trained, weights, strict=True)}
    with as_stored():
      values = _Scope(zip(self.variables, [*state, *weights], strict=True), given)
    with evaluating(None), setting(evaluates, True), surrounded(self._around), values as scope:
      yield scope

  @contextlib.contextmanager
  def evaluation(
    self, weights: list[tf.Tensor], state: list[tf.Tensor], saved: Sequence[Saved] | None = None
  ) -> Iterator[Evaluation]:
    """A context in which the layers have these values, and which looks at what was done when it ends.

    Args:
      weights, state: as of `weights()` and `state()`.
      saved: by the first evaluation; makes this the recomputation.

    Raises:
      ValueError: the layers save and ask differently, add a loss, or move a variable in a branch or loop.
    """
    with self.scope(weights, state) as scope:
      asked = None if saved is None else 0
      this = Evaluation(self._keep, scope.weights, list(saved or ()), asked, scope=scope)
      old = [scope.get_current_value(variable) for variable in self.variables]
      with evaluating(this):
        yield this
    if this.asked is not None and this.asked < len(this.saved):
      raise ValueError(
        f"{self._name}: layer {this.saved[this.asked].layer!r} did not call `replayed` or `keep_output` in the "
        "recomputation"
      )
    if scope.losses:
      raise ValueError(
        f"{self._name} adds a loss (add_loss, activity_regularizer), which would be lost; compute it from what "
        "the whole returns"
      )
    for variable, before in zip(self.variables, old, strict=True):
      value = scope.get_current_value(variable)
      if value is before:
        continue
      if tf.is_symbolic_tensor(value) and value.graph is not tf.compat.v1.get_default_graph():
        raise ValueError(
          f"{self._name} moves {variable.path!r} in a branch or loop (tf.cond, tf.while_loop), where its new "
          "value is lost; move it outside of these, or use backward=Store()"
        )
      this.updates.append((variable, value))


def require_kinds(keep: Collection[str]) -> None:
  """Raises ValueError unless `keep` is a collection of kinds that may be saved."""
  if isinstance(keep, str) or not set(keep) <= set(KINDS):
    raise ValueError(f"keep must be a list of {', '.join(map(repr, KINDS))}; got {keep!r}")


class _Scope(keras.StatelessScope):
  """A `StatelessScope` in which a layer may assign to trained weights, as Keras' SpectralNormalization does.

  As with variables, what is read later has the new value, and its gradient is the weight's; none goes through
  what was assigned.
  """

  def __init__(self, values: Iterable, weights: dict[int, tf.Tensor]):
    super().__init__(values, collect_losses=True)
    self.weights = weights

  def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
    variable, value = update
    if id(variable) in self.weights:
      assigned = tf.stop_gradient(value)
      value = custom_vjp(lambda _: (assigned, lambda d: d), self.weights[id(variable)])
    super().add_update((variable, value))
