"""The engine's uses of private parts of TensorFlow and Keras; requirements.txt bounds their versions for it."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.ops import control_flow_util


def is_compiled_by_xla(graph: tf.Graph) -> bool:
  """Whether the graph, or one around it, will be compiled by XLA."""
  return control_flow_util.GraphOrParentsInXlaContext(graph)


def optimization_barrier(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
  """The same tensors; under XLA nothing uses one of them before all are computed."""
  return list(xla.optimization_barrier(*tensors))


def function_nodes(graph: tf.Graph, name: str) -> Sequence[Any]:
  """The ops (NodeDef) of the function `name` that ops of the graph call."""
  return graph._get_function(name).definition.node_def


def keras_mask(tensor: Any) -> Any:
  """The mask that Keras has attached to a tensor; None if there is none."""
  return getattr(tensor, "_keras_mask", None)
