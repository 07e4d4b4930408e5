"""Units that are alike, as a `tf.while_loop` over stacked weights and states: a graph of one unit's size."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from resnet.recomputation.custom_vjp import Tensors
from resnet.recomputation.masks import Mask
from resnet.reversible.plain import Streams
from resnet.reversible.step import Given, Residuals, StepSequence, sums

# (k, i): variable i of step k of a unit, or the mask that step k takes (i = -1).
Place = tuple[int, int]
# More at a time would hold more than one unit's activations. With `maximum_iterations` alone, in place of a
# condition, XLA planned 83 MB for RevNet-110 with 100 images, in place of 63.
_while_loop = functools.partial(tf.while_loop, parallel_iterations=1)


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
    return tf.nest.map_structure(lambda *values: tf.stack(values), *(unit.values() for unit in self._units))

  def sharing(self, state: list, latest: dict) -> list:
    _refuse_shared([v for v, _ in latest.values() if id(v) in self._times])
    return state

  def run(
    self, given: Given, state: list, streams: Streams, masks: list[Mask]
  ) -> tuple[Streams, list[Mask], list[tuple[Any, tf.Tensor]], list[Residuals]]:
    masked, steps, number = [mask is not None for mask in masks], self._unit.steps, len(self._units)
    places = {id(v): (k, i) for k, step in enumerate(steps) for i, v in enumerate(step.layers.variables)}
    written: set[Place] = set()

    def body(index: tf.Tensor, streams: Streams, present: dict, arrays: dict) -> tuple:
      here, before = Given(_entry(given.weights, index), given.context), [present.get(k) for k in (0, 1)]
      streams, after, changed, residuals = self._unit.run(here, _entry(state, index), streams, before)
      if [mask is not None for mask in after] != masked:
        names = " and ".join(step.step.name for step in steps)
        raise ValueError(
          f"loop=True needs units that hand Keras' masks on, but behind {names} the streams carry "
          f"{_names(after)}, before it {_names(before)}; set supports_masking = True in them, or loop=False"
        )
      new = {places[id(v)]: value for v, value in changed}
      new |= {(k, -1): r.mask for k, r in enumerate(residuals) if r.mask is not None}
      written.update(new)
      return index + 1, streams, _present(after), arrays | _written(arrays, index, new)

    arrays = self._arrays([[*values, *weights] for values, weights in zip(state, given.weights, strict=True)])
    for k, step in enumerate(steps):
      if (mask := masks[step.step.source]) is not None:
        arrays[k, -1] = tf.TensorArray(mask.dtype, number, element_shape=mask.shape)
    start = (tf.constant(0), list(streams), _present(masks), arrays)
    try:
      _, streams, present, arrays = _while_loop(lambda k, *_: tf.not_equal(k, number), body, start)
    except RuntimeError as error:
      if "merge_call" not in str(error):
        raise
      raise ValueError(
        "loop=True cannot hold layers that speak to other devices, as synchronised BatchNorm; use loop=False"
      ) from error
    updates = {place: array.stack() for place, array in arrays.items() if place in written}
    residuals = [Residuals(stacked, updates.pop((k, -1), None)) for k, stacked in enumerate(state)]
    changed = [
      (unit.steps[k].layers.variables[i], value)
      for (k, i), stacked in updates.items()
      for unit, value in zip(self._units, tf.unstack(stacked, number), strict=True)
    ]
    _refuse_shared([v for v, _ in changed if self._times[id(v)] > 1])
    return streams, [present.get(k) for k in (0, 1)], changed, residuals

  def undo(
    self, given: Given, streams: Streams, d_streams: Streams, residuals: Sequence[Residuals]
  ) -> tuple[Streams, Streams, Given]:
    def body(index: tf.Tensor, streams: Streams, d_streams: Streams, d_context: list, arrays: dict) -> tuple:
      here = Given(_entry(given.weights, index), given.context)
      streams, d_streams, d = self._unit.undo(here, streams, d_streams, _entry(residuals, index))
      arrays = _written(arrays, index, _by_place(d.weights))
      return index - 1, streams, d_streams, sums(d_context, d.context), arrays

    number, d_context = len(self._units), [tf.zeros_like(tensor) for tensor in given.context]
    start = (tf.constant(number - 1), list(streams), list(d_streams), d_context, self._arrays(given.weights))
    _, streams, d_streams, d_context, arrays = _while_loop(lambda k, *_: tf.not_equal(k, -1), body, start)
    d_weights = [[arrays[k, i].stack() for i in range(len(weight))] for k, weight in enumerate(given.weights)]
    return streams, d_streams, Given(d_weights, d_context)

  def _arrays(self, stacked: list) -> dict[Place, tf.TensorArray]:
    """For new values of tensors of each step, and gradients."""
    return {
      place: tf.TensorArray(tensor.dtype, len(self._units), element_shape=tensor.shape[1:])
      for place, tensor in _by_place(stacked).items()
    }


def _refuse_shared(variables: Sequence[Any]) -> None:
  for v in variables:
    raise ValueError(
      f"loop=True needs functions whose states are their own, but several share {v.path!r}, which changes; use "
      "loop=False"
    )


def _entry(stacked: Tensors, index: tf.Tensor) -> Tensors:
  return tf.nest.map_structure(lambda tensor: None if tensor is None else tf.gather(tensor, index), stacked)


def _by_place(tensors: list) -> dict[Place, tf.Tensor]:
  return {(k, i): tensor for k, of_step in enumerate(tensors) for i, tensor in enumerate(of_step)}


def _written(arrays: dict, index: tf.Tensor, new: dict) -> dict:
  return {place: arrays[place].write(index, value) for place, value in new.items()}


def _present(masks: Sequence[Mask]) -> dict[int, tf.Tensor]:
  return {k: mask for k, mask in enumerate(masks) if mask is not None}


def _names(masks: Sequence[Mask]) -> str:
  return " and ".join("none" if mask is None else "a mask" for mask in masks)
