"""Writes an experiment for other programs: the original code, Keras, a server of SavedModels, or TFLite.

python -m resnet.tools.export_checkpoint --id ID --output revnet-104
"""

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from resnet.configs import Config, save_config
from resnet.experiments.experiment import Experiment
from resnet.utils.app import run
from resnet.utils.fresh_folder import fresh_folder, require_absent

if TYPE_CHECKING:
  import keras

  from resnet.data.preprocessing import Preprocessing
  from resnet.trained.classifier import Classifier

FORMATS = ("tf1", "keras", "saved_model")
FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("id", None, "Experiment ID.")
  flags.DEFINE_string("results", "./results/imagenet", "Folder of checkpoints, by experiment ID.")
  flags.DEFINE_integer("ckpt_num", -1, "Step of the checkpoint; -1: the newest.", lower_bound=-1)
  flags.DEFINE_string("output", None, "Folder to write, a new one.")
  flags.DEFINE_multi_enum(
    "format",
    list(FORMATS),
    FORMATS,
    "What to write: tf1/, a checkpoint of the original code; model.keras, which takes pixels in 0..255; "
    "saved_model/, which takes pictures. Repeatable; default: all.",
  )
  flags.DEFINE_bool(
    "tflite",
    False,
    "Also write model_float32.tflite and model_int8.tflite, and print the accuracy of each on the test images.",
  )
  flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of the data set, for --tflite, and for the mean image of an experiment that has none. Default: "
    "data, or data/imagenet.",
  )
  flags.mark_flags_as_required(["id", "output"])


def main() -> None:
  experiment = Experiment.named(FLAGS.id, FLAGS.results, logs="")  # No curves are written.
  step = None if FLAGS.ckpt_num == -1 else FLAGS.ckpt_num
  step = export_checkpoint(experiment, FLAGS.output, FLAGS.format, step, FLAGS.data_dir, FLAGS.tflite)
  written = [*FLAGS.format, *(["tflite"] if FLAGS.tflite else [])]
  print(f"{FLAGS.output}: experiment {experiment.id} at step {step:,} as {', '.join(written)}")


def export_checkpoint(
  experiment: Experiment,
  output: str | os.PathLike,
  formats: Sequence[str] = FORMATS,
  step: int | None = None,
  data_dir: str | os.PathLike | None = None,
  to_tflite: bool = False,
) -> int:
  """Writes a checkpoint of `experiment`, its configuration conf.json and its class_names.txt, in other formats.

  Args:
    experiment: with a checkpoint of a run.
    output: folder, must not exist. It is made whole, or not at all.
    formats: of FORMATS. "tf1" has everything that the experiment has. "keras" (model.keras, to be read by
      `keras.models.load_model` after `import resnet.models`: pixels [N, height, width, C] in 0..255 -> logits)
      and "saved_model" (pictures of any size -> probabilities and names, see `Classifier.save`) have weights,
      moving statistics and preprocessing.
    step: of the checkpoint; None for the newest.
    data_dir: the folder of the data set, for the mean image if the experiment has none, and for `to_tflite`.
    to_tflite: also write model_float32.tflite and model_int8.tflite, which take pixels at the network's size in
      0..255 and give probabilities, and print the accuracy of each on the test images.

  Returns:
    The step.

  Raises:
    UserError (a ValueError): no such experiment or checkpoint, `output` exists, or the data is needed and not
      there.
  """
  config = experiment.load_config()
  require_absent(pathlib.Path(output))
  # These load TensorFlow, which takes seconds: mistakes in the flags are answered before.
  from resnet.models import get_model
  from resnet.original.checkpoint import save_tf1_checkpoint
  from resnet.trained.classifier import Classifier
  from resnet.trained.loading import class_names_of, preprocessing_of
  from resnet.training.checkpoint import Checkpoints
  from resnet.training.optimizer import make_optimizer

  model = get_model(config)
  optimizer = make_optimizer(config, model)
  step = Checkpoints(experiment.folder, model, optimizer).restore(step)
  names = class_names_of(config, experiment.folder)
  with fresh_folder(pathlib.Path(output)) as folder:
    save_config(config, folder / experiment.config_file.name)
    names_file = folder / experiment.class_names_file.name
    names_file.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if "tf1" in formats:
      (folder / "tf1").mkdir()
      save_tf1_checkpoint(model, optimizer, folder / "tf1")
    if to_tflite or set(formats) & {"keras", "saved_model"}:
      preprocessing = preprocessing_of(config, experiment.folder, data_dir)
    if "keras" in formats:
      _on_pixels(model, preprocessing).save(folder / "model.keras")
    if to_tflite or "saved_model" in formats:
      classifier = Classifier(model, preprocessing, names)
    if "saved_model" in formats:
      classifier.save(folder / "saved_model")
    if to_tflite:
      _export_tflite(classifier, config, data_dir, folder)
  return step


def _on_pixels(model: "keras.Model", preprocessing: "Preprocessing") -> "keras.Model":
  """The network after its preprocessing as a layer: pixels [N, height, width, C] in 0..255 -> logits."""
  import keras

  config = model.config
  pixels = keras.Input((config.height, config.width, config.num_channel), name="pixels")
  scaling = keras.layers.Rescaling(preprocessing.scale, preprocessing.offset, dtype="float32")
  return keras.Model(pixels, model(scaling(pixels)), name=f"{model.name}_on_pixels")


def _export_tflite(
  classifier: "Classifier", config: Config, data_dir: str | os.PathLike | None, folder: pathlib.Path
) -> None:
  from resnet.data import get_dataset, splits
  from resnet.trained import tflite

  imagenet = config.dataset == "imagenet"
  place = data_dir or ("data/imagenet" if imagenet else "data")
  of_training, of_test = ("train", "validation") if imagenet else splits(validation=False)
  test_data = get_dataset(config, place, of_test)
  for kind, calibration in (("float32", None), ("int8", get_dataset(config, place, of_training))):
    model = tflite.convert(classifier, calibration)
    name = f"model_{kind}.tflite"
    (folder / name).write_bytes(model)
    accuracy, examples = tflite.accuracy(model, test_data)
    print(f"{name}: {len(model) / 1e6:.1f} MB, accuracy {100 * accuracy:.3f} % on {examples:,} test images")


def cli() -> None:
  run(define_flags, main)


if __name__ == "__main__":
  cli()
