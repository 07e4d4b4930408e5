"""Units that are alike, as a `tf.while_loop` over stacked weights and states: a graph of one unit's size."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from resnet.recomputation.custom_vjp import Tensors
from resnet.recomputation.masks import Mask
from resnet.reversible.plain import Streams
from resnet.reversible.step import Given, Residuals, StepSequence, sums

# (k, i): tensor i of step k of a unit, or its mask (i = -1), for one unit or stacked.
Entries = dict[Any, tf.Tensor]


class Loop:
  """Units that are alike, run and undone as a step is; what they save is not kept, since that saved no time.

  Values are stacked over the units.

  Raises:
    ValueError: units share a state that changes, change which streams carry masks, or speak to other devices.
  """

  def __init__(self, units: Sequence[StepSequence]):
    self._units, self._unit = units, units[0]  # The first stands for all.
    self._times = Counter(id(v) for unit in units for step in unit.steps for v in step.layers.variables)

  def values(self) -> tuple[list, list]:
    weights, states = (
      [[tf.stack(entries) for entries in zip(*same, strict=True)] for same in zip(*of_units, strict=True)]
      for of_units in zip(*(unit.values() for unit in self._units), strict=True)
    )
    return weights, states

  def sharing(self, state: list, latest: dict) -> list:
    _refuse_shared([v for v, _ in latest.values() if id(v) in self._times])
    return state

  def run(
    self, given: Given, state: list, streams: Streams, masks: list[Mask]
  ) -> tuple[Streams, list[Mask], list[tuple[Any, tf.Tensor]], list[Residuals]]:
    masked, steps = [mask is not None for mask in masks], self._unit.steps
    places = {id(v): (k, i) for k, step in enumerate(steps) for i, v in enumerate(step.layers.variables)}

    def run(index: tf.Tensor, carried: Tensors) -> tuple[Tensors, Entries]:
      streams, present = carried
      here, before = Given(_entry(given.weights, index), given.context), [present.get(k) for k in (0, 1)]
      streams, after, changed, residuals = self._unit.run(here, _entry(state, index), streams, before)
      if [mask is not None for mask in after] != masked:
        names = " and ".join(step.step.name for step in steps)
        raise ValueError(
          f"loop=True needs units that hand Keras' masks on, but behind {names} the streams carry "
          f"{_names(after)}, before it {_names(before)}; set supports_masking = True in them, or loop=False"
        )
      taken = {(k, -1): r.mask for k, r in enumerate(residuals) if r.mask is not None}
      return (streams, _present(after)), {places[id(v)]: value for v, value in changed} | taken

    like = _like([[*values, *weights] for values, weights in zip(state, given.weights, strict=True)])
    for k, step in enumerate(steps):
      if (mask := masks[step.step.source]) is not None:
        like[k, -1] = (mask.dtype, mask.shape)
    carried = (list(streams), _present(masks))
    (streams, present), updates = _loop(run, carried, like, range(len(self._units)))
    residuals = [Residuals(stacked, updates.pop((k, -1), None)) for k, stacked in enumerate(state)]
    changed = [
      (unit.steps[k].layers.variables[i], value)
      for (k, i), stacked in updates.items()
      for unit, value in zip(self._units, tf.unstack(stacked, len(self._units)), strict=True)
    ]
    _refuse_shared([v for v, _ in changed if self._times[id(v)] > 1])
    return streams, [present.get(k) for k in (0, 1)], changed, residuals

  def undo(
    self, given: Given, streams: Streams, d_streams: Streams, residuals: Sequence[Residuals]
  ) -> tuple[Streams, Streams, Given]:
    def undo(index: tf.Tensor, carried: Tensors) -> tuple[Tensors, Entries]:
      streams, d_streams, d_context = carried
      here = Given(_entry(given.weights, index), given.context)
      streams, d_streams, d = self._unit.undo(here, streams, d_streams, _entry(residuals, index))
      return (streams, d_streams, sums(d_context, d.context)), _entries(d.weights)

    carried = (list(streams), list(d_streams), [tf.zeros_like(tensor) for tensor in given.context])
    last_to_first = range(len(self._units))[::-1]
    (streams, d_streams, d_context), d = _loop(undo, carried, _like(given.weights), last_to_first)
    d_weights = [[d[k, i] for i in range(len(weight))] for k, weight in enumerate(given.weights)]
    return streams, d_streams, Given(d_weights, d_context)


def _refuse_shared(variables: Sequence[Any]) -> None:
  for v in variables:
    raise ValueError(
      f"loop=True needs functions whose states are their own, but several share {v.path!r}, which changes; use "
      "loop=False"
    )


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
      "loop=True cannot hold layers that speak to other devices, as synchronised BatchNorm does; use loop=False"
    ) from error
  return carried, {key: arrays[key].stack() for key in like if key in written}


def _entry(stacked: Tensors, index: tf.Tensor) -> Tensors:
  return tf.nest.map_structure(lambda tensor: None if tensor is None else tf.gather(tensor, index), stacked)


def _entries(tensors: list) -> Entries:
  return {(k, i): tensor for k, of_step in enumerate(tensors) for i, tensor in enumerate(of_step)}


def _like(stacked: list) -> dict[Any, tuple]:
  """The dtype and shape of one entry of each."""
  return {key: (tensor.dtype, tensor.shape[1:]) for key, tensor in _entries(stacked).items()}


def _present(masks: Sequence[Mask]) -> dict[int, tf.Tensor]:
  return {k: mask for k, mask in enumerate(masks) if mask is not None}


def _names(masks: Sequence[Any]) -> str:
  return " and ".join("a mask" if mask is not None and mask is not False else "none" for mask in masks)
