"""What a chain computes, in plain Keras: the yardstick for all else in this package.

    y1 = x1 + F(x2)
    y2 = x2 + G(y1)

F and G are called as any Keras layers are; TensorFlow stores their activations and finds their gradients.
Chains with backward=Store() are this. The others run the same steps as functions of explicit values.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet.recomputation.arguments import Call, is_float
from resnet.recomputation.building import build_layer
from resnet.recomputation.custom_vjp import custom_vjp
from resnet.recomputation.masks import Mask, mask_of_sum, with_mask
from resnet.recomputation.private_apis import keras_mask, surrounded, symbolic_outputs
from resnet.reversible.checks import require_parts, require_shapes, stream_dtype
from resnet.reversible.coupling import Coupling
from resnet.reversible.invertible import Invertible, two_streams

Streams = list[tf.Tensor]  # x1 and x2, and the sum of log_det [N] so far where it is wanted


@dataclasses.dataclass(frozen=True)
class CouplingStep:
  """F of a unit, which changes x1 by what it makes of x2, or G, which changes x2 by what it makes of y1.

  Attributes:
    unit: the number of the unit, from 0.
    name: of F or G, for errors.
    layer: F or G.
    coupling: how it changes the stream.
    source: the stream that it takes, 0 or 1; it changes the other one.
    grid_bits: if given, what it gives is rounded to multiples of 2 ** -grid_bits.
  """

  unit: int
  name: str
  layer: keras.layers.Layer
  coupling: Coupling
  source: int
  grid_bits: int | None = None

  @property
  def layers(self) -> list[keras.layers.Layer]:
    return [self.layer, self.coupling]

  @property
  def targets(self) -> tuple[int, ...]:
    """The streams that it changes."""
    return (1 - self.source,)

  @property
  def invertible(self) -> bool:
    return self.coupling.invertible

  def build(self, shapes: list, dtype: str) -> None:
    """Builds function and coupling, for streams of these shapes; the function not, if its call takes arguments.

    Raises:
      ValueError: the function's output does not fit the stream.
    """
    target = shapes[1 - self.source]
    outputs = build_layer(self.layer, shapes[self.source], dtype)
    if not self.coupling.built:
      self.coupling.build(target)
    if outputs is not None:
      parts = symbolic_outputs(functools.partial(self._parts, dtype=stream_dtype([], dtype)), outputs)
      require_shapes(self.name, parts, self.coupling.changed_shape(target))

  def shapes_after(self, shapes: list) -> list:
    """The shapes of the streams after the step."""
    return replaced(shapes, self.targets, [self.coupling.changed_shape(shapes[1 - self.source])])

  def _parts(self, change: Any, dtype: tf.DType | str) -> list[tf.Tensor]:
    """What the coupling makes of the function's output, computed as precisely as the stream, of this dtype."""
    wide = tf.nest.map_structure(lambda x: tf.cast(x, dtype) if is_float(x) else x, change)
    try:
      parts = [*self.coupling.parts(wide)]
    except (TypeError, ValueError, AttributeError) as error:
      raise ValueError(f"{self.name} gives {change!r}, which its coupling cannot take: {error}") from error
    require_parts(self.name, self.coupling, parts)
    return [on_grid(tf.cast(part, dtype), self.grid_bits) for part in parts]

  def change(self, streams: Streams, mask: Mask, call: Call, context: list) -> tuple[list[tf.Tensor], Mask]:
    """What the function makes of its stream: the parts for the coupling, and the Keras mask that they carry.

    Args:
      streams: of which none is changed.
      mask: that the stream carries.
      call, context: what the chain is called with; the float tensors of it.
    """
    target, source = streams[1 - self.source], streams[self.source]
    change = self.layer(with_mask(source, mask), **call.arguments_of(self.layer, context))
    parts = self._parts(change, target.dtype)
    return parts, mask_of_sum([keras_mask(part) for part in tf.nest.flatten(change)])

  def couple(self, streams: Streams, parts: Sequence[tf.Tensor]) -> Streams:
    """The streams after the step."""
    x = streams[1 - self.source]
    require_shapes(self.name, parts, self.coupling.changed_shape(tuple(x.shape)))
    y = self.coupling.couple(x, *parts)
    after = [*streams[:2], *(total + self.coupling.log_det(x, *parts) for total in streams[2:])]
    return replaced(after, self.targets, [y if self.coupling.invertible else on_grid(y, self.grid_bits)])

  def uncouple(self, streams: Streams, parts: Sequence[tf.Tensor]) -> Streams:
    """The streams that the step changed, as they were before it."""
    return [self.coupling.uncouple(streams[1 - self.source], *parts)]

  def masks_after(self, masks: list[Mask], of_change: Mask) -> list[Mask]:
    """The masks that the streams carry after the step, as in plain Keras with `Add` layers."""
    return replaced(masks, self.targets, [mask_of_sum([masks[1 - self.source], of_change])])


