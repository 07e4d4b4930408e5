#!/usr/bin/env python3
"""Trains a ResNet or RevNet on ImageNet by synchronous SGD, on the GPUs of one machine or of several.

./run_imagenet_train.py --model revnet-104
./run_imagenet_train.py --restore --id EXPERIMENT
"""

import os
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process at once, also while modules load.
# Pictures are prepared many at a time: each one's compiled colour jitter is to take one thread, and all of the
# width of its vector unit.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false --xla_cpu_prefer_vector_width=512")

from absl import flags

from resnet.configs.description import read_description
from resnet.training_flags import choose_experiment, define_training_flags
from resnet.utils.app import run
from resnet.utils.errors import UserError
from resnet.utils.quiet import without_noise

NUM_GPU = 4  # by default, as in the paper

FLAGS = flags.FLAGS


def define_flags():
  define_training_flags(dataset="imagenet", results="./results/imagenet", gpus_by_default=f"{NUM_GPU}")
  flags.DEFINE_string("data_dir", "data/imagenet", "Folder of record files, or of TensorFlow Datasets.")
  flags.DEFINE_integer(
    "num_pass",
    None,
    "Forward and backward passes of each step, over which gradients are averaged. A new experiment has 1.",
    lower_bound=1,
  )


def main():
  description = read_description(FLAGS.data_dir)
  num_classes = len(description.classes) if description else None
  experiment, config = choose_experiment(FLAGS, "resnet-50", num_classes=num_classes)
  if config.dataset != "imagenet":
    raise UserError(f"{config.name} is a model for {config.dataset}; train it by run_cifar_train.py")
  with without_noise():
    # These load TensorFlow, which takes seconds: mistakes in the flags are answered before.
    from resnet.data import get_dataset
    from resnet.training.strategy import make_strategy
    from resnet.training.train_loop import RunOptions, train

    strategy = make_strategy(FLAGS.num_gpu, config.batch_size, default=NUM_GPU)
  train_data = get_dataset(config, FLAGS.data_dir, "train")
  if train_data.class_names is None:
    print(
      f"{FLAGS.data_dir} has no description.json: its pictures are taken as of {config.num_classes} classes"
    )
  options = RunOptions(
    restore=FLAGS.restore,
    max_num_steps=FLAGS.max_num_steps,
    keep_checkpoints=FLAGS.keep_checkpoints,
    monitors_reconstruction=FLAGS.monitor_reconstruction,
  )
  train(config, experiment, strategy, train_data, {}, options)


def cli():
  run(define_flags, main)


if __name__ == "__main__":
  cli()
