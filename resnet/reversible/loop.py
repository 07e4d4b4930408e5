"""The chain as a `tf.while_loop` over stacked weights and states: a graph of the size of one unit's."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet.reversible.checks import function_name
from resnet.reversible.coupling import Coupling
from resnet.reversible.custom_vjp import Tensors
from resnet.reversible.gate import after
from resnet.reversible.masks import Mask
from resnet.reversible.plain import Streams
from resnet.reversible.turn import Record, Turn
from resnet.reversible.unrolled import Updates, run, sums, undo

Entries = dict[
  Any, tf.Tensor
]  # (k, i): tensor i of F (k = 0) or G (k = 1), or its mask (i = -1), for one unit or stacked


def run_loop(
  turns: list[Turn],
  streams: Streams,
  masks: list[Mask],
  weights: list[list[tf.Tensor]],
  states: list[list[tf.Tensor]],
  context: list[tf.Tensor],
) -> tuple[Streams, list[Mask], Entries, list[Record]]:
  """`run` for weights and states stacked by `stack`; so are the updates. Keeping tensors saved no time."""
  first = len(weights) - 2  # of the loop
  streams, masks, before, records = run(turns[:first], streams, masks, weights[:first], states[:first], context)
  turns, weights, states = turns[first:], weights[first:], states[first:]
  masked = [mask is not None for mask in masks]

  def step(index: tf.Tensor, carried: Tensors) -> tuple[Tensors, Entries]:
    streams, present = carried
    masks = [present.get(k) for k in (0, 1)]
    streams, masks, output, taken = run(
      turns[:2], streams, masks, _entry(weights, index), _entry(states, index), context
    )
    if [mask is not None for mask in masks] != masked:
      raise ValueError(
        f"form 'while_loop' needs units that hand Keras' masks on, but behind {turns[0].name} and "
        f"{turns[1].name} the streams carry {_names(masks)}, before it {_names(masked)}; set "
        "supports_masking = True in these layers, or use form 'unrolled'"
      )
    output = dict(output) | {(k, -1): taken[k].mask for k in (0, 1) if taken[k].mask is not None}
    return (streams, _present(masks)), output

  variables = [[*state, *weight] for state, weight in zip(states, weights, strict=True)]
  like = {key: (stacked.dtype, stacked.shape[1:]) for key, stacked in _entries(variables).items()}
  like |= {(k, -1): (masks[1 - k].dtype, masks[1 - k].shape) for k in (0, 1) if masked[1 - k]}
  (streams, present), output = _loop(step, (list(streams), _present(masks)), like, range(len(turns) // 2))
  masks = [present.get(k) for k in (0, 1)]
  records += [Record(states[k], output.pop((k, -1), None)) for k in (0, 1)]
  updates = before | {(first + k, i): value for (k, i), value in output.items()}
  return streams, masks, updates, records


def undo_loop(
  turns: list[Turn],
  streams: Streams,
  d_streams: Streams,
  weights: list[list[tf.Tensor]],
  records: list[Record],
  context: list[tf.Tensor],
) -> tuple[Streams, Streams, list[list[tf.Tensor]], list[tf.Tensor | None]]:
  """`undo` for stacked weights, and stacked states and masks in the records; so are the weights' gradients."""
  first = len(weights) - 2  # of the loop
  before = (turns[:first], weights[:first], records[:first])
  turns, weights, records = turns[first:], weights[first:], records[first:]

  def step(index: tf.Tensor, carried: Tensors) -> tuple[Tensors, Entries]:
    streams, d_streams, d_context = carried
    unit = [Record(_entry(record.state, index), _entry(record.mask, index)) for record in records]
    streams, d_streams, d_weights, d_here = undo(
      turns[:2], streams, d_streams, _entry(weights, index), unit, context
    )
    return (streams, d_streams, sums(d_context, d_here)), _entries(d_weights)

  last_to_first = range(len(turns) // 2)[::-1]
  carried = (list(streams), list(d_streams), [tf.zeros_like(tensor) for tensor in context])
  like = {key: (stacked.dtype, stacked.shape[1:]) for key, stacked in _entries(weights).items()}
  (streams, d_streams, d_context), in_units = _loop(step, carried, like, last_to_first)
  in_loop = [[in_units[k, i] for i in range(len(weights[k]))] for k in (0, 1)]
  streams, d_streams = after((in_loop, d_context), (streams, d_streams))
  turns, weights, records = before
  streams, d_streams, d_weights, d_here = undo(turns, streams, d_streams, weights, records, context)
  return streams, d_streams, [*d_weights, *in_loop], sums(d_context, d_here)


def stack(values: list[list[tf.Tensor]], first: int) -> list[list[tf.Tensor]]:
  """From a list of tensors for each function to one list for F and one for G, each tensor stacked by unit.

  The lists of the functions before number `first` come before these two as they are.
  """
  stacked = [[tf.stack(entries) for entries in zip(*values[first + k :: 2], strict=True)] for k in (0, 1)]
  return [*values[:first], *stacked]


def unstack(turns: list[Turn], updates: Entries, first: int) -> Updates:
  """The updates of `run_loop` in the form of `run`'s.

  Raises:
    ValueError: functions share a layer whose state changes.
  """
  unstacked: Updates = {key: value for key, value in updates.items() if key[0] < first}
  changed = [id(turns[k].variables[i]) for k, i in unstacked]
  changed += [id(turn.variables[i]) for k, i in updates if k >= first for turn in turns[k::2]]
  for (k, i), tensor in updates.items():
    if k < first:
      continue
    variables = [turn.variables[i] for turn in turns[k::2]]
    for turn, variable in zip(turns[k::2], variables):
      if changed.count(id(variable)) > 1:
        raise ValueError(
          f"form 'while_loop' needs functions whose states are their own, but {turn.name} shares "
          f"{variable.path!r}, which changes, with another function; use form 'unrolled'"
        )
    unstacked |= {(k + 2 * unit, i): value for unit, value in enumerate(tf.unstack(tensor, len(variables)))}
  return unstacked


def count_before_loop(functions: list[keras.layers.Layer], couplings: Sequence[Coupling]) -> int:
  """The number of functions that cannot be in the loop: 0, or 2 if unit 0 is of another kind than the others.

  Raises:
    ValueError: other units differ, or have a coupling without an inverse.
  """
  layers = [[function, couplings[k]] for k, function in enumerate(functions)]
  kinds = [(list(map(_configuration, pair)), _variables(pair)) for pair in layers]
  for k, function in enumerate(functions[2:], start=2):
    if kinds[k] != kinds[2 + k % 2] or not couplings[k].invertible:
      raise ValueError(
        f"form 'while_loop' needs units after unit 0 that are alike and can be undone, but "
        f"{function_name(k, function)} is not like that of unit 1{_difference(layers[k], layers[2 + k % 2])}, "
        "or its coupling has no inverse; make units alike, or use form 'unrolled'"
      )
  alike = kinds[:2] == kinds[2:4] or not kinds[2:]
  return 0 if alike and all(coupling.invertible for coupling in couplings) else 2


def _loop(step: Callable, carried: Tensors, like: dict[Any, tuple], indices: range) -> tuple[Tensors, Entries]:
  """carried, output = step(index, carried), for each index: (the last carried, the outputs stacked by index).

  An output may have any of the keys of `like`, which says their dtypes and shapes.

  Raises:
    ValueError: a layer in the loop wants to speak to other devices.
  """
  written: set = set()

  def body(index: tf.Tensor, carried: Tensors, arrays: dict[Any, tf.TensorArray]) -> tuple:
    carried, output = step(index, carried)
    written.update(output)
    arrays = {key: array.write(index, output[key]) if key in output else array for key, array in arrays.items()}
    return index + indices.step, carried, arrays

  arrays = {
    key: tf.TensorArray(dtype, len(indices), element_shape=shape) for key, (dtype, shape) in like.items()
  }
  try:
    _, carried, arrays = tf.while_loop(
      lambda index, *_: tf.not_equal(index, indices.stop),
      body,
      (tf.constant(indices.start), carried, arrays),
      parallel_iterations=1,  # More would hold more than one unit's activations.
      maximum_iterations=len(indices),
    )
  except RuntimeError as error:
    if "merge_call" not in str(error):
      raise
    raise ValueError(
      "form 'while_loop' cannot hold layers that speak to other devices, such as synchronised batch "
      "normalisation; use form 'unrolled'"
    ) from error
  return carried, {key: arrays[key].stack() for key in like if key in written}


def _entry(stacked: Tensors, index: tf.Tensor) -> Tensors:
  return tf.nest.map_structure(lambda tensor: None if tensor is None else tf.gather(tensor, index), stacked)


def _entries(tensors: list[list[tf.Tensor]]) -> Entries:
  return {(k, i): tensor for k in (0, 1) for i, tensor in enumerate(tensors[k])}


def _present(masks: Sequence[Mask]) -> dict[int, tf.Tensor]:
  return {k: mask for k, mask in enumerate(masks) if mask is not None}


def _names(masks: Sequence[Any]) -> str:
  return " and ".join("a mask" if mask is not None and mask is not False else "none" for mask in masks)


def _configuration(layer: keras.layers.Layer) -> Any:
  """A layer's configuration without names, seeds and the shapes that it was built for."""

  config = keras.saving.serialize_keras_object(layer)
  names: dict[str, int] = {}  # of all layers within, by which a functional model connects them

  def find_names(config: Any) -> None:
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
      if key == "name" and isinstance(value, str):
        names.setdefault(value, len(names))
      elif isinstance(value, dict | list | tuple):
        find_names(value)

  def anonymous(config: Any) -> Any:
    if isinstance(config, dict):
      return {key: anonymous(value) for key, value in config.items() if key not in ("seed", "build_config")}
    if isinstance(config, list | tuple):
      return [anonymous(item) for item in config]
    return names.get(config, config) if isinstance(config, str) else config

  find_names(config)
  return anonymous(config)


def _variables(layers: Sequence[keras.layers.Layer]) -> list[str]:
  """What the variables of layers are, in the order in which they were made."""
  return [
    f"{re.sub('[0-9]', '', variable.name)}: {'trained' if variable.trainable else 'frozen'}, "
    f"{variable.dtype}, of shape {tuple(variable.shape)}"
    for layer in layers
    for variable in layer.variables
  ]


def _difference(one: Sequence[keras.layers.Layer], other: Sequence[keras.layers.Layer]) -> str:
  """The first variable of `one` that is not as in `other`, in words; nothing if there is none."""
  paths = [variable.path for layer in one for variable in layer.variables]
  for path, mine, theirs in zip(paths, _variables(one), _variables(other)):
    if mine != theirs:
      return f" ({path!r} is {mine}; there it is {theirs})"
  return ""
