"""The chain as a `tf.while_loop` over stacked weights and states: a graph of the size of one unit's."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from resnet.reversible.gate import Tensors
from resnet.reversible.turn import Record, Streams, Turn, function_name
from resnet.reversible.unrolled import Updates, run, undo

Entries = dict[
  tuple[int, int], tf.Tensor
]  # (k, i): tensor i of F (k = 0) or G (k = 1), for one unit or stacked


def run_loop(
  turns: list[Turn],
  streams: Streams,
  weights: list[list[tf.Tensor]],
  states: list[list[tf.Tensor]],
  context: list[tf.Tensor],
) -> tuple[Streams, Entries, list[Record]]:
  """`run` for weights and states stacked by `stack`; so are the updates. Keeping tensors saved no time."""

  def step(index, streams):
    streams, updates, _ = run(turns[:2], streams, _entry(weights, index), _entry(states, index), context)
    return streams, updates

  streams, updates = _loop(step, list(streams), _entries(states), range(len(turns) // 2))
  return streams, updates, [Record(state) for state in states]


def undo_loop(turns, streams, d_streams, weights, records, context, variables):
  """`undo` for stacked weights, and stacked states in the records; so are the weights' gradients."""
  states = [record.state for record in records]

  def step(index, carried):
    streams, d_streams, d_shared = carried
    unit = [Record(state) for state in _entry(states, index)]
    streams, d_streams, d_weights, d_here = undo(
      turns[:2], streams, d_streams, _entry(weights, index), unit, context, variables
    )
    d_shared = [total if d is None else total + d for total, d in zip(d_shared, d_here, strict=True)]
    return (streams, d_streams, d_shared), _entries(d_weights)

  last_to_first = range(len(turns) // 2)[::-1]
  zeros = [tf.zeros_like(tensor) for tensor in [*context, *variables]]
  carried = (list(streams), list(d_streams), zeros)
  (streams, d_streams, d_shared), d_weights = _loop(step, carried, _entries(weights), last_to_first)
  return streams, d_streams, [[d_weights[k, i] for i in range(len(weights[k]))] for k in (0, 1)], d_shared


def stack(values: list[list[tf.Tensor]]) -> list[list[tf.Tensor]]:
  """From a list of tensors for each function to one list for F and one for G, each tensor stacked by unit."""
  return [[tf.stack(entries) for entries in zip(*values[k::2], strict=True)] for k in (0, 1)]


def unstack(turns: list[Turn], updates: Entries) -> Updates:
  """The updates of `run_loop` in the form of `run`'s.

  To be called outside the custom gradient, whose number of ops grows with that of its outputs.

  Raises:
    ValueError: units share a layer whose state changes.
  """
  units = len(turns) // 2
  unstacked: Updates = {}
  for (k, i), tensor in updates.items():
    variables = [turn.state_variables[i] for turn in turns[k::2]]
    if len(set(map(id, variables))) < units:
      raise ValueError(
        f"form 'while_loop' needs units whose states are their own, but {turns[k].name} shares "
        f"{variables[0].path!r}, which changes, with other units; use form 'unrolled'"
      )
    unstacked |= {(2 * unit + k, i): value for unit, value in enumerate(tf.unstack(tensor, units))}
  return unstacked


def require_alike(functions: list[keras.layers.Layer]) -> None:
  """Raises ValueError unless all Fs have the same configuration, and all Gs."""
  for k, function in enumerate(functions):
    if _configuration(function) != _configuration(functions[k % 2]):
      raise ValueError(
        f"form 'while_loop' needs units that are alike, but {function_name(k, function)} is configured "
        "otherwise than that of unit 0; use form 'unrolled'"
      )


def _loop(step: Callable, carried: Tensors, like: Entries, indices: range) -> tuple[Tensors, Entries]:
  """carried, output = step(index, carried), for each index: (the last carried, the outputs stacked by index).

  An output may have any of the keys of `like`, which has the shapes and dtypes of the stacked outputs.
  """
  written: set[tuple[int, int]] = set()

  def body(index, carried, arrays):
    carried, output = step(index, carried)
    written.update(output)
    arrays = {key: array.write(index, output[key]) if key in output else array for key, array in arrays.items()}
    return index + indices.step, carried, arrays

  arrays = {
    key: tf.TensorArray(stacked.dtype, len(indices), element_shape=stacked.shape[1:])
    for key, stacked in like.items()
  }
  _, carried, arrays = tf.while_loop(
    lambda index, *_: tf.not_equal(index, indices.stop),
    body,
    (tf.constant(indices.start), carried, arrays),
    parallel_iterations=1,  # More would hold more than one unit's activations.
    maximum_iterations=len(indices),
  )
  return carried, {key: arrays[key].stack() for key in sorted(written)}


def _entry(stacked: Tensors, index: tf.Tensor) -> Tensors:
  return tf.nest.map_structure(lambda tensor: tf.gather(tensor, index), stacked)


def _entries(tensors: list[list[tf.Tensor]]) -> Entries:
  return {(k, i): tensor for k in (0, 1) for i, tensor in enumerate(tensors[k])}


def _configuration(layer: keras.layers.Layer) -> Any:
  """A layer's configuration without names, seeds and the shapes that it was built for."""

  def anonymous(config):
    if isinstance(config, dict):
      return {
        key: anonymous(value) for key, value in config.items() if key not in ("name", "seed", "build_config")
      }
    return [anonymous(item) for item in config] if isinstance(config, list | tuple) else config

  return anonymous(keras.saving.serialize_keras_object(layer))