@dataclasses.dataclass(frozen=True)
class InvertibleStep:
  """An `Invertible` layer, which changes both streams. Attributes and methods mean what `CouplingStep`'s do.

  On a grid its streams are there already, and it only moves or negates them.
  """

  unit: int
  name: str
  layer: Invertible
  source: int = 0
  grid_bits: int | None = None
  targets: tuple[int, ...] = (0, 1)
  invertible: bool = True

  @property
  def layers(self) -> list[keras.layers.Layer]:
    return [self.layer]

  def build(self, shapes: list, dtype: str) -> None:
    build_layer(self.layer, list(shapes), dtype)

  def shapes_after(self, shapes: list) -> list:
    return [tuple(shape) for shape in self.layer.compute_output_shape(list(shapes))]

  def change(self, streams: Streams, mask: Mask, call: Call, context: list) -> tuple[list[tf.Tensor], Mask]:
    return [], None  # It takes nothing but the streams that it changes.

  def couple(self, streams: Streams, parts: Sequence[tf.Tensor]) -> Streams:
    totals = [total + self.layer.log_det(streams[:2]) for total in streams[2:]]
    after = two_streams(f"{self.name}: its call", self.layer(streams[:2]), streams[0].dtype)
    return [*after, *totals]

  def uncouple(self, streams: Streams, parts: Sequence[tf.Tensor]) -> Streams:
    return two_streams(f"{self.name}: its inverse", self.layer.inverse(streams[:2]), streams[0].dtype)

  def masks_after(self, masks: list[Mask], of_change: Mask) -> list[Mask]:
    carried = self.layer.supports_masking and any(mask is not None for mask in masks)
    return self.layer.compute_mask([None, None], masks) if carried else [None, None]


Step = CouplingStep | InvertibleStep


def replaced(values: Sequence, targets: Sequence[int], new: Sequence) -> list:
  """`values`, with `new` in place of those whose numbers are `targets`."""
  by_number = dict(zip(targets, new, strict=True))
  return [by_number.get(k, value) for k, value in enumerate(values)]


def on_grid(x: tf.Tensor, bits: int | None) -> tf.Tensor:
  """x rounded to multiples of 2 ** -bits; x itself if bits is None. The gradient is that of the identity."""
  if bits is None:
    return x
  step = 2.0**-bits  # A power of two: multiplication and division are exact.
  return custom_vjp(lambda x: (tf.round(x / step) * step, lambda dy: dy), x)


def run_plainly(
  steps: Sequence[Step], streams: Streams, masks: list[Mask], call: Call
) -> tuple[Streams, list[Mask]]:
  """(y1, y2) and their Keras masks, from (x1, x2) and theirs."""
  with surrounded(call.surroundings):
    for step in steps:
      parts, mask = step.change(streams, masks[step.source], call, call.floats)
      streams, masks = step.couple(streams, parts), step.masks_after(masks, mask)
  return streams, masks


def passed_on(
  steps: Sequence[Step], streams: Sequence[tf.Tensor], masks: list[Mask]
) -> tuple[list[Mask], list[Mask]]:
  """(the mask that each step of a chain takes, those of the outputs), by what layers say of themselves."""
  taken = []
  for step in steps:
    taken.append(mask := masks[step.source])
    says = step.layer.supports_masking and mask is not None and len(step.targets) == 1
    masks = step.masks_after(masks, step.layer.compute_mask(streams[step.source], mask) if says else None)
  return taken, masks
