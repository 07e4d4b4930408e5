"""What a chain computes, in plain Keras: the yardstick for all else in this package.

    y1 = x1 + F(x2)
    y2 = x2 + G(y1)

F and G are called as any Keras layers are; TensorFlow stores their activations and finds their gradients.
Chains with manual_gradients=False are this. The others run the same two steps as functions of explicit values.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet.reversible.checks import function_name, require_parts
from resnet.reversible.coupling import Coupling
from resnet.reversible.grid import on_grid
from resnet.reversible.masks import Mask, mask_of_sum, with_mask
from resnet.reversible.private_apis import keras_mask

Streams = list[tf.Tensor]  # x1 and x2, and the sum of the couplings' log_det [N] so far where it is wanted


def run_plainly(
  functions: Sequence[keras.layers.Layer],
  couplings: Sequence[Coupling],
  streams: Streams,
  masks: list[Mask],
  arguments: Sequence[dict[str, Any]],
  grid_bits: int | None = None,
) -> tuple[Streams, list[Mask]]:
  """(y1, y2) and their Keras masks, from (x1, x2) and theirs.

  Args:
    functions, couplings: F of unit 0, G of unit 0, F of unit 1, and so on.
    arguments: of each function's call.
    grid_bits: if given, what functions give is rounded to multiples of 2 ** -grid_bits.
  """
  streams, masks = list(streams), list(masks)
  for k, (function, coupling) in enumerate(zip(functions, couplings, strict=True)):
    target, source = k % 2, 1 - k % 2
    parts, mask = change_of(
      k, function, coupling, streams[target], streams[source], masks[source], arguments[k], grid_bits
    )
    streams[target], *log_det = coupled(coupling, streams[target], parts, grid_bits, log_det=len(streams) > 2)
    streams[2:] = [total + here for total, here in zip(streams[2:], log_det, strict=True)]
    masks[target] = mask_of_sum([masks[target], mask])
  return streams, masks


def change_of(
  k: int,
  function: keras.layers.Layer,
  coupling: Coupling,
  target: tf.Tensor,
  source: tf.Tensor,
  mask: Mask,
  arguments: dict[str, Any],
  grid_bits: int | None,
) -> tuple[list[tf.Tensor], Mask]:
  """How function k changes the stream `target`: the parts for its coupling, and the Keras mask that they carry.

  Args:
    source: the stream that the function takes.
    mask: that of `source`.
    arguments, grid_bits: as of `run_plainly`.
  """
  change = function(with_mask(source, mask), **arguments)
  parts = [*coupling.parts(change)]
  require_parts(function_name(k, function), coupling, parts)
  parts = [on_grid(tf.cast(part, target.dtype), grid_bits) for part in parts]
  return parts, mask_of_sum([keras_mask(part) for part in tf.nest.flatten(change)])


def coupled(
  coupling: Coupling, x: tf.Tensor, parts: Sequence[tf.Tensor], grid_bits: int | None, log_det: bool
) -> list[tf.Tensor]:
  """[the changed stream], and if wanted its log_det [N]."""
  y = coupling.couple(x, *parts)
  if not coupling.invertible:
    y = on_grid(y, grid_bits)
  return [y, coupling.log_det(x, *parts)] if log_det else [y]
