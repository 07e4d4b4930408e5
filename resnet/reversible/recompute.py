"""Running a layer a second time, in the backward pass, where it cannot be undone: only its inputs are kept."""

from collections.abc import Collection
from typing import Any

import keras
import tensorflow as tf

from resnet.reversible.checks import build_layer
from resnet.reversible.gate import Tensors, activations_are_stored, after, without_storing
from resnet.reversible.private_apis import keras_mask
from resnet.reversible.replay import EVERYTHING, STATISTICS, StatelessLayers, gated, require_kinds
from resnet.reversible.turn import Call, call_arguments


@keras.saving.register_keras_serializable("resnet")
class Recompute(keras.layers.Layer):
  """A layer of any kind that the backward pass runs again: only its inputs are kept.

      block = Recompute(keras.Sequential([Conv2D(64, 3), BatchNormalization(), ReLU(), Dropout(0.1)]))
      y = block(x, training=True)

  Unlike with `tf.recompute_grad` and `keras.remat`, the layer's statistics move once a step, not twice; dropout
  drops the same units in the second run; that run waits until its gradients are wanted; and the result is a
  layer, for functional models, saving and loading.

  Args:
    layer: the layer.
    keep: the kinds of tensors that the layer may keep of the first run beside its inputs, see replay.py.
      Without "statistics" the second run repeats the first to the bit. With "everything" there is no second
      run: activations are stored.

  Call arguments:
    inputs: float tensors, or a structure of them.
    training, mask, **kwargs: handed to the layer; gradients go to the inputs and to the kwargs' float tensors.

  Raises:
    NotImplementedError: the gradients are differentiated in turn.
    ValueError: an argument that the layer does not take; in a graph, a layer that would not repeat itself.

  Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
  """

  def __init__(self, layer: keras.layers.Layer, keep: Collection[str] = (STATISTICS,), **kwargs):
    super().__init__(autocast=False, **kwargs)
    self.dtype_policy = keras.DTypePolicy(self.variable_dtype)  # Variables are read as they are.
    if not isinstance(layer, keras.layers.Layer):
      raise ValueError(
        f"layer must be a Keras layer, got {layer!r}; keras.layers.Lambda makes one of a function"
      )
    self.layer = layer
    require_kinds(keep)
    self.keep = tuple(keep)
    self.supports_masking = layer.supports_masking

  @property
  def call_arguments(self) -> set[str]:
    """The names of the arguments that the layer takes."""
    return call_arguments(self.layer)

  def build(self, input_shape):
    build_layer(self.layer, input_shape, self.variable_dtype)

  def call(self, inputs, training=False, mask=None, **kwargs):
    return recompute(self.layer, inputs, training, self.keep, **_with_mask(self.layer, inputs, mask, kwargs))

  def compute_output_spec(self, inputs, training=False, mask=None, **kwargs):
    Call(training, None, kwargs).require_taken(self.name, self.call_arguments)
    return self.layer.compute_output_spec(inputs, **_with_mask(self.layer, inputs, mask, kwargs))

  def compute_output_shape(self, input_shape):
    return self.layer.compute_output_shape(input_shape)

  def compute_mask(self, inputs, previous_mask):
    return self.layer.compute_mask(inputs, previous_mask)

  def get_config(self):
    layer = keras.saving.serialize_keras_object(self.layer)
    return {**super().get_config(), "layer": layer, "keep": list(self.keep)}

  @classmethod
  def from_config(cls, config):
    return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


def recompute(
  layer: keras.layers.Layer,
  inputs: Tensors,
  training: bool = False,
  keep: Collection[str] = (STATISTICS,),
  **kwargs,
) -> Tensors:
  """`layer(inputs, training=training, **kwargs)`, without storing activations: see `Recompute`.

  Args:
    layer: built.
    inputs: float tensors, or a structure of them.
    training, keep, kwargs: as of `Recompute`.
  """
  require_kinds(keep)
  call = Call(training, None, kwargs)
  call.require_taken(layer.name, call_arguments(layer))
  if activations_are_stored():
    return layer(inputs, **call.arguments_of(layer, 0, call.context))
  stateless = StatelessLayers([layer], layer.name, keep)
  state = stateless.state()

  def run(weights, inputs, context, kept=None):
    def call_layer(inputs, arguments):
      return layer(inputs, **arguments)

    arguments = call.arguments_of(layer, 0, context)
    return stateless.run(call_layer, weights, state, inputs, arguments, kept=kept)

  def forward(_, held):
    if EVERYTHING not in keep:
      return run(*held)
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(held)
      outputs, updates, _ = run(*held)
    return outputs, updates, (tape, held, outputs)

  def run_again(d_outputs, held, kept, variables):
    weights, inputs, context = held
    inputs = after(d_outputs, inputs)
    kept = gated(kept, inputs)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch((weights, inputs, context, variables))
      outputs, *_ = run(weights, inputs, context, kept)
    return tape, (weights, inputs, context), outputs

  def backward(_, d_outputs, held, record, variables):
    tape, given, outputs = record if EVERYTHING in keep else run_again(d_outputs, held, record, variables)
    *d_held, d_variables = tape.gradient(
      outputs, (*given, variables), d_outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return (), tuple(tf.nest.map_structure(tf.convert_to_tensor, d) for d in d_held), d_variables

  held = (stateless.weights(), inputs, call.context)
  outputs, updates = without_storing(f"recomputed layer {layer.name!r}", forward, backward, (), held)
  for index, value in updates.items():
    stateless.state_variables[index].assign(value)
  return outputs


def _with_mask(
  layer: keras.layers.Layer, inputs: Tensors, mask: Any, arguments: dict[str, Any]
) -> dict[str, Any]:
  """`arguments`, and the mask if there is one that the layer takes."""
  if mask is None:
    mask = tf.nest.map_structure(keras_mask, inputs)
  given = any(leaf is not None for leaf in tf.nest.flatten(mask))
  return {**arguments, "mask": mask} if given and "mask" in call_arguments(layer) else arguments
