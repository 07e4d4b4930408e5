"""Backpropagation without storing activations (Gomez, Ren, Urtasun, Grosse 2017, section 3).

A reversible unit couples two streams by two functions of any kind, and can be undone:

    y1 = x1 + F(x2)          x2 = y2 - G(y1)
    y2 = x2 + G(y1)          x1 = y1 - F(x2)

`ReversibleChain` runs any number of such units under one custom gradient that keeps only the last
(y1, y2). F and G take turns, each adding to one stream a function of the other, so the chain is a list
of functions, F1, G1, F2, G2, ..., of which number k changes stream k % 2. The backward pass undoes them
from the last to the first. Each function runs once more, under a tape: its output, subtracted, rebuilds
the stream that it changed; its gradient goes to the other stream and to its weights.

`recompute` is for the units between the chains, which cannot be undone since they change the shape: it
keeps a layer's input and runs the layer again in the backward pass.

What makes this exact, and small:

- Layers are run as pure functions of (weights, state, inputs) in a `keras.StatelessScope`. The state
  (moving statistics, seeds of dropout) is read once before the forward pass, so that the second run sees
  what the first one saw, and written once, after it.
- The backward pass is gated: in a graph nothing else would keep all units from being rebuilt before the
  first gradient is taken, which would hold every activation after all.
- The streams keep their dtype whatever F and G compute in: a sum rounded to bfloat16 cannot be undone.

Costs: one more forward pass of every function. Limits: losses added inside F and G (`add_loss`) are not
seen, and gradients of gradients are not supported.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.ops import control_flow_util

Tensors = Any  # a tensor, or lists and tuples of them


@keras.saving.register_keras_serializable("resnet")
class ReversibleChain(keras.layers.Layer):
  """Reversible units run one after the other, backpropagated without storing their activations.

  Args:
    pairs: the units' (F, G), Keras layers. F maps a stream like x2 to the shape of x1, G one like x1 to
      the shape of x2. Layers that are built already keep their variables' names; the others are built
      with the chain, in its scope.
    manual_gradients: False stores activations as ordinary backpropagation does; outputs, gradients and
      updates are the same.

  Call arguments:
    inputs: (x1, x2), the two streams; usually [N, H, W, C] each.
    training: handed to F and G.

  Returns:
    (y1, y2), of the shapes and dtypes of (x1, x2).
  """

  def __init__(
    self,
    pairs: Sequence[tuple[keras.layers.Layer, keras.layers.Layer]],
    manual_gradients: bool = True,
    **kwargs,
  ):
    super().__init__(autocast=False, **kwargs)
    if any(len(pair) != 2 for pair in pairs):
      raise ValueError(f"pairs must be a list of (F, G), got {pairs!r}")
    self.functions = [function for pair in pairs for function in pair]
    self.manual_gradients = manual_gradients

  def build(self, input_shape):
    for k, function in enumerate(self.functions):
      if not function.built:
        function.build(input_shape[1 - k % 2])

  def call(self, inputs, training=False):
    functions = [PureFunction(function, training) for function in self.functions]
    weights = [function.weights() for function in functions]
    run = _run_without_storing if self.manual_gradients else _run
    outputs, states = run(functions, tuple(inputs), weights)
    for function, state in zip(functions, states, strict=True):
      function.assign(state)
    return outputs

  def get_config(self):
    functions = [keras.saving.serialize_keras_object(function) for function in self.functions]
    pairs = list(zip(functions[::2], functions[1::2]))
    return {**super().get_config(), "pairs": pairs, "manual_gradients": self.manual_gradients}

  @classmethod
  def from_config(cls, config):
    pairs = [tuple(map(keras.saving.deserialize_keras_object, pair)) for pair in config.pop("pairs")]
    return cls(pairs, **config)


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

  @tf.custom_gradient
  def run(inputs, weights):
    outputs, state = function(*_unrecorded((weights, inputs)))

    def gradient(*upstream):
      d_outputs = tf.nest.pack_sequence_as(outputs, upstream[: len(tf.nest.flatten(outputs))])
      _, d_inputs, d_weights = _rerun(function, weights, _after(d_outputs, inputs), d_outputs)
      return d_inputs, d_weights

    return (outputs, state), gradient

  outputs, state = run(inputs, function.weights())
  function.assign(state)
  return outputs


class PureFunction:
  """A built layer as a function without side effects: (weights, inputs) -> (outputs, new state).

  Args:
    layer: the layer. Its state (variables that are not trained) is read here and now, as tensors: the
      variables themselves would give the second run what the first one left in them.
    training: handed to the layer.
  """

  def __init__(self, layer: keras.layers.Layer, training: bool):
    self._layer = layer
    self._training = training
    self._state = [tf.convert_to_tensor(v.value) for v in layer.non_trainable_variables]

  def weights(self) -> list[tf.Tensor]:
    """The layer's trainable variables, read."""
    return [tf.convert_to_tensor(v.value) for v in self._layer.trainable_variables]

  def __call__(self, weights: list[tf.Tensor], inputs: Tensors) -> tuple[Tensors, dict[int, tf.Tensor]]:
    """(outputs, new values of the state that changed, by index)."""
    state_variables = self._layer.non_trainable_variables
    variables = self._layer.trainable_variables + state_variables
    with keras.StatelessScope(zip(variables, weights + self._state, strict=True)) as scope:
      before = [scope.get_current_value(v) for v in state_variables]
      outputs = self._layer(inputs, training=self._training)
    now = [scope.get_current_value(v) for v in state_variables]
    return outputs, {i: new for i, (old, new) in enumerate(zip(before, now, strict=True)) if new is not old}

  def assign(self, state: dict[int, tf.Tensor]) -> None:
    """Writes the new state that a call returned to the layer's variables."""
    for index, value in state.items():
      self._layer.non_trainable_variables[index].assign(value)


