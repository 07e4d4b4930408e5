"""Loss and gradients of one batch."""

import keras
import tensorflow as tf


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
    loss_scale: a factor on the loss's gradient in the backward pass; the variables' gradients are divided
      by it afterwards.

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
  gradients = tape.gradient(loss, variables, loss_scale)
  if loss_scale is not None:
    gradients = [gradient / loss_scale for gradient in gradients]
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
  before = [tf.convert_to_tensor(variable.value) for variable in state]

  def add_pass(index, sums):
    loss, gradients = loss_and_gradients(model, image_parts[index], label_parts[index], loss_scale)
    after = [tf.convert_to_tensor(variable.value) for variable in state]
    for variable, value in zip(state, before, strict=True):
      variable.assign(value)
    return index + 1, tf.nest.map_structure(tf.add, sums, (loss, gradients, after))

  zeros = tf.nest.map_structure(
    lambda x: tf.zeros(x.shape, x.dtype), (tf.constant(0.0), list(model.trainable_variables), before)
  )
  _, sums = tf.while_loop(
    lambda index, _: index < num_pass, add_pass, (0, zeros), maximum_iterations=num_pass, parallel_iterations=1
  )
  loss, gradients, after = tf.nest.map_structure(lambda x: x / num_pass, sums)
  for variable, value in zip(state, after, strict=True):
    variable.assign(value)
  return loss, gradients
