"""Makes ImageNet record files from ILSVRC2012's pictures.

python -m resnet.tools.build_imagenet_records --train_dir=ILSVRC2012_img_train.tar \\
  --validation_dir=ILSVRC2012_img_val.tar --validation_labels=synsets_of_validation.txt \\
  --bounding_boxes=ILSVRC2012_bbox_train_v2.tar.gz --output_dir=data/imagenet

Writes `train-00000-of-01024`, ... and `validation-00000-of-00128`, ... of tf.train.Example, pictures in random
order, with the features image/encoded (an RGB or grayscale JPEG), image/height, image/width, image/colorspace,
image/channels, image/format, image/filename, image/class/label (1..1000), image/class/synset, image/class/text
and image/object/bbox/{xmin,ymin,xmax,ymax,label}.

May be interrupted and started again: finished files are kept. A picture that cannot be read is reported and
left out, and noted in a file beside the records, `train-00007-of-01024.skipped`; the exit status then is 1.
"""

import concurrent.futures
import functools
import io
import multiprocessing
import os
import pathlib
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import tqdm
from absl import flags

from resnet.tools.build_imagenet_records.bounding_boxes import Box, read_boxes
from resnet.tools.build_imagenet_records.pictures import Picture, list_pictures, read_lines, with_labels
from resnet.tools.build_imagenet_records.shards import Shard, start_worker, write_shard
from resnet.utils.app import run
from resnet.utils.errors import UserError

_SHUFFLE_SEED = 12345
FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string(
    "train_dir", None, "Folder or tar file of the training pictures, by class; none: no training."
  )
  flags.DEFINE_string(
    "validation_dir",
    None,
    "Folder or tar file of the validation pictures, by class or all together; none: skipped.",
  )
  flags.DEFINE_string("output_dir", None, "Folder for the record files; made if need be.", required=True)
  flags.DEFINE_string(
    "labels_file",
    None,
    "Text file of the classes in the order of their labels, a line each: the synset and, if wanted, its name "
    "in words. None: the training folder's synsets in alphabetical order, which is the usual labelling.",
  )
  flags.DEFINE_string(
    "validation_labels", None, "Text file of the validation pictures' synsets, a line for each picture by name."
  )
  flags.DEFINE_string(
    "bounding_boxes",
    None,
    "CSV file of filename,xmin,ymin,xmax,ymax in relative coordinates, or folder or tar of PASCAL VOC XML.",
  )
  flags.DEFINE_integer(
    "train_shards", 1024, "Number of training record files.", lower_bound=1, upper_bound=99999
  )
  flags.DEFINE_integer(
    "validation_shards", 128, "Number of validation record files.", lower_bound=1, upper_bound=99999
  )
  flags.DEFINE_integer("num_workers", None, "Number of processes; none: one for each core.", lower_bound=1)


def main() -> None:
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="surrogateescape")  # Names of files need not be UTF-8.
  if not (FLAGS.train_dir or FLAGS.validation_dir):
    raise UserError("nothing to do: give --train_dir or --validation_dir")
  splits = {}
  if FLAGS.train_dir:
    splits["train"] = (list_pictures(FLAGS.train_dir), FLAGS.train_shards)
    if not splits["train"][0][0].synset:
      raise UserError(f"--train_dir={FLAGS.train_dir} must hold one folder or tar for each class")
  if FLAGS.validation_dir:
    splits["validation"] = (
      _validation_pictures(FLAGS.validation_dir, FLAGS.validation_labels),
      FLAGS.validation_shards,
    )
  classes = _read_classes(FLAGS.labels_file, next(iter(splits.values()))[0])
  boxes = read_boxes(FLAGS.bounding_boxes) if FLAGS.bounding_boxes else {}
  os.makedirs(FLAGS.output_dir, exist_ok=True)
  shards = [
    shard
    for split, (pictures, number) in splits.items()
    for shard in plan_shards(FLAGS.output_dir, split, pictures, number, classes)
  ]
  build(shards, boxes, FLAGS.num_workers or len(os.sched_getaffinity(0)))
  _summarize(shards)


