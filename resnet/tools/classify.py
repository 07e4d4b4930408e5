"""Says what pictures show: the likeliest classes of each, by name and with their probabilities.

python -m resnet.tools.classify --id EXPERIMENT picture.jpg folder
python -m resnet.tools.classify --export FOLDER - <picture.jpg
python -m resnet.tools.classify --checkpoint revnet-104.tar.gz --model revnet-104 --csv folder
"""

import csv
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import flags

from resnet.experiments.experiment import Experiment
from resnet.original.checkpoint_files import require_checkpoint
from resnet.tools.checkpoint_flags import config_of_checkpoint, define_checkpoint_flags
from resnet.utils.app import run
from resnet.utils.errors import UserError

if TYPE_CHECKING:
  import tensorflow as tf

RESULTS = ("./results/cifar", "./results/imagenet")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")  # of the files that are taken from a folder
STANDARD_INPUT = "-"
BATCH_SIZE = 32  # pictures that go through the network at a time
SHOWN_PROBLEMS = 3

# [N] strings, files of pictures -> "probabilities" and "class_names", [N, num_classes] both.
Serve = Callable[["tf.Tensor"], dict[str, "tf.Tensor"]]
FLAGS = flags.FLAGS


class Guess(NamedTuple):
  """A class, and its probability."""

  name: str
  probability: float


def define_flags() -> None:
  flags.DEFINE_string("id", None, "Experiment ID.")
  flags.DEFINE_string(
    "results",
    None,
    f"Folder of checkpoints, by experiment ID. Default: the one of {' and '.join(RESULTS)} with it.",
  )
  flags.DEFINE_integer("ckpt_num", -1, "Step of the experiment's checkpoint; -1: the newest.", lower_bound=-1)
  flags.DEFINE_string("export", None, "Folder that export_checkpoint wrote, instead of --id.")
  define_checkpoint_flags()
  flags.DEFINE_string(
    "data_dir", "data", "Folder of the data set, for the mean image of a CIFAR network that has none with it."
  )
  flags.DEFINE_integer("top", 5, "How many classes to print for each picture.", lower_bound=1)
  flags.DEFINE_bool("csv", False, "Print a table: picture, rank, class, probability.")


