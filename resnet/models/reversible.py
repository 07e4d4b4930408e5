"""Backpropagation without storing activations (Gomez, Ren, Urtasun, Grosse 2017, section 3).

A reversible unit couples two streams by two functions of any kind, and can be undone:

    y1 = x1 + F(x2)          x2 = y2 - G(y1)
    y2 = x2 + G(y1)          x1 = y1 - F(x2)

`ReversibleChain` runs any number of such units under one custom gradient that keeps only the last
(y1, y2). F and G take turns, each adding to one stream a function of the other, so the chain is a list
of functions, F1, G1, F2, G2, ..., of which number k changes stream k % 2. The backward pass undoes them
from the last to the first. Each function runs once more, under a tape: its output, subtracted, rebuilds
the stream that it changed; its gradient goes to the other stream and to its weights.

The units between the chains, which cannot be undone since they change the shape, are for `recompute`.

What makes this exact, and small:

- Layers are run as pure functions of (weights, state, inputs) in a `keras.StatelessScope`. The state
  (moving statistics, seeds of dropout) is read once before the forward pass, so that the second run sees
  what the first one saw, and written once, after it. What a layer keeps (`keep`), as batch normalisation
  does its batch's statistics, is handed to its second run.
- The backward pass is gated: in a graph nothing else would keep all units from being rebuilt before the
  first gradient is taken, which would hold every activation after all. A unit is rebuilt when the gradients
  of the one after it are done; within a unit the rebuild of F and the gradients of G may run side by side.
- The streams keep their dtype whatever F and G compute in: a sum rounded to bfloat16 cannot be undone.

Costs: one more forward pass of every function, less what its layers keep. Limits: losses added inside F
and G (`add_loss`) are not seen, and gradients of gradients are not supported.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet.models.pure_function import PureFunction, Tensors
from resnet.models.recompute import after, rerun, unrecorded

FORMS = ("unrolled", "while_loop")


@keras.saving.register_keras_serializable("resnet")
class ReversibleChain(keras.layers.Layer):
  """Reversible units run one after the other, backpropagated without storing their activations.

  Args:
    pairs: the units' (F, G), Keras layers. F maps a stream like x2 to the shape of x1, G one like x1 to
      the shape of x2. Layers that are built already keep their variables' names; the others are built
      with the chain, in its scope.
    manual_gradients: False stores activations as ordinary backpropagation does; outputs, gradients and
      updates are the same.
    form: of the manual gradients' graph. "unrolled" has ops for every unit. "while_loop" has those of one
      unit, in a `tf.while_loop` over the stacked weights of all: a graph of the same size whatever the
      depth, for which the units' layers must be alike but for the values of their variables.

  Call arguments:
    inputs: (x1, x2), the two streams; usually [N, H, W, C] each.
    training: handed to F and G.

  Returns:
    (y1, y2), of the shapes and dtypes of (x1, x2).

  Raises:
    ValueError: pairs are not pairs, the form is unknown, or the units differ and the form is "while_loop".
  """

  def __init__(
    self,
    pairs: Sequence[tuple[keras.layers.Layer, keras.layers.Layer]],
    manual_gradients: bool = True,
    form: str = "unrolled",
    **kwargs,
  ):
    super().__init__(autocast=False, **kwargs)
    if any(len(pair) != 2 for pair in pairs):
      raise ValueError(f"pairs must be a list of (F, G), got {pairs!r}")
    if form not in FORMS:
      raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    self.functions = [function for pair in pairs for function in pair]
    if form == "while_loop":
      _require_alike(self.functions)
    self.manual_gradients = manual_gradients
    self.form = form

  def build(self, input_shape):
    for k, function in enumerate(self.functions):
      if not function.built:
        function.build(input_shape[1 - k % 2])

  def call(self, inputs, training=False):
    functions = [PureFunction(function, training) for function in self.functions]
    weights = [function.weights() for function in functions]
    states = [function.state() for function in functions]
    if not self.manual_gradients or not functions:
      outputs, states, _ = _run(functions, inputs, weights, states)
    elif self.form == "unrolled":
      outputs, states = _without_storing(_run, _undo, functions, tuple(inputs), weights, states)
    else:
      stacked = _stack(weights), _stack(states)
      outputs, states = _without_storing(_run_loop, _undo_loop, functions, tuple(inputs), *stacked)
      states = _unstack(states, len(functions))
    for function, state in zip(functions, states, strict=True):
      function.assign(state)
    return outputs

  def inverse(self, outputs, training=False):
    """The inputs that give `outputs`, rebuilt as by the backward pass. Assigns nothing.

    What layers keep is computed again, and F and G that draw random numbers draw others than they did.
    """
    streams = list(outputs)
    for k, layer in reversed(list(enumerate(self.functions))):
      target, source = k % 2, 1 - k % 2
      function = PureFunction(layer, training)
      change, *_ = function(function.weights(), function.state(), streams[source])
      streams[target] -= tf.cast(change, streams[target].dtype)
    return tuple(streams)

  def get_config(self):
    functions = [keras.saving.serialize_keras_object(function) for function in self.functions]
    pairs = list(zip(functions[::2], functions[1::2]))
    arguments = {"pairs": pairs, "manual_gradients": self.manual_gradients, "form": self.form}
    return {**super().get_config(), **arguments}

  @classmethod
  def from_config(cls, config):
    pairs = [tuple(map(keras.saving.deserialize_keras_object, pair)) for pair in config.pop("pairs")]
    return cls(pairs, **config)


def _without_storing(run, undo, functions, streams, weights, states):
  """`run`, a chain's forward pass, with `undo` for its backward pass."""

  @tf.custom_gradient
  def chain(streams, weights):
    outputs, new_states, kept = run(functions, *unrecorded((streams, weights)), states)

    def gradient(dy1, dy2, *_):
      gated = after((dy1, dy2), outputs)
      _, d_streams, d_weights = undo(functions, gated, (dy1, dy2), weights, states, kept)
      return d_streams, d_weights

    return (outputs, new_states), gradient

  return chain(streams, weights)


