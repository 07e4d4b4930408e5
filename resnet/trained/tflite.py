"""A network for TFLite, in float32 and quantised to 8 bits, and the accuracy of such a model.

The models take pixels [N, height, width, 3] in 0..255, at the network's size, and give probabilities
[N, num_classes]: preprocessing and softmax are part of them.
"""

import os
import warnings
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from resnet.data.get_dataset import Dataset
from resnet.data.preprocessing import Preprocessing
from resnet.trained.classifier import Classifier

CALIBRATION_IMAGES = 200  # of the training images, from which the ranges of activations are taken


def convert(classifier: Classifier, train_data: Dataset | None = None) -> bytes:
  """The TFLite model: float32 in weights, activations and pixels; or, with `train_data`, in 8 bits.

  The latter is quantised after training: weights by channel, activations by their ranges on training images. It
  takes pixels in uint8. Its probabilities are float32 in both cases.
  """
  function = classifier.probabilities.get_concrete_function()
  converter = tf.lite.TFLiteConverter.from_concrete_functions([function], classifier)
  if train_data is not None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: _calibration(train_data)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
  return converter.convert()


def accuracy(model: bytes, data: Dataset) -> tuple[float, int]:
  """(the share of `data`'s examples that a TFLite model classifies rightly, in [0, 1]; their number)."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # That it will be in a package of its own.
    interpreter = tf.lite.Interpreter(model_content=model, num_threads=os.cpu_count())
  (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
  hits = examples = 0
  for images, labels in data.evaluation_batches():
    pixels = pixels_of(data.preprocessing, images)
    interpreter.resize_tensor_input(given["index"], pixels.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], pixels.astype(given["dtype"]))
    interpreter.invoke()
    hits += int(np.sum(interpreter.get_tensor(result["index"]).argmax(-1) == labels.numpy()))
    examples += len(pixels)
  return hits / examples, examples


def pixels_of(preprocessing: Preprocessing, images: tf.Tensor) -> np.ndarray:
  """The pixels in 0..255, whole numbers in float32, of images that are what the network takes."""
  return np.clip(np.round((images.numpy() - preprocessing.offset) / preprocessing.scale), 0, 255)


def _calibration(data: Dataset) -> Iterator[list[np.ndarray]]:
  # Black and white make the range of the pixels 0..255, so that a quantised pixel is the pixel.
  shape = [1, data.preprocessing.config.height, data.preprocessing.config.width, 3]
  yield [np.stack([np.zeros(shape[1:]), np.full(shape[1:], 255.0)]).astype(np.float32)]
  given = 0
  for images, _ in data.evaluation_batches():
    for image in pixels_of(data.preprocessing, images[: CALIBRATION_IMAGES - given]):
      yield [image[np.newaxis]]
    given += len(images)
    if given >= CALIBRATION_IMAGES:
      return
