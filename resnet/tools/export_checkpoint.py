"""Writes an experiment for other programs: the original code, Keras, or a server of SavedModels.

python -m resnet.tools.export_checkpoint --id ID --output revnet-104
"""

import os
import pathlib
from collections.abc import Sequence

import tensorflow as tf
from absl import flags

from resnet.configs import save_config
from resnet.experiments.experiment import Experiment
from resnet.models import get_model
from resnet.original.checkpoint import save_tf1_checkpoint
from resnet.training.checkpoint import Checkpoints
from resnet.training.optimizer import make_optimizer
from resnet.utils.app import run
from resnet.utils.fresh_folder import fresh_folder

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
    "What to write: tf1/, a checkpoint of the original code; model.keras; saved_model/, which takes images "
    "[N, H, W, C] and returns logits. Repeatable; default: all.",
  )
  flags.mark_flags_as_required(["id", "output"])


def main() -> None:
  experiment = Experiment.named(FLAGS.id, FLAGS.results, logs="")  # No curves are written.
  step = None if FLAGS.ckpt_num == -1 else FLAGS.ckpt_num
  step = export_checkpoint(experiment, FLAGS.output, FLAGS.format, step)
  print(f"{FLAGS.output}: experiment {experiment.id} at step {step:,} as {', '.join(FLAGS.format)}")


def export_checkpoint(
  experiment: Experiment,
  output: str | os.PathLike,
  formats: Sequence[str] = FORMATS,
  step: int | None = None,
) -> int:
  """Writes a checkpoint of `experiment`, and its configuration conf.json, in other formats.

  Args:
    experiment: with a checkpoint of a run.
    output: folder, must not exist. It is made whole, or not at all.
    formats: of FORMATS. "tf1" has everything that the experiment has; "keras" (model.keras, to be read by
      `keras.models.load_model` after `import resnet.models`) and "saved_model" (images [N, H, W, C] of
      any N -> logits [N, num_classes]) have weights and moving statistics.
    step: of the checkpoint; None for the newest.

  Returns:
    The step.

  Raises:
    UserError (a ValueError): no such experiment or checkpoint, or `output` exists.
  """
  config = experiment.load_config()
  model = get_model(config)
  optimizer = make_optimizer(config, model)
  checkpoints = Checkpoints(experiment.folder, model, optimizer)
  step = checkpoints.restore(step)
  with fresh_folder(pathlib.Path(output)) as folder:
    save_config(config, folder / experiment.config_file.name)
    if "tf1" in formats:
      (folder / "tf1").mkdir()
      save_tf1_checkpoint(model, optimizer, folder / "tf1")
    if "keras" in formats:
      model.save(folder / "model.keras")
    if "saved_model" in formats:
      images = tf.TensorSpec((None, config.height, config.width, config.num_channel), tf.float32)
      model.export(folder / "saved_model", input_signature=[images], verbose=False)
  return step


def cli() -> None:
  run(define_flags, main)


if __name__ == "__main__":
  cli()
