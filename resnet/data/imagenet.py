"""The ImageNet input pipeline: record files to batches of images and labels."""

import contextlib
import os

import tensorflow as tf

from resnet.configs import Config
from resnet.configs.description import FILE as DESCRIPTION_FILE
from resnet.configs.description import Description, read_description
from resnet.data.data_errors import RecordTracker, first_position
from resnet.data.image_processing import VGG_EVALUATION_SIDE, preprocess_for_training
from resnet.data.preprocessing import Preprocessing
from resnet.data.record_files import find_record_files
from resnet.utils.errors import UserError

SPLITS = ("train", "validation")

# As in the original, whose queue holds 16 files' worth of encoded examples (about 1.8 GB of ImageNet).
SHUFFLE_BUFFER = 16 * 1024
CYCLE_LENGTH = 16  # files read at a time
BLOCK_LENGTH = 16  # consecutive records of one file
THREADS_PER_CORE = 4  # in the pipeline's own pool; on two cores 1 and 16 were slower


class ImagenetDataset:
  """One split of ImageNet, as batches of images ([B, height, width, 3] float32) and labels ([B] int32, from 0).

  Args:
    config: gives image size, preprocessor, batch sizes, number of classes and seed.
    data_dir: folder of classic record files (`train-00000-of-01024`), of any pictures if a description is
      beside them, or of an imagenet2012 prepared by TensorFlow Datasets, which has no bounding boxes.
    split: "train" or "validation".

  Raises:
    UserError: the folder has no such data or not all of it, or the configuration does not fit it.
  """

  def __init__(self, config: Config, data_dir: str | os.PathLike, split: str) -> None:
    if split not in SPLITS:
      raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    _check(config)
    self.preprocessing = Preprocessing(config, mean_image=None)
    self._config = config
    self._split = split
    self._data_dir = data_dir
    self._files = find_record_files(data_dir, split)
    description = read_description(data_dir)
    if description:
      _check_description(description, data_dir, config.num_classes, split, self._files.paths)
    self.class_names = None if description is None else tuple(description.classes)
    self._tracker = RecordTracker(self._files, config.num_classes)

  @property
  def num_examples(self) -> int:
    """Examples in the split. TensorFlow Datasets stores the number; classic files are counted at first use,
    which reads the header of every record (on a fast disk, seconds for all of ImageNet).

    Raises:
      UserError: a record file is truncated; the error names it.
    """
    return sum(self._files.counts)

  def data_errors(self) -> contextlib.AbstractContextManager[None]:
    """Use around taking batches: `with dataset.data_errors(): batch = next(batches)`.

    A damaged record file, a damaged picture or an impossible label then is a UserError that names the file and
    the record in it, counted from 0. Errors that no record is to blame for pass unchanged.
    """
    return self._tracker.errors()

  def training_batches(self, start_step: int, num_shards: int = 1, shard: int = 0) -> tf.data.Dataset:
    """Endless batches for training, shuffled anew in each epoch.

    Element k is worker `shard`'s share of the batch of step start_step + k. It depends only on the
    configuration's seed, the files, start_step + k, num_shards and shard. So a resumed run sees the same
    images, to the bit, as an uninterrupted one, however many threads read and decode.

    Workers see disjoint parts of the data: files shard, shard + num_shards, ..., or, if there are fewer files
    than workers, examples chosen likewise. A worker's epoch is one pass over its part; batches may span two
    epochs. An example's distortion depends on the seed, the epoch and the record alone. Resize method and
    colour order advance by one from each epoch to the next and from each record of a file to the next.

    An epoch reads the files in random order, 16 at a time interleaved, into a shuffle buffer. Resuming within
    an epoch reads its earlier records without decoding them: for ImageNet up to 140 GB at the disk's speed.

    Args:
      start_step: the step, from 0, that the first batch is for.
      num_shards: the number of workers.
      shard: this worker's number, from 0.

    Returns:
      Images [batch_size / num_shards, height, width, 3] float32 and labels [batch_size / num_shards] int32.

    Raises:
      UserError: the batch does not divide among the workers, there is no example for this one, or a record file
        is truncated.
    """
    if self._config.batch_size % num_shards:
      raise UserError(
        f"batch_size must be a multiple of the {num_shards} workers, got {self._config.batch_size}"
      )
    if not 0 <= shard < num_shards:
      raise ValueError(f"shard must be in [0, {num_shards}), got {shard}")
    share = self._config.batch_size // num_shards
    self._require_examples(num_shards, shard)
    epoch = skipped = 0
    if start_step:
      epoch, skipped = divmod(start_step * share, self._examples_of(num_shards, shard))

    def records_of(epoch: tf.Tensor) -> tf.data.Dataset:
      return self._shuffled_records(epoch, num_shards, shard)

    first = tf.data.Dataset.range(epoch, epoch + 1).flat_map(records_of).skip(skipped)
    later = tf.data.Dataset.range(epoch + 1, tf.int64.max).flat_map(records_of)
    return _finish(
      first.concatenate(later)
      .map(self._training_example, num_parallel_calls=tf.data.AUTOTUNE)
      .batch(share, drop_remainder=True)
    )

  def evaluation_batches(self, num_batches: int | None = None) -> tf.data.Dataset:
    """Every example once, in a fixed order, preprocessed without randomness; the last batch may be smaller.

    Args:
      num_batches: stop after so many batches; None: all.

    Returns:
      Images [valid_batch_size or fewer, height, width, 3] float32 and labels [the same] int32.
    """
    records = self._records(tf.range(len(self._files.paths), dtype=tf.int64))
    batches = records.map(self._evaluation_example, num_parallel_calls=tf.data.AUTOTUNE).batch(
      self._config.valid_batch_size
    )
    return _finish(batches if num_batches is None else batches.take(num_batches))

  def _records(self, files: tf.Tensor) -> tf.data.Dataset:
    """(position, serialized record) of the files of these numbers, [F] int64, in this order, interleaved."""
    paths = tf.constant(self._files.paths)

    def open_file(file: tf.Tensor) -> tf.data.Dataset:
      positions = tf.data.Dataset.range(first_position(file), tf.int64.max)
      return tf.data.Dataset.zip((positions, tf.data.TFRecordDataset(tf.gather(paths, file))))

    return tf.data.Dataset.from_tensor_slices(files).interleave(
      open_file,
      cycle_length=CYCLE_LENGTH,
      block_length=BLOCK_LENGTH,
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    )

  def _shuffled_records(self, epoch: tf.Tensor, num_shards: int, shard: int) -> tf.data.Dataset:
    """(epoch, position, serialized record) of this worker, in the epoch's order."""
    # `shuffle` mixes in the seed of its graph, here that of a dataset's function. Unless set, that is the
    # global seed.
    assert not tf.executing_eagerly()
    tf.random.set_seed(self._config.seed)
    seed = tf.stack([tf.constant(self._config.seed, tf.int64), epoch])
    files = tf.range(len(self._files.paths), dtype=tf.int64)
    by_file = self._shard_by_file(num_shards)
    if by_file:
      files = files[shard::num_shards]
    records = self._records(tf.random.experimental.stateless_shuffle(files, seed))
    if not by_file:
      records = records.shard(num_shards, shard)
    records = records.shuffle(
      SHUFFLE_BUFFER,
      seed=tf.random.stateless_uniform([], seed, maxval=tf.int64.max, dtype=tf.int64),
      reshuffle_each_iteration=False,
    )
    return records.map(lambda position, serialized: (epoch, position, serialized))

  def _shard_by_file(self, num_shards: int) -> bool:
    return len(self._files.paths) >= num_shards

  def _examples_of(self, num_shards: int, shard: int) -> int:
    if self._shard_by_file(num_shards):
      return sum(self._files.counts[shard::num_shards])
    return len(range(shard, self.num_examples, num_shards))

  def _require_examples(self, num_shards: int, shard: int) -> None:
    """Refuses a worker without examples: its batches would be an endless search. A nonempty file has one."""
    if self._shard_by_file(num_shards):
      found = any(map(os.path.getsize, self._files.paths[shard::num_shards]))
    else:
      found = self._examples_of(num_shards, shard) > 0
    if not found:
      raise UserError(f"{self._data_dir} has no {self._split} example for worker {shard} of {num_shards}")

  def _training_example(
    self, epoch: tf.Tensor, position: tf.Tensor, serialized: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    config = self._config
    encoded, label, boxes = self._parse(position, serialized)
    # The pair (seed and epoch, position) is distinct for every example of every epoch.
    seed = tf.stack([epoch * 2**31 + config.seed, position])
    image = preprocess_for_training(
      config.preprocessor, encoded, boxes, seed, position + epoch, config.height, config.width
    )
    return self._tracker.end(position, image), label

  def _evaluation_example(self, position: tf.Tensor, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    encoded, label, _ = self._parse(position, serialized)
    return self._tracker.end(position, self.preprocessing(encoded)), label

  def _parse(self, position: tf.Tensor, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    encoded, label, boxes = self._files.parse(self._tracker.begin(position, serialized))
    # On the CPU, indexing out of bounds is an error: the cheapest check there is.
    label = tf.gather(tf.range(self._config.num_classes), label)
    with tf.control_dependencies([label]):
      return tf.identity(encoded), label, boxes


def _check(config: Config) -> None:
  if config.preprocessor not in ("inception", "vgg"):
    raise UserError(f"preprocessor must be inception or vgg for ImageNet, got {config.preprocessor!r}")
  if config.num_channel != 3:
    raise UserError(f"num_channel must be 3 for ImageNet, got {config.num_channel}")
  if config.preprocessor == "vgg" and max(config.height, config.width) > VGG_EVALUATION_SIDE:
    raise UserError(
      f"height and width must be at most {VGG_EVALUATION_SIDE} with preprocessor vgg, "
      f"got {config.height}x{config.width}"
    )


def _check_description(
  description: Description, data_dir: str | os.PathLike, num_classes: int, split: str, paths: tuple[str, ...]
) -> None:
  file = os.path.join(data_dir, DESCRIPTION_FILE)
  classes = len(description.classes)
  if classes != num_classes:
    raise UserError(
      f"num_classes is {num_classes}, but the data has {classes} classes, see {file}; give the data of these "
      f"{num_classes} classes, or train a new experiment with num_classes={classes}"
    )
  found = sum(map(os.path.getsize, paths))
  if found != description.bytes.get(split, found):
    raise UserError(
      f"the {split} record files in {data_dir} have {found} bytes, but had {description.bytes[split]} when "
      f"they were made, see {file}; copy or make them anew"
    )


def _finish(batches: tf.data.Dataset) -> tf.data.Dataset:
  options = tf.data.Options()
  options.deterministic = True
  # One image per core is faster than one image over several cores, and a pool of the pipeline's own is faster
  # than TensorFlow's shared threads.
  options.threading.max_intra_op_parallelism = 1
  options.threading.private_threadpool_size = THREADS_PER_CORE * (os.cpu_count() or 1)
  # Workers are told their shard; a strategy must not divide the files once more.
  options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
  return batches.prefetch(tf.data.AUTOTUNE).with_options(options)
