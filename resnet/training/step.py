"""Loss and gradients of one batch."""

import keras
import tensorflow as tf


def loss_and_gradients(
  model: keras.Model, images: tf.Tensor, labels: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
  """Runs the model forward in training mode, and backward. Its moving statistics move once.

  Works eagerly and inside `tf.function`; in a replica of a `tf.distribute` strategy it sees the
  replica's part of the batch alone.

  Args:
    model: of `resnet.models.get_model`.
    images: [N, H, W, C] float32.
    labels: [N] integers in [0, num_classes).

  Returns:
    The mean cross entropy, a scalar, and the gradients of the cross entropy plus weight decay in the
    order of `model.trainable_variables`. Weight decay adds wd * w for the kernels of the convolutions
    and the classifier only; it is not part of the loss.
  """
  with tf.GradientTape() as tape:
    logits = model(images, training=True)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    loss = tf.reduce_mean(losses)
  variables = model.trainable_variables
  gradients = tape.gradient(loss, variables)
  decayed = [
    gradient + model.config.wd * variable if variable.name == "kernel" else gradient
    for gradient, variable in zip(gradients, variables, strict=True)
  ]
  return loss, decayed
