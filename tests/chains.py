"""Chains, layers and graphs that several test modules share."""

import types

import keras
import numpy as np
import tensorflow as tf
from helpers import assert_close, values

from resnet.reversible import ActivationPlan, Additive, Rebuild, ReversibleChain, Store, keep_output
from resnet.reversible.backward import EVERYTHING, Keep

# Ways to run a function of tensors.
RUNS = {
  "eager": lambda f: f,
  "graph": lambda f: tf.function(f, autograph=False),
  "XLA": lambda f: tf.function(f, autograph=False, jit_compile=True),
}


class Counted(keras.layers.Layer):
  """Dense, batch norm, dropout and tanh; counts its calls, and remembers what it was called on."""

  def __init__(self, units, rate=0.3):
    super().__init__()
    self.parts = [
      keras.layers.Dense(units, use_bias=False),  # A bias has no gradient before batch norm.
      keras.layers.BatchNormalization(),
      keras.layers.Dropout(rate, seed=7),
    ]
    self.inputs = []

  def build(self, input_shape):
    for part in self.parts:
      part.build(input_shape)
      input_shape = part.compute_output_shape(input_shape)

  def call(self, x, training=False):
    self.inputs.append(x)
    for part in self.parts:
      x = part(x, training=training)
    return tf.tanh(x)


class KeepsHidden(keras.layers.Layer):
  """Counted, whose output may be kept, and a sine of the weighted result."""

  def __init__(self, units, rate=0.3):
    super().__init__()
    self.hidden = Counted(units, rate)

  @property
  def inputs(self):
    return self.hidden.inputs

  def build(self, input_shape):
    self.hidden.build(input_shape)
    self.weight = self.add_weight(shape=(), initializer="ones")

  def call(self, x, training=False):
    return tf.sin(self.weight * keep_output(self.hidden, x, training))


def make_chain(units=3, width1=5, width2=8, dtype="float64", function=Counted, **kwargs):
  """A chain whose streams differ in width: F maps 8 features to 5, G 5 to 8."""
  keras.config.set_dtype_policy(dtype)
  try:
    keras.utils.set_random_seed(3)
    chain = ReversibleChain([(function(width1), function(width2)) for _ in range(units)], **kwargs)
    chain.build([(None, width1), (None, width2)])
  finally:
    keras.config.set_dtype_policy("float32")
  for function in chain.functions:
    function.inputs.clear()  # Building runs each once, symbolically.
  random = np.random.RandomState(4)
  streams = tuple(
    tf.constant(random.normal(size=(6, width)), chain.variable_dtype) for width in (width1, width2)
  )
  return chain, streams


def keeping(chain, streams=0, outputs=0, everything=0):
  """The chain, of which so many last units keep what `Keep` says, whatever memory that takes."""
  last = range(len(chain.units), 0, -1)
  units = [EVERYTHING if k <= everything else Keep(k <= streams, k <= outputs) for k in last]
  kept = tuple(units[step.unit] for step in chain._steps())
  chain.backward = Rebuild("auto")
  chain._plan = lambda *_: ActivationPlan(0, 0, kept)
  return chain


def gradients_of(chain, streams, state, run=lambda function: function):
  """((y1, y2), gradients of a loss of both, state afterwards), from the given state."""
  for variable, value in zip(chain.non_trainable_variables, state, strict=True):
    variable.assign(value)

  def loss_and_gradients(x1, x2):
    with tf.GradientTape() as tape:
      tape.watch((x1, x2))
      y1, y2 = chain((x1, x2), training=True)
      loss = tf.reduce_sum(tf.sin(y1)) + tf.reduce_sum(y2**3)
    return (y1, y2), tape.gradient(loss, [x1, x2, *chain.trainable_variables])

  outputs, gradients = run(loss_and_gradients)(*streams)
  return outputs, gradients, values(chain.non_trainable_variables)


def assert_as_ordinary(chain, streams, run, tolerance=1e-12):
  """Asserts that a chain's gradients are those of ordinary backpropagation; returns them."""
  state = values(chain.non_trainable_variables)
  actual = gradients_of(chain, streams, state, run)
  chain.backward = Store()
  for one, other in zip(actual, gradients_of(chain, streams, state, run), strict=True):
    assert_close(one, other, tolerance)
  return actual[1]


def ancestors(*ops):
  """All ops that `ops` wait for."""
  seen, todo = set(), list(ops)
  while todo:
    current = todo.pop()
    for previous in [tensor.op for tensor in current.inputs] + list(current.control_inputs):
      if previous not in seen:
        seen.add(previous)
        todo.append(previous)
  return seen


def producer(tensor):
  """The op that computes `tensor`, behind any identities."""
  while tensor.op.type in ("Identity", "IdentityN"):
    tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
  return tensor.op


def all_ops(graph):
  """The ops of a graph and of the functions that it calls."""
  names = graph.as_graph_def().library.function
  nodes = [node for function in names for node in function.node_def]
  return [types.SimpleNamespace(type=node.op) for node in nodes] + list(graph.get_operations())


def traced_gradients(chain, streams):
  """The graph of a step, and in it the ops that make each function's weight gradients."""

  @tf.function
  def gradients(x1, x2):
    with tf.GradientTape() as tape:
      y1, y2 = chain((x1, x2), training=True)
      loss = tf.reduce_sum(y1**2) + tf.reduce_sum(y2**2)
    return tape.gradient(loss, [function.trainable_variables for function in chain.functions])

  traced = gradients.get_concrete_function(*streams)
  d_weights = tf.nest.pack_sequence_as(traced.structured_outputs, traced.graph.outputs)
  return traced.graph, [{producer(tensor) for tensor in tensors} for tensors in d_weights]


def loops(chain, streams):
  """How many loops a step's graph has: a row of units is one forward and one back."""
  graph, _ = traced_gradients(chain, streams)
  return sum(op.type in ("While", "StatelessWhile") for op in graph.get_operations())


def run_ops(graph):
  """The ops that something a graph returns needs: TensorFlow runs no others."""
  found = {tensor.op for tensor in graph.outputs}
  return found.union(*map(ancestors, found)) if found else found


class Marked(Additive):
  """Names the ops that give a stream which is rebuilt."""

  def uncouple(self, y, change):
    return tf.identity(super().uncouple(y, change), name="rebuilt_stream")


def rebuilt_streams(graph):
  """The ops that give the streams that a graph with `Marked` couplings rebuilds."""
  return [op for op in run_ops(graph) if op.name.rpartition("/")[2].startswith("rebuilt_stream")]
