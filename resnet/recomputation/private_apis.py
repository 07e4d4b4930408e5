"""The engine's uses of private parts of TensorFlow and Keras; requirements.txt bounds their versions for it."""

import contextlib
import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend
from keras.src.backend.common import global_state
from keras.src.layers.layer import CallContext
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.autograph.core import ag_ctx
from tensorflow.python.eager import forwardprop_util, record
from tensorflow.python.eager.polymorphic_function import autograph_util, polymorphic_function
from tensorflow.python.framework import func_graph, ops
from tensorflow.python.ops import cond_v2, control_flow_util, while_v2

from resnet.recomputation.contexts import evaluates

# (op's type, outputs, inputs, (gradients of outputs) -> gradients of inputs): puts an operation on all tapes.
record_operation = record.record_operation
# (tensors): whether a `tf.GradientTape` watches one of them.
is_watched = record.should_record_backprop
# No tape sees what is computed in this context.
stop_recording = record.stop_recording
# (tensor): the mask that Keras has attached to it, or None; (tensor, mask): attaches it.
keras_mask, set_keras_mask = backend.get_keras_mask, backend.set_keras_mask
# (function, KerasTensors): what the function gives, as KerasTensors.
symbolic_outputs = backend.compute_output_spec


def has_tangents(tensors: Sequence[tf.Tensor]) -> bool:
  """Whether a `tf.autodiff.ForwardAccumulator` follows one of them, or what the graphs around captured."""
  followed, graph = list(tensors), tf.compat.v1.get_default_graph()
  while not tf.executing_eagerly() and isinstance(graph, func_graph.FuncGraph):
    followed += [outside for outside, _ in graph.captures if outside.dtype.is_floating]
    graph = graph.outer_graph
  return bool(forwardprop_util.pack_tangents(followed).tangents)


def forget_gradient(op_type: str) -> None:
  """Undoes `tf.RegisterGradient(op_type)`."""
  ops.gradient_registry._registry.pop(op_type, None)


def is_compiled_by_xla(graph: tf.Graph) -> bool:
  """Whether the graph, or one around it, will be compiled by XLA."""
  return control_flow_util.GraphOrParentsInXlaContext(graph)


def optimization_barrier(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
  """The same tensors; under XLA nothing uses one of them before all are computed."""
  return list(xla.optimization_barrier(*tensors))


@contextlib.contextmanager
def scratch_graph() -> Iterator[tf.Graph]:
  """A context whose ops go to a graph that nothing runs. Its `captures` list what comes from outside.

  It belongs to a single replica, whichever strategy is in force.
  """
  graph = func_graph.FuncGraph("scratch")
  with graph.as_default():
    graph._distribution_strategy_stack = []
    yield graph


def functions_called(op: tf.Operation) -> list[tf.Graph]:
  """The graphs of the functions that an op calls, such as branches and loop bodies."""
  attributes = op.node_def.attr.values()
  names = [
    function.name for value in attributes for function in (value.func, *value.list.func) if function.name
  ]
  return [op.graph._get_function(name).graph for name in names]


def number_of_results(op: tf.Operation) -> int:
  """How many results the function had whose `tf.custom_gradient` an op stands for."""
  gradient = ops.gradient_registry.lookup(op.get_attr("_gradient_op_type").decode())
  of_tape = inspect.getclosurevars(gradient).nonlocals["tape_grad_fn"]
  return inspect.getclosurevars(of_tape).nonlocals["flat_result_len"]


def variable_name(handle: tf.Tensor) -> str | None:
  """The name of the variable that an eager resource is the handle of; None if it is none of a variable."""
  found = re.search(r'name="(.*?)".*type="tensorflow::Var"', str(handle), re.DOTALL)
  return found and re.sub(r"/\d+$", "", found.group(1))


def show_to_checkpoints(parent: keras.layers.Layer, **lists: Sequence[keras.layers.Layer]) -> None:
  """Makes layers that `parent` holds in lists part of its checkpoints by `tf.train.Checkpoint`.

  Keras shows those in attributes to TensorFlow, and not those in lists. Keras' own files do not change.

  Args:
    parent: whose attributes hold the lists already.
    **lists: layer k of the list `unit` is called unit_{k} there. Names in use must not change, or checkpoints
      written before are not read.
  """
  for name, layers in lists.items():
    for k, layer in enumerate(layers):
      parent._track_trackable(layer, f"{name}_{k}")


def surroundings(**arguments: Any) -> dict[str, Any]:
  """What Keras' global state has for layers that are called now: the call around them, and its autocast.

  Args:
    **arguments: of the call around, for layers that are called without them, such as `training`.
  """
  context = copy.copy(global_state.get_global_attribute("current_call_ctx")) or CallContext(None)
  vars(context).update(arguments, entry_layer=None)
  return {"current_call_ctx": context, "autocast_scope": backend.get_autocast_scope()}


@contextlib.contextmanager
def surrounded(by: dict[str, Any]) -> Iterator[None]:
  """A context with these `surroundings`, which do not change."""
  before = {name: global_state.get_global_attribute(name) for name in by}
  try:
    for name, value in by.items():
      global_state.set_global_attribute(name, copy.copy(value))
    yield
  finally:
    for name, value in before.items():
      global_state.set_global_attribute(name, value)


def as_stored() -> contextlib.AbstractContextManager:
  """A context in which variables are read in their own dtype, also in a layer that computes in another."""
  return surrounded({"autocast_scope": None})


def without_autocast() -> contextlib.AbstractContextManager:
  """A context like the call of a layer that has `autocast=False`."""
  return backend.AutocastScope(None) if backend.get_autocast_scope() else contextlib.nullcontext()


def _inlining(call: Callable) -> Callable:
  """`tf.function.__call__`, by which a user's function runs as Python where layers are evaluated on values.

  Otherwise it would keep what it was traced with, weights included.
  """

  @functools.wraps(call)
  def call_or_inline(self: Any, *args: Any, **kwargs: Any) -> Any:
    function = self._python_function
    if not evaluates.get() or getattr(function, "__module__", "").startswith("tensorflow."):
      return call(self, *args, **kwargs)
    if not self._autograph:
      return function(*args, **kwargs)
    function = autograph_util.py_func_from_autograph(function, self._experimental_autograph_options)
    with ag_ctx.ControlStatusCtx(ag_ctx.Status.UNSPECIFIED):  # Whatever the function around it says.
      return function(*args, **kwargs)

  return call_or_inline


def _is_in_gradient(graph: Any) -> bool:
  """Whether a graph, or one around it, is the gradient of a branch or of a loop's body."""
  while isinstance(graph, func_graph.FuncGraph):
    if isinstance(graph, cond_v2._CondGradFuncGraph | while_v2._WhileBodyGradFuncGraph):
      return True
    graph = graph.outer_graph
  return False


def _embedding(capture: Callable) -> Callable:
  """`FuncGraph.capture`, which makes constants of eager tensors where layers are evaluated on given values.

  It does so in gradients of branches and loop bodies: TensorFlow's own never take such tensors, and cannot.
  """

  @functools.wraps(capture)
  def capture_or_embed(self: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    is_value = isinstance(tensor, ops.EagerTensor) and tensor.dtype not in (tf.resource, tf.variant)
    if not (evaluates.get() and is_value and _is_in_gradient(self)):
      return capture(self, tensor, *args, **kwargs)
    with self.as_default():
      return tf.constant(tensor.numpy(), tensor.dtype)

  return capture_or_embed


polymorphic_function.Function.__call__ = _inlining(polymorphic_function.Function.__call__)
func_graph.FuncGraph.capture = _embedding(func_graph.FuncGraph.capture)
