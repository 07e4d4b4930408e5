#!/usr/bin/env python3
"""Evaluates an ImageNet experiment, on a GPU of its own while training goes on.

./run_imagenet_eval.py --id EXPERIMENT
./run_imagenet_eval.py --id EXPERIMENT --watch
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process at once, also while modules load.

from absl import flags

from resnet.experiments.experiment import Experiment
from resnet.utils.app import run
from resnet.utils.errors import UserError
from resnet.utils.quiet import without_noise

NUM_TRAIN_BATCHES = 100  # of the training images, that train_acc.csv is measured on

FLAGS = flags.FLAGS


def define_flags():
  flags.DEFINE_string("id", None, "Experiment ID.", required=True)
  flags.DEFINE_integer("ckpt_num", -1, "Step of the checkpoint; -1: the newest.")
  flags.DEFINE_string(
    "results", "./results/imagenet", "Folder of configurations and checkpoints, by experiment ID."
  )
  flags.DEFINE_string("logs", "./logs/public", "Folder of the curves, by experiment ID.")
  flags.DEFINE_string("data_dir", "data/imagenet", "Folder of record files, or of TensorFlow Datasets.")
  flags.DEFINE_bool("watch", False, "Evaluate each checkpoint as it appears, until training has ended.")


def main():
  experiment = Experiment.named(FLAGS.id, FLAGS.results, FLAGS.logs)
  config = experiment.load_config()
  if config.dataset != "imagenet":
    raise UserError(f"experiment {FLAGS.id} is one of {config.dataset}, not of imagenet")
  with without_noise():
    # These load TensorFlow, which takes seconds: mistakes in the flags are answered before.
    from resnet.data import EvaluationData, get_dataset
    from resnet.training.evaluate import evaluate_checkpoints, use_one_gpu

    use_one_gpu()
  train_data = get_dataset(config, FLAGS.data_dir, "train")
  validation_data = get_dataset(config, FLAGS.data_dir, "validation")
  experiment.require_classes(validation_data.class_names)
  evaluation_data = {
    "train_acc": EvaluationData(train_data, NUM_TRAIN_BATCHES),
    "valid_acc": EvaluationData(validation_data),
  }
  step = None if FLAGS.ckpt_num == -1 else FLAGS.ckpt_num
  evaluate_checkpoints(config, experiment, evaluation_data, step, FLAGS.watch)


def cli():
  run(define_flags, main)


if __name__ == "__main__":
  cli()
