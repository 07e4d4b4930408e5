"""Units that are alike, as a `tf.while_loop` over stacked weights and states: a graph of one unit's size."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from resnet.reversible.arguments import Call
from resnet.reversible.custom_vjp import Boundary, Tensors
from resnet.reversible.masks import Mask
from resnet.reversible.ordering import wait_for
from resnet.reversible.plain import Streams
from resnet.reversible.segments import Values, assign, forward, given, sums, undo, values
from resnet.reversible.step import Context, Gradients, Residuals, StatelessStep

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
  # The steps of the first unit stand for all. Their weights and states are stacked over the units.
  steps, order = units[0], range(len(units))
  weights, states = (
    [[tf.stack(entries) for entries in zip(*same, strict=True)] for same in zip(*of_units, strict=True)]
    for of_units in zip(*map(values, units), strict=True)
  )
  masked = [mask is not None for mask in masks]
  boundary = Boundary((streams, weights, call.context))
  streams, weights, context = boundary.given

  def unit(index: tf.Tensor, weights: Values, states: Values, context: Context) -> list[StatelessStep]:
    return given(steps, _entry(weights, index), _entry(states, index), context)

  def forward_unit(index: tf.Tensor, carried: Tensors) -> tuple[Tensors, Entries]:
    streams, present = carried
    before = [present.get(k) for k in (0, 1)]
    streams, after, updates, residuals = forward(unit(index, weights, states, context), streams, before)
    if [mask is not None for mask in after] != masked:
      raise ValueError(
        f"loop=True needs units that hand Keras' masks on, but after that of {steps[0].step.name} "
        f"the streams carry {_names(after)}, before it {_names(before)}; set supports_masking = True in these "
        "layers, or loop=False"
      )
    taken = {(k, -1): r.mask for k, r in enumerate(residuals) if r.mask is not None}
    return (streams, _present(after)), updates | taken

  like = _like([[*state, *weight] for state, weight in zip(states, weights, strict=True)])
  like |= {(k, -1): (m.dtype, m.shape) for k, s in enumerate(steps) if (m := masks[s.step.source]) is not None}
  (outputs, present), updates = _loop(forward_unit, (list(streams), _present(masks)), like, order)
  residuals = [Residuals(state, updates.pop((k, -1), None)) for k, state in enumerate(states)]

  def backward(outputs: Streams, d_outputs: Streams, held: Tensors) -> Gradients:
    weights, context = held

    def undo_unit(index: tf.Tensor, carried: Tensors) -> tuple[Tensors, Entries]:
      streams, d_streams, d_context = carried
      here = [Residuals(_entry(r.state, index), _entry(r.mask, index)) for r in residuals]
      streams, d = undo(unit(index, weights, states, context), streams, d_streams, here)
      return (streams, d.streams, sums(d_context, d.context)), _entries(d.weights)

    carried = (
      wait_for(d_outputs, outputs),
      d_outputs,
      [tf.zeros_like(tensor) for tensor in context],
    )  # Rule 1.
    (_, d_streams, d_context), d = _loop(undo_unit, carried, _like(weights), order[::-1])
    d_weights = [[d[k, i] for i in range(len(weight))] for k, weight in enumerate(weights)]
    return Gradients(wait_for((d_weights, d_context), d_streams), d_weights, d_context)  # Rule 2.

  outputs = boundary.leave_without_storing(call.name, outputs, (weights, context), backward)
  for one, of_unit in zip(units, _unstacked(units, updates), strict=True):
    assign(one, of_unit)
  return outputs, [present.get(k) for k in (0, 1)]


def _unstacked(units: list[list[StatelessStep]], updates: Entries) -> list[Entries]:
  """The updates of each unit.

  Raises:
    ValueError: steps share a layer whose state changes.
  """
  changed = [id(unit[k].layers.variables[i]) for k, i in updates for unit in units]
  for k, i in updates:
    for unit in units:
      if changed.count(id(variable := unit[k].layers.variables[i])) > 1:
        raise ValueError(
          f"loop=True needs functions whose states are their own, but {unit[k].step.name} shares "
          f"{variable.path!r}, which changes, with another function; use loop=False"
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


def _like(stacked: Values) -> dict[Any, tuple]:
  """The dtype and shape of one entry of each."""
  return {key: (tensor.dtype, tensor.shape[1:]) for key, tensor in _entries(stacked).items()}


def _present(masks: Sequence[Mask]) -> dict[int, tf.Tensor]:
  return {k: mask for k, mask in enumerate(masks) if mask is not None}


def _names(masks: Sequence[Any]) -> str:
  return " and ".join("a mask" if mask is not None and mask is not False else "none" for mask in masks)
