"""The chain as a `tf.while_loop` over stacked weights and states: a graph of the size of one unit's."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet.reversible.coupling import Coupling
from resnet.reversible.gate import Tensors, after
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
  first = len(weights) - 2  # of the loop
  streams, before, records = run(turns[:first], streams, weights[:first], states[:first], context)
  turns, weights, states = turns[first:], weights[first:], states[first:]

  def step(index, streams):
    streams, updates, _ = run(turns[:2], streams, _entry(weights, index), _entry(states, index), context)
    return streams, updates

  streams, updates = _loop(step, list(streams), _entries(states), range(len(turns) // 2))
  updates = before | {(first + k, i): value for (k, i), value in updates.items()}
  return streams, updates, [*records, *map(Record, states)]


def undo_loop(turns, streams, d_streams, weights, records, context, variables):
  """`undo` for stacked weights, and stacked states in the records; so are the weights' gradients."""
  first = len(weights) - 2  # of the loop
  before = (turns[:first], weights[:first], records[:first])
  turns, weights = turns[first:], weights[first:]
  states = [record.state for record in records[first:]]

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
  in_loop = [[d_weights[k, i] for i in range(len(weights[k]))] for k in (0, 1)]
  streams, d_streams = after((in_loop, d_shared), (streams, d_streams))
  turns, weights, records = before
  streams, d_streams, d_weights, d_here = undo(turns, streams, d_streams, weights, records, context, variables)
  d_shared = [total if d is None else total + d for total, d in zip(d_shared, d_here, strict=True)]
  return streams, d_streams, [*d_weights, *in_loop], d_shared


def stack(values: list[list[tf.Tensor]], first: int) -> list[list[tf.Tensor]]:
  """From a list of tensors for each function to one list for F and one for G, each tensor stacked by unit.

  The lists of the functions before number `first` come before these two as they are.
  """
  stacked = [[tf.stack(entries) for entries in zip(*values[first + k :: 2], strict=True)] for k in (0, 1)]
  return [*values[:first], *stacked]


def unstack(turns: list[Turn], updates: Entries, first: int) -> Updates:
  """The updates of `run_loop` in the form of `run`'s.

  Raises:
    ValueError: units share a layer whose state changes.
  """
  unstacked: Updates = {key: value for key, value in updates.items() if key[0] < first}
  changed = {id(turns[k].state_variables[i]) for k, i in unstacked}
  for (k, i), tensor in updates.items():
    if k < first:
      continue
    variables = [turn.state_variables[i] for turn in turns[k::2]]
    owned = set(map(id, variables)) - changed
    if len(owned) < len(variables):
      raise ValueError(
        f"form 'while_loop' needs units whose states are their own, but {turns[k].name} shares "
        f"{variables[0].path!r}, which changes, with other units; use form 'unrolled'"
      )
    unstacked |= {(k + 2 * unit, i): value for unit, value in enumerate(tf.unstack(tensor, len(variables)))}
  return unstacked


def count_before_loop(functions: list[keras.layers.Layer], couplings: Sequence[Coupling]) -> int:
  """The number of functions that cannot be in the loop: 0, or 2 if unit 0 is of another kind than the others.

  Raises:
    ValueError: other units differ, or have a coupling without an inverse.
  """
  kinds = [(_configuration(function), _configuration(couplings[k])) for k, function in enumerate(functions)]
  for k, function in enumerate(functions[2:], start=2):
    if kinds[k] != kinds[2 + k % 2] or not couplings[k].invertible:
      raise ValueError(
        f"form 'while_loop' needs units after unit 0 that are alike and can be undone, but "
        f"{function_name(k, function)} is not like that of unit 1, or its coupling has no inverse; use form "
        "'unrolled'"
      )
  alike = kinds[:2] == kinds[2:4] or not kinds[2:]
  return 0 if alike and all(coupling.invertible for coupling in couplings) else 2


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
