"""Keras' masks: which a tensor carries, and which a sum carries."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet.recomputation.private_apis import keras_mask, set_keras_mask

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