def plan_shards(
  output_dir: str, split: str, pictures: list[Picture], number: int, classes: dict[str, tuple[int, str]]
) -> list[Shard]:
  """Divides a split's pictures, in random order, among its record files.

  Raises:
    UserError: a picture's class is unknown, there are fewer pictures than files, or the folder already holds a
      set of another number of files.
  """
  unknown = sorted({picture.synset for picture in pictures} - set(classes))
  if unknown:
    raise UserError(f"the {split} pictures have {len(unknown)} classes without a label, such as {unknown[0]!r}")
  if len(pictures) < number:
    raise UserError(f"{number} {split} files for {len(pictures)} pictures; lower --{split}_shards")
  for name in os.listdir(output_dir):
    match = re.fullmatch(rf"{split}-\d{{5}}-of-(\d{{5}})", name)
    if match and int(match[1]) != number:
      raise UserError(f"{output_dir} already holds {name}, of another set; delete it, or choose another folder")
  pictures = list(pictures)
  random.Random(_SHUFFLE_SEED).shuffle(pictures)
  bounds = [len(pictures) * index // number for index in range(number + 1)]
  return [
    Shard(
      os.path.join(output_dir, f"{split}-{index:05d}-of-{number:05d}"),
      [(picture, *classes[picture.synset]) for picture in pictures[bounds[index] : bounds[index + 1]]],
    )
    for index in range(number)
  ]


def build(shards: list[Shard], boxes: dict[str, list[Box]], num_workers: int) -> None:
  """Writes the shards that are not there yet, in `num_workers` processes, and reports bad pictures."""
  total = sum(len(shard.pictures) for shard in shards)
  with tqdm.tqdm(total=total, unit=" pictures", smoothing=0.05) as bar:
    missing = []
    for shard in shards:
      if os.path.exists(shard.path):
        bar.update(len(shard.pictures))
      else:
        missing.append(shard)
    tasks = [functools.partial(write_shard, shard, _boxes_of(shard, boxes)) for shard in missing]
    for number_of_pictures, problems in _run_all(tasks, num_workers):
      for problem in problems:
        bar.write(f"skipped {problem}")
      bar.update(number_of_pictures)


def _boxes_of(shard: Shard, boxes: dict[str, list[Box]]) -> dict[str, list[Box]]:
  stems = (os.path.splitext(picture.name)[0] for picture, _, _ in shard.pictures)
  return {stem: boxes[stem] for stem in stems if stem in boxes}


def _run_all(
  tasks: Sequence[Callable[[], tuple[int, list[str]]]], num_workers: int
) -> Iterator[tuple[int, list[str]]]:
  """The results of `tasks`, in the order in which they are done."""
  if num_workers == 1 or len(tasks) < 2:
    yield from (task() for task in tasks)
    return
  # Processes are spawned: TensorFlow's threads do not survive a fork.
  pool = concurrent.futures.ProcessPoolExecutor(
    min(num_workers, len(tasks)), multiprocessing.get_context("spawn"), start_worker
  )
  try:
    for future in concurrent.futures.as_completed([pool.submit(task) for task in tasks]):
      yield future.result()
  except concurrent.futures.process.BrokenProcessPool as error:
    raise UserError("a worker process was killed, perhaps for lack of memory; start again to go on") from error
  finally:
    pool.shutdown(cancel_futures=True)


def _validation_pictures(folder: str, labels_file: str | None) -> list[Picture]:
  pictures = list_pictures(folder)
  if pictures[0].synset:
    return pictures
  if not labels_file:
    raise UserError(f"the pictures in {folder} are not sorted by class; give --validation_labels")
  return with_labels(pictures, labels_file)


def _read_classes(labels_file: str | None, pictures: Iterable[Picture]) -> dict[str, tuple[int, str]]:
  """The label, from 1, and the name in words of each synset."""
  if labels_file:
    lines = [line.split(maxsplit=1) for line in read_lines(labels_file)]
  else:
    lines = [[synset] for synset in sorted({picture.synset for picture in pictures})]
  classes = {line[0]: (label, "".join(line[1:])) for label, line in enumerate(lines, start=1)}
  if len(classes) < len(lines):
    raise UserError(f"{labels_file} lists a synset twice")
  return classes


def _summarize(shards: list[Shard]) -> None:
  """Prints what there is now.

  Raises:
    UserError: pictures were left out, now or by an earlier run.
  """
  noted = [shard.skipped_path for shard in shards if os.path.exists(shard.skipped_path)]
  skipped = sum(len(read_lines(path)) for path in noted)
  total = sum(len(shard.pictures) for shard in shards)
  folder = pathlib.Path(shards[0].path).parent
  print(f"{total - skipped} pictures in {len(shards)} record files in {folder}")
  if skipped:
    raise UserError(
      f"{skipped} of {total} pictures were skipped; {folder}/*.skipped name them. To try again, delete the "
      "record files of that name and start again"
    )


def cli() -> None:
  run(define_flags, main)


if __name__ == "__main__":
  cli()