def _run(functions, streams, weights, states):
  """Forward pass: ((y1, y2), the functions' new states, what they kept for their second run)."""
  streams, new_states, kept = list(streams), [], []
  for k, function in enumerate(functions):
    target, source = k % 2, 1 - k % 2
    change, new_state, kept_here = function(weights[k], states[k], streams[source])
    streams[target] += tf.cast(change, streams[target].dtype)
    new_states.append(new_state)
    kept.append(kept_here)
  return tuple(streams), new_states, kept


def _undo(functions, streams, d_streams, weights, states, kept):
  """Backward pass, from (y1, y2) and their gradients: ((x1, x2), their gradients, those of the weights)."""
  streams, d_streams, d_weights = list(streams), list(d_streams), []
  for k, function in reversed(list(enumerate(functions))):
    target, source = k % 2, 1 - k % 2
    change, d_source, d_weight = rerun(
      function, weights[k], states[k], kept[k], streams[source], d_streams[target]
    )
    streams[target] -= tf.cast(change, streams[target].dtype)
    d_streams[source] += tf.cast(d_source, d_streams[source].dtype)
    d_weights.append(d_weight)
    if k % 2 == 0:
      streams = after((d_streams, d_weights[-2:]), streams)
  return tuple(streams), tuple(d_streams), d_weights[::-1]


def _run_loop(functions, streams, weights, states):
  """`_run` as a loop over units, whose weights and states are stacked.

  Nothing is kept for the second run: carrying it saved no time.
  """
  unit = functions[:2]

  def step(index, streams):
    streams, new_state, _ = _run(unit, streams, _entry(weights, index), _entry(states, index))
    return streams, new_state

  outputs, new_states = _loop(step, streams, states, range(len(functions) // 2))
  for k, function in enumerate(functions):
    function.changed |= unit[k % 2].changed
  return outputs, new_states, [None, None]


def _undo_loop(functions, streams, d_streams, weights, states, kept):
  """`_undo` as a loop over units, whose weights and states, and the weights' gradients, are stacked."""

  def step(index, carried):
    weight, state = _entry(weights, index), _entry(states, index)
    streams, d_streams, d_weight = _undo(functions[:2], *carried, weight, state, kept)
    return (streams, d_streams), d_weight

  last_to_first = range(len(functions) // 2)[::-1]
  (streams, d_streams), d_weights = _loop(step, (streams, d_streams), weights, last_to_first)
  return streams, d_streams, d_weights


def _loop(step: Callable, carried: Tensors, like: Tensors, indices: range) -> tuple[Tensors, Tensors]:
  """carried, output = step(index, carried), for each index: (the last carried, the outputs stacked by index).

  `like` has the structure, shapes and dtypes of the stacked outputs.
  """

  def body(index, carried, arrays):
    carried, output = step(index, carried)
    arrays = tf.nest.map_structure(lambda array, entry: array.write(index, entry), arrays, output)
    return index + indices.step, carried, arrays

  arrays = tf.nest.map_structure(
    lambda stacked: tf.TensorArray(stacked.dtype, len(indices), element_shape=stacked.shape[1:]), like
  )
  _, carried, arrays = tf.while_loop(
    lambda index, *_: tf.not_equal(index, indices.stop),
    body,
    (tf.constant(indices.start), carried, arrays),
    parallel_iterations=1,  # More would hold more than one unit's activations.
    maximum_iterations=len(indices),
  )
  return carried, tf.nest.map_structure(lambda array: array.stack(), arrays)


def _stack(values: list[list[tf.Tensor]]) -> list[list[tf.Tensor]]:
  """From a list of tensors for each function to one for F and one for G, each tensor stacked by unit."""
  return [[tf.stack(entries) for entries in zip(*values[k::2], strict=True)] for k in (0, 1)]


def _entry(stacked: Tensors, index: tf.Tensor) -> Tensors:
  return tf.nest.map_structure(lambda tensor: tf.gather(tensor, index), stacked)


def _unstack(stacked: list[list[tf.Tensor]], functions: int) -> list[list[tf.Tensor]]:
  """The inverse of `_stack`."""
  by_unit = [[tf.unstack(tensor, functions // 2) for tensor in tensors] for tensors in stacked]
  return [[entries[k // 2] for entries in by_unit[k % 2]] for k in range(functions)]


def _require_alike(functions: list[keras.layers.Layer]) -> None:
  """Raises ValueError unless the Fs are of one configuration, and the Gs."""
  for k, function in enumerate(functions):
    if _configuration(function) != _configuration(functions[k % 2]):
      raise ValueError(
        f"form 'while_loop' needs units that are alike, but {'FG'[k % 2]} of unit {k // 2} is configured "
        f"otherwise than that of unit 0; use form 'unrolled'"
      )


def _configuration(layer: keras.layers.Layer) -> Any:
  """What a layer is, but for the names and seeds in it."""

  def anonymous(config):
    if isinstance(config, dict):
      return {
        key: anonymous(value) for key, value in config.items() if key not in ("name", "seed", "build_config")
      }
    return [anonymous(item) for item in config] if isinstance(config, list | tuple) else config

  return anonymous(keras.saving.serialize_keras_object(layer))
