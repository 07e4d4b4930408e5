#!/usr/bin/env python3
"""Trains a ResNet or RevNet on CIFAR-10, CIFAR-100, Fashion-MNIST or the digits that come with the package.

./run_cifar_train.py --dataset cifar-100 --model revnet-110
./run_cifar_train.py --restore --id EXPERIMENT
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process at once, also while modules load.

from absl import flags

from resnet.configs.config import NUM_CLASSES
from resnet.training_flags import choose_experiment, define_training_flags
from resnet.utils.app import run
from resnet.utils.errors import UserError
from resnet.utils.quiet import without_noise

FLAGS = flags.FLAGS


def define_flags():
  define_training_flags(dataset="cifar-10", results="./results/cifar", gpus_by_default="all")
  flags.DEFINE_enum(
    "dataset",
    None,
    [name for name in NUM_CLASSES if name != "imagenet"],
    "Dataset. Default: the configuration's, cifar-10.",
  )
  flags.DEFINE_string(
    "data_dir",
    "data",
    "Folder of the data, prepared by TensorFlow Datasets or as published, packed or not; else it is downloaded "
    "to it.",
  )
  flags.DEFINE_bool("validation", None, "Hold out a tenth of the training images, and evaluate on it.")


def main():
  experiment, config = choose_experiment(FLAGS, "resnet-32", FLAGS.dataset, FLAGS.validation)
  if config.dataset == "imagenet":
    raise UserError(f"{config.name} is a model for ImageNet; train it by run_imagenet_train.py")
  with without_noise():
    # These load TensorFlow, which takes seconds: mistakes in the flags are answered before.
    from resnet.data import EvaluationData, get_dataset, splits
    from resnet.training.strategy import make_strategy
    from resnet.training.train_loop import RunOptions, train

    strategy = make_strategy(FLAGS.num_gpu, config.batch_size)
  train_split, test_split = splits(config.run_validation)
  train_data = get_dataset(config, FLAGS.data_dir, train_split)
  test_data = get_dataset(config, FLAGS.data_dir, test_split)
  evaluation_data = {
    "train_acc": EvaluationData(train_data, num_batches=100),
    "valid_acc": EvaluationData(test_data),
  }
  options = RunOptions(
    restore=FLAGS.restore,
    max_num_steps=FLAGS.max_num_steps,
    keep_checkpoints=FLAGS.keep_checkpoints,
    monitors_reconstruction=FLAGS.monitor_reconstruction,
  )
  accuracy = train(config, experiment, strategy, train_data, evaluation_data, options)
  print(
    f"Final {'validation' if config.run_validation else 'test'} accuracy = {100 * accuracy['valid_acc']:.3f}"
  )


def cli():
  run(define_flags, main)


if __name__ == "__main__":
  cli()
