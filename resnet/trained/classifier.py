"""A network with its preprocessing and the names of its classes: pictures in, probabilities out."""

import os
from collections.abc import Sequence

import keras
import tensorflow as tf

from resnet.data.preprocessing import Preprocessing
from resnet.reversible import ordinary_backprop
from resnet.utils.errors import UserError


class Classifier(tf.Module):
  """Classifies pictures of any size, decoded and preprocessed as the network's evaluation does it.

  Args:
    model: of `resnet.models.get_model`: images [N, height, width, 3] -> logits [N, num_classes].
    preprocessing: of its evaluation.
    class_names: of its outputs, in order.

  Raises:
    UserError: the network does not take three channels, or the names are not as many as its classes.

  Example:
    >>> config = get_config("revnet-38")
    >>> black = Preprocessing(config, mean_image=np.zeros([32, 32, 3], "float32"))
    >>> classifier = Classifier(get_model(config), black, list("abcdefghij"))
    >>> classifier.save("saved")
    >>> loaded = tf.saved_model.load("saved").signatures["pixels"]
    >>> loaded(tf.zeros([2, 50, 40, 3], "uint8"))["class_names"].shape
    TensorShape([2, 10])
  """

  def __init__(self, model: keras.Model, preprocessing: Preprocessing, class_names: Sequence[str]) -> None:
    super().__init__()
    config = model.config
    if config.num_channel != 3:
      raise UserError(f"num_channel must be 3 to take pictures, got {config.num_channel}")
    if len(class_names) != config.num_classes:
      raise UserError(
        f"class_names must be {config.num_classes}, a name for each class, got {len(class_names)}"
      )
    self.weights = [variable.value for variable in model.variables]  # What a SavedModel must have.
    names = tf.constant(list(class_names))
    shape = [None, config.height, config.width, 3]

    def logits_of(images):
      with ordinary_backprop():  # What is saved then has no gradients that a loaded model would lack.
        return tf.cast(model(images, training=False), tf.float32)

    def serve(pictures):
      logits = logits_of(preprocessing.batch(pictures))
      return {
        "probabilities": tf.nn.softmax(logits),
        "class_names": tf.tile(names[tf.newaxis], [tf.shape(logits)[0], 1]),
      }

    def network(images):
      return {"logits": logits_of(images)}

    def probabilities(pixels):
      return tf.nn.softmax(logits_of(preprocessing.standardised(pixels)))

    self.serve = tf.function(serve, reduce_retracing=True)
    self.network = tf.function(network, [tf.TensorSpec(shape, tf.float32, name="images")])
    self.probabilities = tf.function(probabilities, [tf.TensorSpec(shape, tf.float32, name="pixels")])

  def save(self, folder: str | os.PathLike) -> None:
    """Writes a SavedModel, which needs TensorFlow alone. Its signatures:

    - "serving_default": pictures, [N] strings, files of JPEG, PNG, GIF or BMP -> probabilities
      [N, num_classes], and class_names [N, num_classes] in the same order;
    - "pixels": pictures, [N, H, W, 3] uint8 of any H and W -> the same;
    - "network": images, [N, height, width, 3] float32, what the network takes -> logits [N, num_classes].
    """
    files = tf.TensorSpec([None], tf.string, name="pictures")
    pixels = tf.TensorSpec([None, None, None, 3], tf.uint8, name="pictures")
    signatures = {
      "serving_default": self.serve.get_concrete_function(files),
      "pixels": self.serve.get_concrete_function(pixels),
      "network": self.network.get_concrete_function(),
    }
    tf.saved_model.save(self, os.fspath(folder), signatures)
