"""Layers as functions without side effects, which may be run a second time.

For a layer's author: with `replayed`, an expensive part of a layer is computed in the first run only. With
`keep_output`, the output of a layer within is kept where the chain's `kept_outputs` allow it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from contextvars import ContextVar

import keras
import tensorflow as tf

from resnet.reversible.gate import Tensors, after
from resnet.reversible.private_apis import keras_mask
from resnet.reversible.second_run import require_repeatable

# What may be kept of a first run.
STATISTICS = "statistics"  # what `replayed` keeps, small beside an activation
ACTIVATIONS = "activations"  # what `keep_output` keeps
EVERYTHING = "everything"  # whatever the gradients need: there is no second run
KINDS = (STATISTICS, ACTIVATIONS, EVERYTHING)


@dataclasses.dataclass
class Entry:
  """What one call of `replayed` or `keep_output` kept.

  Attributes:
    layer: the name of the layer.
    shape: of its output.
    tensors: what is kept.
    inner: what the layers within kept, if it is `keep_output`'s.
  """

  layer: str
  shape: tf.TensorShape
  tensors: Tensors
  inner: "Kept | None" = None


@dataclasses.dataclass
class Kept:
  """What a function's layers kept of its first run, in the order in which they ask for it in the second."""

  entries: list[Entry] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Run:
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


_current: ContextVar[_Run | None] = ContextVar("run", default=None)


@contextlib.contextmanager
def _running(run: _Run) -> Iterator[None]:
  previous = _current.set(run)
  try:
    yield
  finally:
    _current.reset(previous)


def replayed(
  layer: keras.layers.Layer, first: Callable, again: Callable, *inputs: tf.Tensor
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
      pass: a tensor or a structure of them, small beside an activation. State that the layer changes is best
      changed here.
    again: (kept, *inputs) -> (y, its gradient function), as `tf.custom_gradient` wants it. It may round
      otherwise than `first`.
    *inputs: tensors or variables that a gradient is wanted for.

  Where nothing may be kept (no second run follows, or the chain is a while_loop, or it is exact) `first` is
  computed in both runs.

  Returns:
    y and kept.

  Raises:
    ValueError: a function's second run makes other calls than its first one did.
  """
  run = _current.get()
  if run is None or STATISTICS not in run.kinds:
    return first(*inputs)
  if run.asked is None:
    y, kept = first(*inputs)
    run.kept.entries.append(Entry(layer.name, y.shape, kept))
    return y, kept
  entry = run.next(layer.name)

  @tf.custom_gradient
  def compute(*inputs):
    return again(entry.tensors, *inputs)

  y = compute(*map(tf.convert_to_tensor, inputs))
  if not y.shape.is_compatible_with(entry.shape):
    raise ValueError(
      f"layer {layer.name!r}: the second run gives {y.shape} by `replayed`, the first gave {entry.shape}"
    )
  return y, entry.tensors


def keep_output(layer: keras.layers.Layer, x: tf.Tensor, training: bool = False) -> tf.Tensor:
  """`layer(x, training=training)`, whose output is kept for the backward pass where activations may be kept.

  To be called in the `call` of a layer around `layer`. In the second run `layer` then runs for its gradient
  alone, and not before the gradient of its output is there. In a graph, ops that nothing but the output needs
  are not run: a convolution that comes last in `layer` costs no second time.

  Args:
    layer: built, a layer of the one that calls this.
    x: a float tensor.
    training: handed to the layer.

  Returns:
    The layer's output, one tensor.

  Raises:
    ValueError: activations are kept, and the layer takes or gives a Keras mask, or reads a trained variable
      that is not its own, whose gradient would be lost.
  """
  run = _current.get()
  if run is None or ACTIVATIONS not in run.kinds:
    return layer(x, training=training)
  kinds = [kind for kind in run.kinds if kind != ACTIVATIONS]
  stateless = StatelessLayers([layer], layer.name, kinds)
  if run.asked is None:
    state = stateless.state()
    inner = _Run(kinds, run.weights, Kept())
    with _running(inner), tf.GradientTape() as tape:  # Its own variables are tensors here.
      y = layer(x, training=training)
    for variable in tape.watched_variables():
      raise ValueError(f"the output of {layer.name!r} cannot be kept: it reads {variable.name!r}, not its own")
    if keras_mask(x) is not None or keras_mask(y) is not None:
      raise ValueError(f"the output of {layer.name!r} cannot be kept: it takes or gives a mask")
    run.kept.entries.append(Entry(layer.name, y.shape, (y, state, stateless.state()), inner.kept))
    return y
  entry = run.next(layer.name)
  y, state, new_state = entry.tensors
  for variable, value in zip(stateless.state_variables, new_state, strict=True):
    variable.assign(value)  # For layers that share it. The variable itself does not change in a second run.

  @tf.custom_gradient
  def output(x, *weights):
    def gradient(dy):
      late, late_state = after(dy, (x, state))
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch((late, weights))
        again, *_ = stateless.run(
          lambda x: layer(x, training=training), [*weights], late_state, late, kept=gated(entry.inner, dy)
        )
      return tape.gradient(again, (late, *weights), dy, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return tf.identity(y), gradient

  return output(x, *[run.weights[id(variable)] for variable in layer.trainable_variables])


class StatelessLayers:
  """Runs layers on given values in place of their variables, which do not change.

  Args:
    layers: built.
    name: of the whole, for errors.
    keep: the kinds of tensors, see above, that the first run may keep for the second.

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
    given = {id(variable): weight for variable, weight in zip(self._trainable, weights, strict=True)}
    run = _Run(self._keep, given, Kept()) if kept is None else _Run(self._keep, given, kept, asked=0)
    variables = [*self._trainable, *self.state_variables]
    with (
      _running(run),
      require_repeatable(self._name, (weights, state, inputs)) if kept is None else contextlib.nullcontext(),
      keras.StatelessScope(zip(variables, weights + state, strict=True), collect_losses=True) as scope,
    ):
      old = [scope.get_current_value(variable) for variable in self.state_variables]
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
    new = [scope.get_current_value(variable) for variable in self.state_variables]
    return outputs, {k: value for k, value in enumerate(new) if value is not old[k]}, run.kept


def require_kinds(keep: Collection[str]) -> None:
  """Raises ValueError unless `keep` is a collection of kinds that may be kept."""
  if isinstance(keep, str) or not set(keep) <= set(KINDS):
    raise ValueError(f"keep must be a list of {', '.join(map(repr, KINDS))}; got {keep!r}")


def gated(kept: Kept, inputs: Tensors) -> Kept:
  """`kept`, whose users wait until `inputs` are computed: what depends on kept tensors must be gated, too.

  Here `tf.custom_gradient`, which looks for the variables that a result depends on, stops: behind the kept
  tensors lies the forward pass of the whole network.
  """
  return Kept(
    [
      dataclasses.replace(
        entry,
        tensors=after(inputs, entry.tensors, tf.stop_gradient),
        inner=None if entry.inner is None else gated(entry.inner, inputs),
      )
      for entry in kept.entries
    ]
  )
