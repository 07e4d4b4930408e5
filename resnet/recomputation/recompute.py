"""Running a layer a second time, in the backward pass, where it cannot be undone: only its inputs are kept."""

from collections.abc import Collection
from typing import Any

import keras
import tensorflow as tf

from resnet.recomputation.arguments import Call, Values, call_arguments, require_taken
from resnet.recomputation.building import build_by_call, build_layer, require_layer
from resnet.recomputation.contexts import stored
from resnet.recomputation.custom_vjp import Boundary, Tensors, watched
from resnet.recomputation.inspection import require_repeatable
from resnet.recomputation.ordering import wait_for
from resnet.recomputation.stateless import STATISTICS, Evaluation, Saved, StatelessLayers, require_kinds


@keras.saving.register_keras_serializable("resnet")
class Recompute(keras.layers.Wrapper):
  """A layer of any kind that the backward pass runs again: only its inputs are kept.

  Unlike with `tf.recompute_grad` and `keras.remat`, the layer's statistics move once a step, not twice; dropout
  drops the same units in the recomputation, which waits until its gradients are wanted; and the result is a
  layer, for functional models, saving and loading.

  Args:
    layer: the layer.
    keep: the kinds of tensors that the layer may keep of the first run beside its inputs, see replay.py.
      Without "statistics" the recomputation repeats the first run to the bit.

  Call arguments:
    inputs: float tensors, or a structure of them.
    training, mask, **kwargs: handed to the layer; gradients go to the inputs and to the kwargs' float tensors.

  Raises:
    NotImplementedError: the gradients are differentiated in turn.
    ValueError: an argument that the layer does not take; a layer that would not repeat itself, or whose
      gradients would be lost, see docs/reversible.md.

  Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".

  Example:
    >>> layers = keras.layers
    >>> block = Recompute(keras.Sequential([layers.Conv2D(6, 3), layers.BatchNormalization(), layers.ReLU()]))
    >>> block(np.ones([1, 8, 8, 3]), training=True).shape
    TensorShape([1, 6, 6, 6])
  """

  def __init__(self, layer: keras.layers.Layer, keep: Collection[str] = (STATISTICS,), **kwargs: Any) -> None:
    require_layer("layer", layer)
    require_kinds(keep)
    super().__init__(layer, autocast=False, **kwargs)
    self.dtype_policy = keras.DTypePolicy(self.variable_dtype)  # Variables are read as they are.
    self.keep = tuple(keep)
    self.supports_masking = layer.supports_masking

  @property
  def call_arguments(self) -> set[str]:
    """The names of the arguments that the layer takes."""
    return call_arguments(self.layer)

  def build(self, input_shape: Any) -> None:
    build_layer(self.layer, input_shape, self.variable_dtype)

  def call(self, inputs: Tensors, training: bool = False, **kwargs: Any) -> Tensors:
    if not self.layer.built:  # It takes more than its inputs, whose shapes are known only now.
      build_by_call(self.layer, inputs, kwargs)
    return recompute(self.layer, inputs, training, self.keep, **kwargs)

  def compute_output_spec(self, inputs: Tensors, training: bool = False, **kwargs: Any) -> Tensors:
    require_taken(self.name, kwargs, self.call_arguments)
    return build_by_call(self.layer, inputs, kwargs)

  def compute_output_shape(self, input_shape: Any) -> Any:
    return self.layer.compute_output_shape(input_shape)

  def compute_mask(self, inputs: Tensors, previous_mask: Any) -> Any:
    return self.layer.compute_mask(inputs, previous_mask)

  def get_config(self) -> dict[str, Any]:
    return {**super().get_config(), "keep": list(self.keep)}


def recompute(
  layer: keras.layers.Layer,
  inputs: Tensors,
  training: bool = False,
  keep: Collection[str] = (STATISTICS,),
  **kwargs: Any,
) -> Tensors:
  """`layer(inputs, training=training, **kwargs)`, without storing activations: see `Recompute`.

  Args:
    layer: built.
    inputs: float tensors or variables, or a structure of them.
    training, keep, kwargs: as of `Recompute`.

  Returns:
    What the layer returns, arrays as tensors. Gradients go through float tensors.

  Raises:
    NotImplementedError, ValueError: as `Recompute`.

  Example:
    >>> layer = keras.layers.Dense(4)
    >>> layer.build([None, 3])
    >>> recompute(layer, np.ones([2, 3])).shape
    TensorShape([2, 4])
  """
  require_layer("layer", layer)
  require_kinds(keep)
  call = Call(f"recomputed layer {layer.name!r}", training, (inputs, kwargs))
  require_taken(call.name, kwargs, call_arguments(layer))
  if stored.get():
    return layer(inputs, training=training, **kwargs)
  stateless = StatelessLayers([layer], layer.name, keep, call.surroundings)
  state = stateless.state()

  def run(
    weights: list[tf.Tensor], floats: list[tf.Tensor], state: list[tf.Tensor], saved: list[Saved] | None = None
  ) -> tuple[Values, Evaluation]:
    with stateless.evaluation(weights, state, saved) as evaluation:
      inputs, arguments = call.filled_in(floats)
      outputs = Values(layer(inputs, training=training, **arguments))
    return outputs, evaluation

  boundary = Boundary((stateless.weights(), call.floats))
  weights, floats = boundary.given
  require_repeatable(layer.name, run, weights, floats, state, layer, (call.key, tuple(keep)))
  outputs, first = run(weights, floats, state)
  kept = first.saved  # All that the backward pass needs of it.

  def backward(_: Tensors, d_outputs: Tensors, held: Tensors) -> Tensors:
    weights, floats, saved = wait_for(d_outputs, (*held, kept))  # Rule 1.
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      held = weights, floats = watched(tape, (weights, floats))
      again, _ = run(weights, floats, state, saved)
    with stateless.scope(weights, state):
      return tape.gradient(again.floats, held, d_outputs)

  results = boundary.leave_without_storing(call.name, outputs.floats, boundary.given, backward)
  for variable, value in first.updates:
    variable.assign(value)
  return outputs.filled_in(results)