def _run(functions, streams, weights):
  """Forward pass of a chain: ((y1, y2), the functions' new states)."""
  streams, states = list(streams), []
  for k, function in enumerate(functions):
    target, source = k % 2, 1 - k % 2
    change, state = function(weights[k], streams[source])
    streams[target] += tf.cast(change, streams[target].dtype)
    states.append(state)
  return tuple(streams), states


def _run_without_storing(functions, streams, weights):
  """`_run`, with a backward pass that rebuilds the streams from the chain's outputs."""

  @tf.custom_gradient
  def run(streams, weights):
    outputs, states = _run(functions, *_unrecorded((streams, weights)))

    def gradient(dy1, dy2, *_):
      d_streams, d_weights = [dy1, dy2], []
      streams = _after(d_streams, list(outputs))
      for k in reversed(range(len(functions))):
        target, source = k % 2, 1 - k % 2
        change, d_source, d_weight = _rerun(functions[k], weights[k], streams[source], d_streams[target])
        streams[target] -= tf.cast(change, streams[target].dtype)
        d_streams[source] += tf.cast(d_source, d_streams[source].dtype)
        d_weights.append(d_weight)
        streams = _after((d_streams, d_weight), streams)
      return tuple(d_streams), d_weights[::-1]

    return (outputs, states), gradient

  return run(streams, weights)


def _rerun(function, weights, inputs, d_outputs):
  """(outputs, their gradient with respect to inputs, with respect to weights)."""
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch((inputs, weights))
    outputs, _ = function(weights, inputs)
  d_outputs = tf.nest.map_structure(lambda d, y: tf.cast(d, y.dtype), d_outputs, outputs)
  d_inputs, d_weights = tape.gradient(
    outputs, (inputs, weights), d_outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO
  )
  return outputs, d_inputs, d_weights


def _unrecorded(tensors: Tensors) -> Tensors:
  """`tensors`, unknown to the tapes of eager mode, which would store what is computed from them."""
  return tf.nest.map_structure(tf.stop_gradient, tensors)


def _after(done: Tensors, tensors: Tensors) -> Tensors:
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
