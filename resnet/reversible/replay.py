"""Layers as functions without side effects, which may be run a second time.

For a layer's author: with `replayed`, an expensive part of a layer is computed in the first run only.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar

import keras
import tensorflow as tf

from resnet.reversible.gate import Tensors, after
from resnet.reversible.second_run import require_repeatable

# What a layer may keep of its first run: see `replayed`.
STATISTICS = "statistics"
ACTIVATIONS = "activations"
# Not a layer's choice: whatever the gradients need is kept, and no second run follows.
EVERYTHING = "everything"


@dataclasses.dataclass
class Kept:
  """What a function's layers kept of its first run, in the order in which they ask for it in the second."""

  layers: list[str] = dataclasses.field(default_factory=list)
  outputs: list[tf.TensorShape] = dataclasses.field(default_factory=list)
  tensors: list[Tensors] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Run:
  kinds: Collection[str]  # that may be kept
  kept: Kept
  asked: int | None = None  # How often layers have asked; None in the first run.

  def next(self, layer: str) -> tuple[Tensors, tf.TensorShape]:
    position = self.asked
    assert position is not None
    if self.kept.layers[position : position + 1] != [layer]:
      first = ", ".join(self.kept.layers) or "nothing"
      raise ValueError(
        f"layer {layer!r} calls `replayed` as number {position} of the second run of its function, but the "
        f"first run's calls were by: {first}. Both runs must make the same calls in the same order"
      )
    self.asked = position + 1
    return self.kept.tensors[position], self.kept.outputs[position]


_current: ContextVar[_Run | None] = ContextVar("run", default=None)


def replayed(
  layer: keras.layers.Layer, first: Callable, again: Callable, *inputs: tf.Tensor, kind: str = STATISTICS
) -> tuple[tf.Tensor, Tensors]:
  """Computes a part of a layer from what the first run kept of it, if this is the layer's second run.

  To be called in the `call` of a layer that may stand in a `ReversibleChain` or a `Recompute`, which run it
  once forward and once more in the backward pass:

      def call(self, x):
        y, scale = replayed(self, self._scaled, self._scaled_again, x)
        return y

      def _scaled(self, x):
        scale = tf.linalg.norm(x)  # takes long, and is small
        return x * scale, scale

      def _scaled_again(self, scale, x):
        def gradient(dy):
          return dy * scale + tf.reduce_sum(dy * x) * x / scale
        return x * scale, gradient

  Args:
    layer: that calls this, named in errors.
    first: inputs -> (y, kept), in TensorFlow's differentiable operations. `kept` is held until the backward
      pass: a tensor or a structure of them. State that the layer changes is best changed here.
    again: (kept, *inputs) -> (y, its gradient function), as `tf.custom_gradient` wants it.
    *inputs: tensors or variables that a gradient is wanted for.
    kind: "statistics", if `kept` is small beside an activation: all units keep it, and `again` may round
      otherwise than `first`. "activations", if it is not small: it is kept where the chain's `kept_units` allow
      it, and `again` must give the same bits as `first`. Where nothing may be kept (no second run follows, or
      the chain is a while_loop, or it is exact and the kind is "statistics") `first` is computed in both runs.

  Returns:
    y and kept.

  Raises:
    ValueError: the kind is neither, or a function's second run makes other calls than its first one did.
  """
  if kind not in (STATISTICS, ACTIVATIONS):
    raise ValueError(f"kind must be {STATISTICS!r} or {ACTIVATIONS!r}, got {kind!r}")
  run = _current.get()
  if run is None or kind not in run.kinds:
    return first(*inputs)
  if run.asked is None:
    y, kept = first(*inputs)
    run.kept.layers.append(layer.name)
    run.kept.outputs.append(y.shape)
    run.kept.tensors.append(kept)
    return y, kept
  kept, shape = run.next(layer.name)

  @tf.custom_gradient
  def compute(*inputs):
    return again(kept, *inputs)

  y = compute(*map(tf.convert_to_tensor, inputs))
  if not y.shape.is_compatible_with(shape):
    raise ValueError(
      f"layer {layer.name!r}: the second run gives {y.shape} by `replayed`, the first gave {shape}"
    )
  return y, kept


class StatelessLayers:
  """Runs layers on given values in place of their variables, which do not change.

  Args:
    layers: built.
    name: of the whole, for errors.
    keep: the kinds of tensors, see `replayed`, that the first run may keep for the second.

  Attributes:
    state_variables: the variables that are not trained. Their values before a run are its state.
  """

  def __init__(self, layers: Sequence[keras.layers.Layer], name: str, keep: Collection[str] = ()):
    self._trainable = [variable for layer in layers for variable in layer.trainable_variables]
    self.state_variables = [variable for layer in layers for variable in layer.non_trainable_variables]
    self._name = name
    self._keep = keep

  def weights(self) -> list[tf.Tensor]:
    """The values of the trained variables."""
    return [tf.convert_to_tensor(variable.value) for variable in self._trainable]

  def state(self) -> list[tf.Tensor]:
    """The values of the other variables, as tensors: the variables change before the second run."""
    values = [tf.convert_to_tensor(variable.value) for variable in self.state_variables]
    # Tapes of eager mode watch frozen weights, too, and would store what is computed from them.
    return [tf.stop_gradient(value) for value in values] if tf.executing_eagerly() else values

  def run(
    self,
    call: Callable,
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    *inputs: Tensors,
    kept: Kept | None = None,
  ) -> tuple[Tensors, dict[int, tf.Tensor], Kept]:
    """`call(*inputs)`: (what it returns, new values of the state that it changes by index, what was kept).

    Args:
      call: a function of `inputs` and the layers' variables.
      weights, state: as of `weights()` and `state()`.
      kept: what the first run kept; makes this the second run.

    Raises:
      ValueError: the code cannot be run twice, see `require_repeatable` and `replayed`, or adds a loss.
    """
    run = _Run(self._keep, Kept()) if kept is None else _Run(self._keep, kept, asked=0)
    previous = _current.set(run)
    try:
      variables = [*self._trainable, *self.state_variables]
      with (
        require_repeatable(self._name, (weights, state, inputs)) if kept is None else contextlib.nullcontext(),
        keras.StatelessScope(zip(variables, weights + state, strict=True), collect_losses=True) as scope,
      ):
        old = [scope.get_current_value(variable) for variable in self.state_variables]
        outputs = call(*inputs)
    finally:
      _current.reset(previous)
    if run.asked is not None and run.asked < len(run.kept.layers):
      raise ValueError(
        f"{self._name}: layer {run.kept.layers[run.asked]!r} did not call `replayed` in the second run"
      )
    if scope.losses:
      raise ValueError(
        f"{self._name} adds a loss (add_loss, activity_regularizer), which would be lost; compute it from what "
        "the whole returns"
      )
    new = [scope.get_current_value(variable) for variable in self.state_variables]
    return outputs, {k: value for k, value in enumerate(new) if value is not old[k]}, run.kept


def gated(kept: Kept, inputs: Tensors) -> Kept:
  """`kept`, whose users wait until `inputs` are computed: what depends on kept tensors must be gated, too."""
  return dataclasses.replace(kept, tensors=after(inputs, kept.tensors)) if kept.tensors else kept
