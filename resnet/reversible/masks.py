"""Keras' masks: which a tensor carries, and which a sum carries."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet.reversible.private_apis import keras_mask, set_keras_mask

Mask = Any  # a tensor of bools, [N, T] mostly, or None


def with_mask(tensor: tf.Tensor, mask: Mask) -> tf.Tensor:
  """The same values, carrying `mask`; what `tensor` itself carries does not change."""
  if mask is keras_mask(tensor):
    return tensor
  tensor = tf.identity(tensor)
  set_keras_mask(tensor, mask)
  return tensor


def mask_of_sum(masks: Sequence[Mask]) -> Mask:
  """As of `keras.layers.Add`: a sum carries a mask if all summands do, which marks what any of them marks."""
  if any(mask is None for mask in masks):
    return None
  different = list({id(mask): mask for mask in masks}.values())
  return functools.reduce(keras.ops.logical_or, different)


def passed_on(
  functions: Sequence[keras.layers.Layer], streams: Sequence[tf.Tensor], masks: Sequence[Mask]
) -> tuple[list[Mask], list[Mask]]:
  """(the mask that each function of a chain takes, those of the outputs), by what layers say of themselves."""
  masks, taken = list(masks), []
  for k, function in enumerate(functions):
    target, source = k % 2, 1 - k % 2
    taken.append(masks[source])
    says = function.supports_masking and masks[source] is not None
    change = function.compute_mask(streams[source], masks[source]) if says else None
    masks[target] = mask_of_sum([masks[target], change])
  return taken, masks
