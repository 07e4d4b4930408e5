"""Running a layer again in the backward pass, instead of storing what it computed in between."""

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.ops import control_flow_util

from resnet.models.pure_function import PureFunction, Tensors


def recompute(layer: keras.layers.Layer, inputs: Tensors, training: bool = False) -> Tensors:
  """`layer(inputs, training=training)`, of which only the inputs are kept for the backward pass.

  Unlike `tf.recompute_grad` and `keras.remat` it updates the layer's moving statistics once, not twice,
  and runs dropout with the same mask again.

  Args:
    layer: a built layer of any kind.
    inputs: a float tensor or a structure of them.
    training: handed to the layer.
  """
  function = PureFunction(layer, training)
  state = function.state()

  @tf.custom_gradient
  def run(inputs, weights):
    outputs, new_state, kept = function(unrecorded(weights), state, unrecorded(inputs))

    def gradient(*upstream):
      d_outputs = tf.nest.pack_sequence_as(outputs, upstream[: len(tf.nest.flatten(outputs))])
      _, d_inputs, d_weights = rerun(function, weights, state, kept, after(d_outputs, inputs), d_outputs)
      return d_inputs, d_weights

    return (outputs, new_state), gradient

  outputs, new_state = run(inputs, function.weights())
  function.assign(new_state)
  return outputs


def rerun(function, weights, state, kept, inputs, d_outputs):
  """A function's second run: (outputs, their gradient with respect to inputs, with respect to weights)."""
  kept = kept and after(inputs, kept)  # Else what is computed from `kept` alone would not heed the gate.
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch((inputs, weights))
    outputs, *_ = function(weights, state, inputs, kept)
  d_outputs = tf.nest.map_structure(lambda d, y: tf.cast(d, y.dtype), d_outputs, outputs)
  d_inputs, d_weights = tape.gradient(
    outputs, (inputs, weights), d_outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO
  )
  return outputs, d_inputs, d_weights


def unrecorded(tensors: Tensors) -> Tensors:
  """`tensors`, unknown to the tapes of eager mode, which would store what is computed from them."""
  return tf.nest.map_structure(tf.stop_gradient, tensors)


def after(done: Tensors, tensors: Tensors) -> Tensors:
  """`tensors`, of which nothing is computed before `done` is: the gate of the backward pass."""
  if tf.executing_eagerly():
    return tensors
  done, flat = tf.nest.flatten(done), tf.nest.flatten(tensors)
  if control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
    # XLA ignores control dependencies; to a barrier all results depend on all operands.
    gated = xla.optimization_barrier(*flat, *done)[: len(flat)]
  else:
    with tf.control_dependencies(done):
      gated = [tf.identity(tensor) for tensor in flat]
  return tf.nest.pack_sequence_as(tensors, gated)
