"""What waits for what in the backward pass. Nothing else in the engine orders operations.

Rules 1 and 6 are of recomputed layers, too, the others of reversible chains, whose steps change streams.

In a graph an operation runs as soon as its inputs are there. Rebuilding a stream needs no gradient, so all
units would be rebuilt before the first gradient is taken, and all activations be there at once after all. So

1. nothing is rebuilt before the gradients of the outputs are there, with which the backward pass begins;
2. a step is not undone before all gradients of the step after it are done, those of its weights, too: then
   only one step's activations are there at a time;
3. the gradients of a step are not taken before the stream that it changed is rebuilt, which frees what it is
   rebuilt from;
4. what was saved for a step (streams, outputs, statistics) is not used before rule 2 lets the step be undone,
   since its recomputation may need nothing else;
5. in units whose activations are stored, the gradients of the streams wait for those of all weights: what comes
   before is undone when their activations are freed;
6. a layer whose output was kept is recomputed when the gradient of its output is there.

Eager mode does one thing after the other, in the order of the code, which is this one.
"""

import tensorflow as tf

from resnet.recomputation.custom_vjp import Tensors, custom_vjp, fresh
from resnet.recomputation.private_apis import is_compiled_by_xla, optimization_barrier


def wait_for(done: Tensors, tensors: Tensors) -> Tensors:
  """`tensors`, whose users in a graph wait until all of `done` is computed. None among them stays None."""
  awaited, given = ([t for t in tf.nest.flatten(some) if t is not None] for some in (done, tensors))
  if tf.executing_eagerly() or not given:
    return tensors
  if is_compiled_by_xla(tf.compat.v1.get_default_graph()):
    # XLA ignores control dependencies, but all results of a barrier depend on all of its operands.
    gated = custom_vjp(
      lambda given: (optimization_barrier([*given, *awaited])[: len(given)], lambda d: d), given
    )
  else:
    with tf.control_dependencies(awaited):
      gate = tf.no_op()  # One op that waits for all spares an edge for each of them to each of the others.
    with tf.control_dependencies([gate]):
      gated = [tf.identity(tensor) for tensor in given]
  results = iter(gated)
  return tf.nest.map_structure(lambda tensor: None if tensor is None else next(results), tensors)


def released_together(streams: Tensors, weights: Tensors) -> tuple[Tensors, Tensors]:
  """Both as they are. In the backward pass the gradients of the streams wait for those of the weights (5)."""

  def pullback(d: Tensors) -> Tensors:
    d_streams, d_weights = d
    return wait_for(d_weights, d_streams), d_weights

  return custom_vjp(lambda given: (fresh(given), pullback), (streams, weights))
