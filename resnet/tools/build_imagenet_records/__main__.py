"""Makes record files from ILSVRC2012's pictures, or from your own in a folder for each class.

python -m resnet.tools.build_imagenet_records --train_dir=ILSVRC2012_img_train.tar \\
  --validation_dir=ILSVRC2012_img_val.tar --validation_labels=ILSVRC2012_devkit_t12.tar.gz \\
  --bounding_boxes=ILSVRC2012_bbox_train_v2.tar.gz --output_dir=data/imagenet
python -m resnet.tools.build_imagenet_records --train_dir=pictures --validation_share=0.1 \\
  --train_shards=8 --validation_shards=1 --output_dir=data/own

Writes `train-00000-of-01024`, ... and `validation-00000-of-00128`, ... of tf.train.Example, pictures in random
order, with the features image/encoded (an RGB or grayscale JPEG), image/height, image/width, image/colorspace,
image/channels, image/format, image/filename, image/class/label (from 1), image/class/synset, image/class/text
and image/object/bbox/{xmin,ymin,xmax,ymax,label}. Beside them `description.json` says what they are: the names
of the classes, the numbers and the sizes of the pictures. The training takes the number of classes from it.

May be interrupted and started again: finished files are kept. A picture that cannot be read is reported and
left out, and noted in a file beside the records, `train-00007-of-01024.skipped`; the exit status then is 1.
"""

import concurrent.futures
import dataclasses
import functools
import io
import itertools
import multiprocessing
import os
import pathlib
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import tqdm
from absl import flags

