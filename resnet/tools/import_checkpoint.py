"""Makes an experiment of a checkpoint of the original code, for the run scripts to evaluate or continue.

python -m resnet.tools.import_checkpoint --checkpoint revnet-104.tar.gz --model revnet-104 --id ID
"""

import os

from absl import flags

from resnet.configs import Config
from resnet.experiments.experiment import Experiment
from resnet.experiments.lock import locked
from resnet.original.checkpoint_files import require_checkpoint
from resnet.tools.checkpoint_flags import config_of_checkpoint, define_checkpoint_flags
from resnet.utils.app import run

FLAGS = flags.FLAGS


def define_flags() -> None:
  define_checkpoint_flags()
  flags.DEFINE_string("id", None, "Experiment ID, a new one.")
  flags.DEFINE_string("results", "./results/imagenet", "Folder of checkpoints, by experiment ID.")
  flags.mark_flags_as_required(["checkpoint", "id"])


def main() -> None:
  config = config_of_checkpoint(FLAGS)
  experiment = Experiment.named(FLAGS.id, FLAGS.results, logs="")  # No curves are written.
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
  require_checkpoint(checkpoint)
  # These load TensorFlow, which takes seconds: mistakes in the flags are answered before.
  from resnet.models import get_model
  from resnet.original.checkpoint import load_tf1_checkpoint
  from resnet.training.checkpoint import Checkpoints
  from resnet.training.optimizer import make_optimizer

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
