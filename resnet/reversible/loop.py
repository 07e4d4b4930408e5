"""Units that are alike as a `tf.while_loop` over stacked weights and states: a graph of the size of one unit's."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from resnet.reversible.arguments import Call
from resnet.reversible.custom_vjp import Boundary, Tensors
from resnet.reversible.masks import Mask
from resnet.reversible.ordering import wait_for
from resnet.reversible.plain import Streams
from resnet.reversible.segments import Values, assign, forward, stored_less, sums, undo
from resnet.reversible.step import Context, Residuals, StatelessStep

Entries = dict[
  Any, tf.Tensor
]  # (k, i): tensor i of step k of a unit, or its mask (i = -1), for one unit or stacked


def run_loop(
  units: list[list[StatelessStep]], streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """A segment of units that are alike. Keeping tensors in it saved no time.

  Raises:
    ValueError: units share a layer whose state changes; change which streams carry masks; or speak to other
      devices.
  """
  steps = units[0]  # They stand for those of all units.
  weights, states = _stacked(units, lambda step: step.weights()), _stacked(units, lambda step: step.state())
  boundary = Boundary((streams, weights, call.context))
  streams, weights, context = boundary.given
  outputs, masks, updates, residuals = _forward(steps, len(units), streams, masks, weights, states, context)

  def undo_units(steps: list[StatelessStep], *values: Any) -> tuple[Streams, Streams, Values, Context]:
    return _undo(steps, len(units), *values)

  outputs = stored_less(call.name, boundary, outputs, undo_units, steps, residuals)
  for unit, entries in zip(units, _unstacked(units, updates), strict=True):
    assign(unit, entries)
  return outputs, masks


def _forward(
  steps: list[StatelessStep],
  number: int,
  streams: Streams,
  masks: list[Mask],
  weights: Values,
  states: Values,
  context: Context,
) -> tuple[Streams, list[Mask], Entries, list[Residuals]]:
  """`forward` of so many units; weights and states are stacked, and so are updates and residuals."""
  masked = [mask is not None for mask in masks]

  def unit(index: tf.Tensor, carried: Tensors) -> tuple[Tensors, Entries]:
    streams, present = carried
    masks = [present.get(k) for k in (0, 1)]
    streams, masks, output, residuals = forward(
      steps, streams, masks, _entry(weights, index), _entry(states, index), context
    )
    if [mask is not None for mask in masks] != masked:
      raise ValueError(
        f"loop=True needs units that hand Keras' masks on, but behind {' and '.join(step.name for step in steps)} "
        f"the streams carry {_names(masks)}, before it {_names(masked)}; set supports_masking = True in these "
        "layers, or loop=False"
      )
    output = dict(output) | {(k, -1): r.mask for k, r in enumerate(residuals) if r.mask is not None}
    return (streams, _present(masks)), output

  variables = [[*state, *weight] for state, weight in zip(states, weights, strict=True)]
  like = {key: (stacked.dtype, stacked.shape[1:]) for key, stacked in _entries(variables).items()}
  for k, step in enumerate(steps):
    if (mask := masks[step.step.source]) is not None:
      like[k, -1] = (mask.dtype, mask.shape)
  (streams, present), output = _loop(unit, (list(streams), _present(masks)), like, range(number))
  residuals = [Residuals(state, output.pop((k, -1), None)) for k, state in enumerate(states)]
  return streams, [present.get(k) for k in (0, 1)], output, residuals


def _undo(
  steps: list[StatelessStep],
  number: int,
  streams: Streams,
  d_streams: Streams,
  weights: Values,
  residuals: list[Residuals],
  context: Context,
) -> tuple[Streams, Streams, Values, Context]:
  """`undo` of so many units; weights, their gradients, and states and masks in the residuals are stacked."""

  def unit(index: tf.Tensor, carried: Tensors) -> tuple[Tensors, Entries]:
    streams, d_streams, d_context = carried
    here = [Residuals(_entry(r.state, index), _entry(r.mask, index)) for r in residuals]
    streams, d_streams, d_weights, d_here = undo(
      steps, streams, d_streams, _entry(weights, index), here, context
    )
    return (streams, d_streams, sums(d_context, d_here)), _entries(d_weights)

  carried = (list(streams), list(d_streams), [tf.zeros_like(tensor) for tensor in context])
  like = {key: (stacked.dtype, stacked.shape[1:]) for key, stacked in _entries(weights).items()}
  (streams, d_streams, d_context), output = _loop(unit, carried, like, range(number)[::-1])
  d_weights = [[output[k, i] for i in range(len(weight))] for k, weight in enumerate(weights)]
  streams, d_streams = wait_for((d_weights, d_context), (streams, d_streams))  # Rule 2.
  return streams, d_streams, d_weights, d_context


def _stacked(units: list[list[StatelessStep]], values: Callable) -> Values:
  """For each step of a unit its tensors, each stacked over the units."""
  of_steps = ([values(step) for step in same] for same in zip(*units, strict=True))
  return [[tf.stack(entries) for entries in zip(*of_step, strict=True)] for of_step in of_steps]


def _unstacked(units: list[list[StatelessStep]], updates: Entries) -> list[Entries]:
  """The updates of each unit.

  Raises:
    ValueError: steps share a layer whose state changes.
  """
  changed = [id(unit[k].variables[i]) for k, i in updates for unit in units]
  for k, i in updates:
    for unit in units:
      if changed.count(id(variable := unit[k].variables[i])) > 1:
        raise ValueError(
          f"loop=True needs functions whose states are their own, but {unit[k].name} shares {variable.path!r}, "
          "which changes, with another function; use loop=False"
        )
  of_units = {key: tf.unstack(tensor, len(units)) for key, tensor in updates.items()}
  return [{key: tensors[n] for key, tensors in of_units.items()} for n in range(len(units))]


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
      "loop=True cannot hold layers that speak to other devices, such as synchronised batch normalisation; use "
      "loop=False"
    ) from error
  return carried, {key: arrays[key].stack() for key in like if key in written}


def _entry(stacked: Tensors, index: tf.Tensor) -> Tensors:
  return tf.nest.map_structure(lambda tensor: None if tensor is None else tf.gather(tensor, index), stacked)


def _entries(tensors: Values) -> Entries:
  return {(k, i): tensor for k, of_step in enumerate(tensors) for i, tensor in enumerate(of_step)}


def _present(masks: Sequence[Mask]) -> dict[int, tf.Tensor]:
  return {k: mask for k, mask in enumerate(masks) if mask is not None}


def _names(masks: Sequence[Any]) -> str:
  return " and ".join("a mask" if mask is not None and mask is not False else "none" for mask in masks)
