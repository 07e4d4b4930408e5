"""Makes an experiment of a checkpoint of the original code, for the run scripts to evaluate or continue.

python -m resnet.tools.import_checkpoint --checkpoint revnet-104.tar.gz --model revnet-104 --id ID
"""

import dataclasses
import os

from absl import flags

from resnet.configs import get_config, override_config
from resnet.configs.config import NUM_CLASSES, Config
from resnet.experiments.experiment import Experiment
from resnet.experiments.lock import locked
from resnet.models import get_model
from resnet.original.checkpoint import load_tf1_checkpoint
from resnet.original.config_file import load_config
from resnet.training.checkpoint import Checkpoints
from resnet.training.optimizer import make_optimizer
from resnet.utils.app import run
from resnet.utils.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string(
    "checkpoint", None, "Checkpoint of the original code: its prefix, its folder, or a .tar.gz of it."
  )
  flags.DEFINE_string("model", None, "Model that it is of: one of resnet/configs.")
  flags.DEFINE_string("config", None, "JSON file of its configuration, instead of --model.")
  flags.DEFINE_enum("dataset", None, list(NUM_CLASSES), "Dataset. Default: the configuration's.")
  flags.DEFINE_multi_string("override", [], "field=value: a field of the configuration to change. Repeatable.")
  flags.DEFINE_string("id", None, "Experiment ID, a new one.")
  flags.DEFINE_string("results", "./results/imagenet", "Folder of checkpoints, by experiment ID.")
  flags.mark_flags_as_required(["checkpoint", "id"])


def main() -> None:
  if (FLAGS.model is None) == (FLAGS.config is None):
    raise UserError("one of --model and --config must be given: what the checkpoint is of")
  experiment = Experiment.named(FLAGS.id, FLAGS.results, logs="")  # No curves are written.
  config = get_config(FLAGS.model) if FLAGS.model else load_config(FLAGS.config)
  if FLAGS.dataset:
    config = dataclasses.replace(config, dataset=FLAGS.dataset, num_classes=NUM_CLASSES[FLAGS.dataset])
  config = override_config(config, FLAGS.override)
  step = import_checkpoint(FLAGS.checkpoint, experiment, config)
  print(f"experiment {experiment.id}: {config.name} at step {step:,}, in {experiment.folder}")


def import_checkpoint(checkpoint: str | os.PathLike, experiment: Experiment, config: Config) -> int:
  """Writes weights, moving statistics, momentum and step of `checkpoint` as the experiment's checkpoint.

  Args:
    checkpoint: of the original code, as for `load_tf1_checkpoint`.
    experiment: without checkpoints.
    config: of the checkpoint's network.

  Returns:
    The step.

  Raises:
    UserError (a ValueError): the experiment exists, or the checkpoint cannot be read or does not fit.
  """
  experiment.require_new()
  model = get_model(config)
  optimizer = make_optimizer(config, model)
  load_tf1_checkpoint(model, checkpoint, optimizer)
  step = int(optimizer.iterations.numpy())
  with locked(experiment.folder):
    experiment.create(config)
    Checkpoints(experiment.folder, model, optimizer).save(step)
  return step


def cli() -> None:
  run(define_flags, main)


if __name__ == "__main__":
  cli()
