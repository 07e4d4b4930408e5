"""A training step: loss and gradients of one batch, and all that is done to gradients up to the optimizer."""

from collections.abc import Callable

import keras
import tensorflow as tf

from resnet.training.loss_scale import scaled_gradients
from resnet.training.optimizer import Momentum
from resnet.training.state import assign, values_of
from resnet.utils.xla import heed_memory_on_a_cpu


def loss_and_gradients(
  model: keras.Model, images: tf.Tensor, labels: tf.Tensor, loss_scale: tf.Tensor | None = None
) -> tuple[tf.Tensor, list[tf.Tensor]]:
  """Runs the model forward in training mode, and backward. Its moving statistics move once.

  Works eagerly and inside `tf.function`; in a replica of a `tf.distribute` strategy it sees the
  replica's part of the batch alone.

  Args:
    model: from `resnet.models.get_model`.
    images: [N, H, W, C] float32.
    labels: [N] integers in [0, num_classes).
    loss_scale: what the backward pass starts from, see loss_scale.py; None: 1. It is no factor of the result.

  Returns:
    The mean cross entropy, a scalar, and the gradients of the cross entropy plus weight decay in the
    order of `model.trainable_variables`. Weight decay adds wd * w for the variables with a
    regularizer, the kernels of the convolutions and the classifier. It is not part of the loss.

  Example:
    >>> model = get_model(get_config("revnet-38"))
    >>> loss, gradients = loss_and_gradients(model, np.zeros([2, 32, 32, 3], "float32"), np.array([3, 7]))
    >>> len(gradients) == len(model.trainable_variables)
    True
  """
  with tf.GradientTape() as tape:
    logits = model(images, training=True)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    loss = tf.reduce_mean(losses)
  variables = model.trainable_variables
  gradients = scaled_gradients(tape, loss, variables, loss_scale)
  return loss, [_decayed(*pair, model.config.wd) for pair in zip(gradients, variables, strict=True)]


def _decayed(gradient: tf.Tensor, variable: keras.Variable, wd: float) -> tf.Tensor:
  if not variable.regularizer:
    return gradient
  # Else a graph computes wd * variable at its start, and holds as much memory as all gradients to its end.
  with tf.control_dependencies([gradient]):
    return gradient + wd * variable.value


def averaged_over_passes(
  model: keras.Model,
  images: tf.Tensor,
  labels: tf.Tensor,
  num_pass: int,
  loss_scale: tf.Tensor | None = None,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
  """`loss_and_gradients` of a batch taken in `num_pass` equal parts, one after the other.

  Each part is normalised by its own batch statistics and starts from the same moving statistics. Loss,
  gradients and new moving statistics are means over the parts.
  """
  if num_pass == 1:
    return loss_and_gradients(model, images, labels, loss_scale)
  image_parts, label_parts = (tf.reshape(x, [num_pass, -1, *x.shape[1:]]) for x in (images, labels))
  state = model.non_trainable_variables
  before = values_of(state)

  def add_pass(index, sums):
    loss, gradients = loss_and_gradients(model, image_parts[index], label_parts[index], loss_scale)
    after = values_of(state)
    assign(state, before)
    return index + 1, tf.nest.map_structure(tf.add, sums, (loss, gradients, after))

  zeros = tf.nest.map_structure(
    lambda x: tf.zeros(x.shape, x.dtype), (tf.constant(0.0), list(model.trainable_variables), before)
  )
  _, sums = tf.while_loop(
    lambda index, _: index < num_pass, add_pass, (0, zeros), maximum_iterations=num_pass, parallel_iterations=1
  )
  loss, gradients, after = tf.nest.map_structure(lambda x: x / num_pass, sums)
  assign(state, after)
  return loss, gradients


def make_train_step(
  model: keras.Model,
  optimizer: Momentum,
  strategy: tf.distribute.Strategy,
  num_pass: int = 1,
  jit: bool = False,
) -> Callable[..., tf.Tensor]:
  """A function of an iterator of distributed batches: trains on the next one, returns its mean cross entropy.

  Args:
    model: built.
    optimizer: built for the model.
    strategy: the one that model and optimizer were built under.
    num_pass: into how many passes each replica divides its part of the batch. They run one after the other, in
      the memory of one. Batch statistics are those of a pass; gradients, and the updates of the moving
      statistics, are means over passes and replicas.
    jit: compile the passes, forward and backward, by XLA.
  """
  if jit:
    heed_memory_on_a_cpu()
  replicas = strategy.num_replicas_in_sync

  def replica_step(images, labels):
    compute = tf.function(averaged_over_passes, jit_compile=True) if jit else averaged_over_passes
    scale, state = optimizer.loss_scale, model.non_trainable_variables
    before = values_of(state) if scale else []
    loss, gradients = compute(model, images, labels, num_pass, scale.now() if scale else None)
    if replicas > 1:  # The optimizer sums over the replicas.
      gradients = [gradient / replicas for gradient in gradients]
    optimizer.apply(gradients, model.trainable_variables)
    if scale:  # A step that the optimizer skips must not move the statistics either.
      assign(state, scale.unless_skipped(values_of(state), before))
    return loss

  @tf.function(autograph=False)  # No Python in it branches on a tensor.
  def train_step(iterator):
    losses = strategy.run(replica_step, args=next(iterator))
    return strategy.reduce(tf.distribute.ReduceOp.MEAN, losses, axis=None)

  return train_step
