"""Values of variables that are kept while something runs, and put back."""

from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf


def values_of(variables: Iterable[keras.Variable]) -> list[tf.Tensor]:
  """The variables' values now, which later assignments leave as they are. Outside replicas, their means."""
  return [tf.convert_to_tensor(variable.value) for variable in variables]


def assign(variables: Sequence[keras.Variable], values: Sequence[tf.Tensor]) -> None:
  """Gives each variable its value."""
  for variable, value in zip(variables, values, strict=True):
    variable.assign(value)