def main(arguments: list[str]) -> None:
  if not arguments:
    raise UserError("no picture; give files, folders, or - for standard input")
  paths = list(itertools.chain(*map(pictures_of, arguments)))
  serve = _chosen()
  show = _csv_rows if FLAGS.csv else _lines
  if FLAGS.csv:
    csv.writer(sys.stdout).writerow(["picture", "rank", "class", "probability"])
  problems: list[str] = []
  for path, guesses in classify(serve, paths, FLAGS.top, problems):
    show(path, guesses)
  if problems:
    more = len(problems) - SHOWN_PROBLEMS
    shown = "; ".join(problems[:SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
    raise UserError(f"{len(problems)} of {len(paths)} pictures could not be classified: {shown}")


def pictures_of(argument: str) -> list[str]:
  """The pictures that an argument names: itself, or those of a folder and the folders in it, in order.

  Raises:
    UserError: a folder without a picture.
  """
  if not pathlib.Path(argument).is_dir():
    return [argument]
  files = sorted(path for path in pathlib.Path(argument).rglob("*") if path.suffix.lower() in SUFFIXES)
  if not files:
    raise UserError(f"no picture in {argument}: there is no file *{', *'.join(SUFFIXES)}")
  return [str(path) for path in files]


def classify(
  serve: Serve, paths: Sequence[str], top: int, problems: list[str]
) -> Iterator[tuple[str, list[Guess]]]:
  """(path, its likeliest classes, the likeliest first) of each picture, in order.

  Args:
    serve: of a `Classifier` or of a SavedModel of one.
    paths: of the pictures; "-" is standard input.
    top: how many classes.
    problems: gets a line, with the path, for each picture that cannot be read; it is passed over.
  """
  for start in range(0, len(paths), BATCH_SIZE):
    files = []
    for path in paths[start : start + BATCH_SIZE]:
      try:
        file = sys.stdin.buffer.read() if path == STANDARD_INPUT else pathlib.Path(path).read_bytes()
      except OSError as error:
        problems.append(f"{path}: {error.strerror}")
        continue
      files.append((path, file))
    for path, (probabilities, names) in _served(serve, files, problems):
      best = np.argsort(-probabilities, kind="stable")[:top]
      yield path, [Guess(names[k].decode(), float(probabilities[k])) for k in best]


def _served(
  serve: Serve, files: Sequence[tuple[str, bytes]], problems: list[str]
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
  """(path, (probabilities, names) [num_classes]) of each of the (path, file)."""
  import tensorflow as tf

  try:
    outputs = serve(tf.constant([file for _, file in files], tf.string))
  except tf.errors.InvalidArgumentError:
    if len(files) > 1:  # One of them is damaged.
      for one in files:
        yield from _served(serve, [one], problems)
    else:
      problems.append(f"{_name(files[0][0])}: it is no intact JPEG, PNG, GIF or BMP picture")
    return
  rows = zip(outputs["probabilities"].numpy(), outputs["class_names"].numpy(), strict=True)
  yield from zip((path for path, _ in files), rows, strict=True)


def _chosen() -> Serve:
  """The network that the flags choose."""
  if sum(given is not None for given in (FLAGS.id, FLAGS.export, FLAGS.checkpoint)) != 1:
    raise UserError("one of --id, --export and --checkpoint must be given: what classifies")
  if FLAGS.export is not None:
    return _load_export(pathlib.Path(FLAGS.export))
  if FLAGS.checkpoint is not None:
    source, config, step = FLAGS.checkpoint, config_of_checkpoint(FLAGS), None
    require_checkpoint(source)
  else:
    experiment = _find(FLAGS.id, FLAGS.results)
    experiment.load_config()  # Raises where it is impossible.
    source, config, step = experiment.folder, None, None if FLAGS.ckpt_num == -1 else FLAGS.ckpt_num
  # It loads TensorFlow, which takes seconds: mistakes in the flags are answered before.
  from resnet.trained.loading import load_classifier

  return load_classifier(source, config, step, FLAGS.data_dir).serve


def _find(experiment_id: str, results: str | None) -> Experiment:
  folders = RESULTS if results is None else (results,)
  found = [Experiment.named(experiment_id, folder, logs="") for folder in folders]
  there = [experiment for experiment in found if experiment.config_file.is_file()]
  if len(there) != 1:
    problem = f"no experiment {experiment_id} in" if not there else f"an experiment {experiment_id} in each of"
    raise UserError(f"{problem} {' and '.join(folders)}; give its folder by --results")
  return there[0]


def _load_export(folder: pathlib.Path) -> Serve:
  saved = folder / "saved_model" if (folder / "saved_model").is_dir() else folder
  if not (saved / "saved_model.pb").is_file():
    raise UserError(f"no export in {folder}: {saved / 'saved_model.pb'} is missing")
  import tensorflow as tf

  try:
    return tf.saved_model.load(str(saved)).signatures["serving_default"]
  except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
    raise UserError(f"the SavedModel in {saved} is damaged or none of export_checkpoint: {error}") from error


def _name(path: str) -> str:
  return "standard input" if path == STANDARD_INPUT else path


def _lines(path: str, guesses: Sequence[Guess]) -> None:
  print(_name(path))
  for name, probability in guesses:
    print(f"  {100 * probability:6.2f} %  {name}")


def _csv_rows(path: str, guesses: Sequence[Guess]) -> None:
  for rank, (name, probability) in enumerate(guesses, start=1):
    csv.writer(sys.stdout).writerow([path, rank, name, f"{probability:.6f}"])


def cli() -> None:
  run(define_flags, main, takes_arguments=True)


if __name__ == "__main__":
  cli()