from resnet.configs.description import FILE as DESCRIPTION_FILE
from resnet.configs.description import Description, read_description, write_description
from resnet.tools.build_imagenet_records.bounding_boxes import Box, read_boxes
from resnet.tools.build_imagenet_records.pictures import Picture, list_pictures, read_lines
from resnet.tools.build_imagenet_records.shards import SHUFFLE_SEED, Shard, Written, plan_shards
from resnet.tools.build_imagenet_records.validation_labels import with_labels
from resnet.utils.app import run
from resnet.utils.errors import UserError

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
  flags.DEFINE_float(
    "validation_share",
    None,
    "Instead of --validation_dir: this share of each class of the training pictures, chosen at random.",
    lower_bound=0,
    upper_bound=1,
  )
  flags.DEFINE_string("output_dir", None, "Folder for the record files; made if need be.", required=True)
  flags.DEFINE_string(
    "labels_file",
    None,
    "Text file of the classes in the order of their labels, a line each: the synset and, if wanted, its name "
    "in words. None: the training folder's synsets in alphabetical order, which is the usual labelling.",
  )
  flags.DEFINE_string(
    "validation_labels",
    None,
    "Classes of validation pictures that are all together: LOC_val_solution.csv, ILSVRC2012_devkit_t12.tar.gz "
    "or its folder, or a text file of synsets, a line for each picture by name.",
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
  splits = _list_splits()
  known = read_description(FLAGS.output_dir)
  classes = _read_classes(FLAGS.labels_file, splits, known)
  description = dataclasses.replace(
    known or Description([], []),
    classes=[" ".join((text or synset).split()) for synset, (_, text) in classes.items()],
    folders=list(classes),
  )
  if known and (known.classes, known.folders) != (description.classes, description.folders):
    raise UserError(
      f"{FLAGS.output_dir} already holds records of other classes, see {DESCRIPTION_FILE} there; delete it, or "
      "choose another folder"
    )
  boxes = read_boxes(FLAGS.bounding_boxes) if FLAGS.bounding_boxes else {}
  os.makedirs(FLAGS.output_dir, exist_ok=True)
  number = {"train": FLAGS.train_shards, "validation": FLAGS.validation_shards}
  shards = {
    split: plan_shards(FLAGS.output_dir, split, pictures, number[split], classes)
    for split, pictures in splits.items()
  }
  write_description(FLAGS.output_dir, description)  # So that a restart keeps to these classes.
  everything = [shard for of_split in shards.values() for shard in of_split]
  sizes = build(everything, boxes, FLAGS.num_workers or len(os.sched_getaffinity(0)))
  for split, of_split in shards.items():
    description = describe(
      description, split, of_split, [size for shard in of_split for size in sizes[shard.path]]
    )
  write_description(FLAGS.output_dir, description)
  _summarize(everything, description)


def _list_splits() -> dict[str, list[Picture]]:
  """The pictures of each split that is asked for."""
  splits = {}
  if FLAGS.train_dir:
    splits["train"] = list_pictures(FLAGS.train_dir)
    if not splits["train"][0].synset:
      raise UserError(f"--train_dir={FLAGS.train_dir} must hold one folder or tar for each class")
  if FLAGS.validation_share:
    if FLAGS.validation_dir or not FLAGS.train_dir:
      raise UserError("--validation_share is of the pictures in --train_dir, instead of --validation_dir")
    splits["train"], splits["validation"] = hold_out(splits["train"], FLAGS.validation_share)
  elif FLAGS.validation_dir:
    splits["validation"] = _validation_pictures(FLAGS.validation_dir, FLAGS.validation_labels)
  return splits


def hold_out(pictures: Iterable[Picture], share: float) -> tuple[list[Picture], list[Picture]]:
  """(the rest, the validation pictures): `share` of each class, but at least one, at random by a fixed seed.

  Raises:
    UserError: a class would have none left.
  """
  draw = random.Random(SHUFFLE_SEED)
  rest, held_out = [], []
  for synset, of_class in itertools.groupby(pictures, lambda picture: picture.synset):
    shuffled = list(of_class)
    draw.shuffle(shuffled)
    number = max(1, round(share * len(shuffled)))
    if number == len(shuffled):
      raise UserError(f"--validation_share={share} is all of the {number} pictures of {synset!r}; lower it")
    held_out += shuffled[:number]
    rest += shuffled[number:]
  return rest, held_out


def describe(
  description: Description, split: str, shards: Sequence[Shard], sizes: Sequence[tuple[int, int]]
) -> Description:
  """The description with what there is of `split` now; sizes are height and width of each picture."""
  total = sum(os.path.getsize(shard.path) for shard in shards)
  sides = {}
  for name, values in zip(("height", "width"), zip(*sizes)):
    sides[name] = [min(values), statistics.median_low(values), max(values)]
  return dataclasses.replace(
    description,
    counts={**description.counts, split: len(sizes)},
    bytes={**description.bytes, split: total},
    sizes={**description.sizes, split: sides},
  )


def build(
  shards: list[Shard], boxes: dict[str, list[Box]], num_workers: int
) -> dict[str, list[tuple[int, int]]]:
  """Writes the shards that are not there yet, in `num_workers` processes, and reports bad pictures.

  Returns:
    Height and width of the pictures in each shard, by its path.

  Raises:
    UserError: a shard that was there is damaged, or holds another number of pictures than it would now.
  """
  # This loads TensorFlow, which takes seconds: mistakes in the flags are answered before.
  from resnet.tools.build_imagenet_records.shard_files import read_shard, write_shard

  sizes = {}
  total = sum(len(shard.pictures) for shard in shards)
  with tqdm.tqdm(total=total, unit=" pictures", smoothing=0.05) as bar:
    tasks = [
      functools.partial(read_shard, shard)
      if os.path.exists(shard.path)
      else functools.partial(write_shard, shard, _boxes_of(shard, boxes))
      for shard in shards
    ]
    for written in _run_all(tasks, num_workers):
      for problem in written.problems:
        bar.write(f"skipped {problem}")
      bar.update(written.number)
      sizes[written.path] = written.sizes
  return sizes


def _boxes_of(shard: Shard, boxes: dict[str, list[Box]]) -> dict[str, list[Box]]:
  stems = (os.path.splitext(picture.name)[0] for picture, _, _ in shard.pictures)
  return {stem: boxes[stem] for stem in stems if stem in boxes}


def _run_all(tasks: Sequence[Callable[[], Written]], num_workers: int) -> Iterator[Written]:
  """The results of `tasks`, in the order in which they are done."""
  if num_workers == 1 or len(tasks) < 2:
    yield from (task() for task in tasks)
    return
  from resnet.tools.build_imagenet_records.shard_files import start_worker

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


def _read_classes(
  labels_file: str | None, splits: Mapping[str, Sequence[Picture]], known: Description | None
) -> dict[str, tuple[int, str]]:
  """The label, from 1, and the name in words of each synset.

  Without a file the classes are those of the training pictures in alphabetical order. Validation pictures alone
  have the classes of the records that are there already.
  """
  if labels_file:
    lines = [line.split(maxsplit=1) for line in read_lines(labels_file)]
  elif known and "train" not in splits:
    lines = [
      [synset] if name == synset else [synset, name] for synset, name in zip(known.folders, known.classes)
    ]
  else:
    lines = [[synset] for synset in sorted({picture.synset for picture in next(iter(splits.values()))})]
  classes = {line[0]: (label, "".join(line[1:])) for label, line in enumerate(lines, start=1)}
  if len(classes) < len(lines):
    raise UserError(f"{labels_file} lists a synset twice")
  return classes


def _summarize(shards: list[Shard], description: Description) -> None:
  """Prints what there is now.

  Raises:
    UserError: pictures were left out, now or by an earlier run.
  """
  noted = [shard.skipped_path for shard in shards if os.path.exists(shard.skipped_path)]
  skipped = sum(len(read_lines(path)) for path in noted)
  total = sum(len(shard.pictures) for shard in shards)
  folder = pathlib.Path(shards[0].path).parent
  names = list(description.classes)
  shown = ", ".join(names if len(names) < 10 else [*names[:3], "...", names[-1]])
  shown = shown.encode("utf-8", "backslashreplace").decode()  # Names of folders may be no text.
  print(f"{total - skipped} pictures in {len(shards)} record files in {folder}, {len(names)} classes: {shown}")
  if skipped:
    raise UserError(
      f"{skipped} of {total} pictures were skipped; {folder}/*.skipped name them. To try again, delete the "
      "record files of that name and start again"
    )


def cli() -> None:
  run(define_flags, main)


if __name__ == "__main__":
  cli()
