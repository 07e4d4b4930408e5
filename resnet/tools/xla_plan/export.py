"""Training steps as XLA's programs (HLO), which other versions of XLA can read."""

import dataclasses
from collections.abc import Callable

import keras
import tensorflow as tf

# Private: the public way to the program (get_compiler_ir) compiles nothing for a device that is not there, but
# gives text alone, which a newer XLA may not read.
from tensorflow.compiler.xla.service import hlo_pb2
from tensorflow.python.eager.polymorphic_function import compiler_ir

from resnet.models import get_model
from resnet.reversible import ordinary_backprop
from resnet.tools.benchmark.report import Case
from resnet.tools.benchmark.worker import config_of
from resnet.training.step import loss_and_gradients


def export_step(case: Case, filters: tuple[int, ...] = ()) -> bytes:
  """The program of a network's training step, forward and backward. Weights are its arguments."""
  config = config_of(case)
  if filters:
    config = dataclasses.replace(config, filters=filters)
  model = get_model(config)
  images = tf.TensorSpec([case.batch, config.height, config.width, config.num_channel])
  return export(lambda x, y: loss_and_gradients(model, x, y), images, tf.TensorSpec([case.batch], tf.int64))


def export_fit_step(model: keras.Model, batch: int, ordinary: bool) -> bytes:
  """The program of the step that `model.fit` compiles: forward, backward, the optimizer's update, the metrics.

  Args:
    model: of one input and one output. Adam and the mean squared error are taken if it is not compiled; then
      targets have the output's shape.
    batch: examples.
    ordinary: whether to store activations, as ordinary backpropagation does.
  """
  if not model.compiled:
    model.compile("adam", "mean_squared_error")
  model.optimizer.build(model.trainable_variables)
  x, y = (tf.TensorSpec((batch, *t.shape[1:]), t.dtype) for t in (model.input, model.output))

  def step(x, y):
    if not ordinary:
      return model.train_step((x, y))
    with ordinary_backprop():
      return model.train_step((x, y))

  step(*(tf.zeros((1, *t.shape[1:]), t.dtype) for t in (x, y)))  # Keras makes its metrics in the first step.
  return export(step, x, y)


def export(function: Callable, *signature: tf.TensorSpec) -> bytes:
  """The program of a function: an HloModuleProto."""
  concrete = tf.function(function, jit_compile=True, autograph=False).get_concrete_function(*signature)
  module = hlo_pb2.HloModuleProto.FromString(
    compiler_ir.from_concrete_function(concrete)(stage="hlo_serialized")
  )
  module.ClearField("stack_frame_index")
  for computation in module.computations:
    for instruction in computation.instructions:
      instruction.ClearField("metadata")
      if instruction.opcode == "copy":  # StableHLO, by which it is read, has none. This does the same.
        instruction.opcode = "reshape"
  return module.SerializeToString(deterministic=True)
