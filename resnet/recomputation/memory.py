"""What recomputation saves in a network: the peak memory of a training step, with it and without."""

import concurrent.futures
import dataclasses
import math
import multiprocessing
import pathlib
import resource
import sys
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from resnet.recomputation.contexts import ordinary_backprop
from resnet.recomputation.custom_vjp import Tensors

MB = 1e6  # bytes


@dataclasses.dataclass(frozen=True)
class MemoryReport:
  """Memory of a training step's forward and backward pass, in bytes.

  Attributes:
    reversible: of the model as it is.
    ordinary: of the model, every activation stored.
    weights: the model's variables, which take their memory either way.
    measure: in words, how the first two were measured.

  Example:
    >>> print(MemoryReport(reversible=120_000_000, ordinary=924_000_000, weights=7_000_000, measure="by hand"))
    training step, by hand:
      reversible      120.0 MB
      ordinary        924.0 MB
      weights           7.0 MB, in neither
  """

  reversible: int
  ordinary: int
  weights: int
  measure: str

  def __str__(self) -> str:
    return (
      f"training step, {self.measure}:\n"
      f"  reversible {self.reversible / MB:10.1f} MB\n"
      f"  ordinary   {self.ordinary / MB:10.1f} MB\n"
      f"  weights    {self.weights / MB:10.1f} MB, in neither"
    )


def memory_report(model: keras.layers.Layer, inputs: Tensors, **arguments: Any) -> MemoryReport:
  """The memory that a training step of `model` takes, as it is and by ordinary backpropagation.

  The step is `model(inputs, training=True, **arguments)`, the mean square of the outputs, and its gradients for
  all weights, without an optimizer. The model is left as it is.

  On a GPU the step runs in this process. The figures are the most memory that TensorFlow's allocator had
  handed out at once during the step, above what it had before. On a CPU each figure is from a process of its
  own: by how much the whole batch raises the peak of resident memory, after a step of a single example. Memory
  that building the graph took is used again, so small figures come out too small: those below some 50 MB say
  little.

  Args:
    model: any Keras layer or model with `ReversibleChain`s or `Recompute`s in it, or RevNet. On a CPU it is
      saved and loaded: classes of your own need `keras.saving.register_keras_serializable`, and a script needs
      `if __name__ == "__main__":` around what it runs.
    inputs: a batch, a tensor or a structure of them, of at least two examples.
    **arguments: of the call.

  Raises:
    ValueError: nothing in the model is trained; the batch is too small; another process cannot load the model.

  Example:
    >>> if __name__ == "__main__":  # It starts processes.
    ...   print(memory_report(model, images))
  """
  batch = tf.nest.flatten(inputs)[0].shape[0]
  if batch < 2:
    raise ValueError(f"memory_report needs a batch of at least 2 examples, got {batch}")
  model(inputs, **arguments)  # Builds it.
  if not model.trainable_variables:
    raise ValueError(f"memory_report needs a model with trainable variables, {model.name!r} has none")
  weights = sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in model.variables)
  gpus = tf.config.list_logical_devices("GPU")
  if gpus:
    before = [tf.convert_to_tensor(variable.value) for variable in model.non_trainable_variables]
    found = [_peak_on_gpu(gpus[0].name, model, (inputs, arguments), ordinary) for ordinary in (False, True)]
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
      variable.assign(value)
    measure = "peak of TensorFlow's allocator on the GPU above what it held before"
  else:
    given = tf.nest.map_structure(lambda x: x.numpy() if tf.is_tensor(x) else x, (inputs, arguments))
    found = [_in_a_process(model, given, ordinary) for ordinary in (False, True)]
    measure = "resident memory on the CPU beyond that of a step of one example, a process each"
  return MemoryReport(found[0], found[1], weights, measure)


def _peak_on_gpu(device: str, model: keras.layers.Layer, given: tuple, ordinary: bool) -> int:
  step = _traced(model, given, ordinary)
  step(*given)  # Work that is done only once, such as choosing algorithms, may take more.
  name = device.removeprefix("/device:")
  tf.config.experimental.reset_memory_stats(name)
  before = tf.config.experimental.get_memory_info(name)["current"]
  step(*given)
  return tf.config.experimental.get_memory_info(name)["peak"] - before


def _in_a_process(model: keras.layers.Layer, given: tuple, ordinary: bool) -> int:
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    try:
      return pool.submit(_resident_growth, model, given, ordinary).result()
    except (concurrent.futures.BrokenExecutor, TypeError, AttributeError) as error:
      raise ValueError(
        f"memory_report starts processes that load the model, and one could not ({error}); register classes of "
        "your own by keras.saving.register_keras_serializable, in a file, and call it if __name__ == '__main__'"
      ) from error


def _resident_growth(model: keras.layers.Layer, given: tuple, ordinary: bool) -> int:
  """By how many bytes the whole batch raises the peak of this process, after a step of one example."""
  batch = tf.nest.flatten(given)[0].shape[0]

  def one(x: Any) -> Any:
    return x[:1] if getattr(x, "shape", ()) and x.shape[0] == batch else x

  peaks = []
  for part in (tf.nest.map_structure(one, given), given):
    part = tf.nest.map_structure(lambda x: tf.convert_to_tensor(x) if hasattr(x, "shape") else x, part)
    step = _traced(model, part, ordinary)
    for _ in range(2):
      step(*part)
    peaks.append(_peak())
  return peaks[1] - peaks[0]


def _peak() -> int:
  """The peak of this process's resident memory so far, in bytes."""
  if sys.platform == "linux":  # There ru_maxrss counts what the parent held when it started this process.
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _traced(model: keras.layers.Layer, given: tuple, ordinary: bool) -> Callable:
  """The step as a graph: a function of what is given, the inputs and the arguments."""

  @tf.function(autograph=False)
  def step(inputs: Tensors, arguments: dict[str, Any]) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
      outputs = tf.nest.flatten(model(inputs, training=True, **arguments))
      loss = tf.add_n([tf.cast(tf.reduce_mean(tf.square(y)), tf.float32) for y in outputs])
    gradients = tape.gradient(loss, model.trainable_variables)
    return [tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None]

  if not ordinary:
    return step
  with ordinary_backprop():
    step.get_concrete_function(*given)
  return step
