"""Sees to it that CIFAR or Fashion-MNIST is there before a training, and says where it is missing.

python -m resnet.tools.prepare_data --dataset cifar-10 --data_dir data

Reads what the training will read: what TensorFlow Datasets has prepared in the folder, or the published files,
packed or not. Else it downloads them, so that machines without a network can train afterwards.
"""

from absl import flags

from resnet.configs.config import NUM_CLASSES
from resnet.utils.app import run

FLAGS = flags.FLAGS


def define_flags() -> None:
  names = [name for name in NUM_CLASSES if name not in ("digits", "imagenet")]
  flags.DEFINE_enum("dataset", None, names, "Dataset.", required=True)
  flags.DEFINE_string("data_dir", "data", "Folder of the data, as of the training.")


def main() -> None:
  from resnet.data.images import load_images  # It loads TensorFlow: mistakes in the flags are answered before.

  images = load_images(FLAGS.dataset, FLAGS.data_dir)
  counts = " and ".join(f"{len(labels):,} {split} images" for split, (_, labels) in images.items())
  print(f"{FLAGS.dataset} is ready in {FLAGS.data_dir}: {counts}")


def cli() -> None:
  run(define_flags, main)


if __name__ == "__main__":
  cli()
