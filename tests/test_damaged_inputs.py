"""Input that is damaged or wrong is one clear line: never a hang, a traceback, or less data without a word."""

import io
import os
import random
import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from imagenet_helpers import (
  classic_example,
  jpeg,
  preprocess_for_evaluation,
  small_config,
  write_classic,
  write_records,
)
from test_build_imagenet_records import add, build, by_name, value

from resnet.configs import get_config, override_config
from resnet.data.image_processing import preprocess_for_training
from resnet.data.imagenet import ImagenetDataset
from resnet.experiments.experiment import Experiment
from resnet.original.checkpoint_files import checkpoint_prefix
from resnet.original.config_file import load_config
from resnet.tools.build_imagenet_records.bounding_boxes import read_boxes
from resnet.tools.build_imagenet_records.pictures import list_pictures
from resnet.training.evaluate import make_evaluate
from resnet.training.strategy import make_strategy
from resnet.utils.errors import UserError

# Configurations and flags.


@pytest.mark.parametrize("nested", ["[" * 10**5, '{"a":' * 10**5])
def test_json_nested_without_end_is_refused(tmp_path, nested):
  (tmp_path / "conf.json").write_text(nested)
  with pytest.raises(UserError, match="conf.json is not JSON"):
    load_config(tmp_path / "conf.json")
  with pytest.raises(UserError, match="override of height is not a JSON value") as error:
    override_config(get_config("revnet-38"), [f"height={nested}"])
  assert len(str(error.value)) < 200


def test_a_number_of_too_many_digits_is_refused(tmp_path):
  (tmp_path / "conf.json").write_text('{"height": ' + "9" * 10**4 + "}")
  with pytest.raises(UserError, match="conf.json is not JSON"):
    load_config(tmp_path / "conf.json")


@pytest.mark.parametrize(
  ("experiment_id", "message"),
  [
    ("x" * 256, "at most 200 bytes, got 256"),
    ("a\0b", "must be the name of a folder"),
    ("a\nb", "name of a folder"),
  ],
)
def test_ids_that_no_folder_can_have_are_refused(experiment_id, message):
  with pytest.raises(UserError, match=message):
    Experiment.named(experiment_id, "results", "logs")


def test_an_empty_model_is_no_model(run_script):
  assert "unknown model ''" in run_script("run_cifar_train.py", "--model=", "--dataset=digits")


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ("{", "TF_CONFIG must be like"),
    ("null", "TF_CONFIG must be like"),
    ("[]", "TF_CONFIG must be like"),
    ('"x"', "TF_CONFIG must be like"),
    ('{"cluster": {"worker": 3}, "task": {"type": "worker", "index": 0}}', "TF_CONFIG must be like"),
    ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG must be like"),
    ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "must name addresses host:port"),
    ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "of chief and worker alone"),
    (
      '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
      "no task 'worker' with index 1",
    ),
    ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "0"}}', "with index '0'"),
    ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "boss", "index": 0}}', "no task 'boss' with index 0"),
  ],
)
def test_a_wrong_tf_config_is_refused(monkeypatch, config, message):
  monkeypatch.setenv("TF_CONFIG", config)
  with pytest.raises(UserError, match=message):
    make_strategy(0, 4)


@pytest.mark.parametrize(("name", "text"), [("TF_CONFIG", '{"cluster": {}}'), ("SLURM_STEP_NUM_TASKS", "")])
def test_an_environment_without_other_machines_is_one_machine(monkeypatch, name, text):
  monkeypatch.setenv(name, text)
  assert make_strategy(0, 4).num_replicas_in_sync == 1


def test_a_wrong_number_of_slurm_tasks_is_refused(monkeypatch):
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "two")
  with pytest.raises(UserError, match="SLURM_STEP_NUM_TASKS must be a number, got 'two'"):
    make_strategy(0, 4)


# Archives.


def archive(nested: bool) -> bytes:
  """24 pictures in 6 classes: tars in a tar, or folders."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as outer:
    for synset in (f"n{number:08d}" for number in range(6)):
      inner_buffer = io.BytesIO()
      with tarfile.open(fileobj=inner_buffer, mode="w") as inner:
        for number in range(4):
          add(
            outer if not nested else inner, f"{'' if nested else synset + '/'}{synset}_{number}.JPEG", b"12345"
          )
      if nested:
        add(outer, f"{synset}.tar", inner_buffer.getvalue())
  return buffer.getvalue()


@pytest.mark.parametrize("nested", [True, False])
def test_a_damaged_imagenet_tar_is_never_shortened_without_a_word(tmp_path, nested):
  whole, path = archive(nested), tmp_path / "train.tar"
  path.write_bytes(whole)
  expected = [(picture.synset, picture.name, picture.offset) for picture in list_pictures(path)]
  assert len(expected) == 24
  draw = random.Random(0)
  damaged = [whole[:length] for length in range(0, len(whole), 509)]
  for position in draw.sample([index for index, byte in enumerate(whole) if byte], 300):
    flipped = bytearray(whole)
    flipped[position] ^= 1 << draw.randrange(8)
    damaged.append(bytes(flipped))
  refused = 0
  for data in damaged:
    path.write_bytes(data)
    try:
      found = [(picture.synset, picture.name, picture.offset) for picture in list_pictures(path)]
    except UserError:
      refused += 1
    else:
      assert found == expected
  assert refused > len(damaged) / 2


def negative_size(mode: str = "w") -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.GNU_FORMAT) as tar:
    add(tar, "n00000001/a.JPEG", b"1")
    info = tarfile.TarInfo("n00000001/b.JPEG")
    info.size = -1024
    tar.addfile(info)
  return buffer.getvalue()


def test_a_tar_of_negative_size_ends(tmp_path):
  (tmp_path / "x.tar").write_bytes(negative_size())
  with pytest.raises(UserError, match="x.tar is no intact tar file: a header is damaged .size -1024"):
    list_pictures(tmp_path / "x.tar")
  with pytest.raises(UserError, match="x.tar is no intact tar file"):
    read_boxes(tmp_path / "x.tar")
  with pytest.raises(UserError, match="no checkpoint at .*x.tar"), checkpoint_prefix(tmp_path / "x.tar"):
    pass


def packed(name: str, **fields) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
    info = tarfile.TarInfo(name)
    info.pax_headers = fields
    tar.addfile(info)
  return buffer.getvalue()


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (packed("a/" * 5000 + "b"), "cannot be a file's path"),
    (packed("x", path="a\0b.index"), "cannot be a file's path"),
    (packed("x" * 300), "cannot be a file's path"),
    (
      packed("x", **{"GNU.sparse.major": "0", "GNU.sparse.size": str(2**30), "GNU.sparse.map": "0,0"}),
      "has holes",
    ),
    (b"\xfd7zXZ\0" + bytes(100), "neither a checkpoint's prefix nor a whole tar archive"),
  ],
)
def test_archives_that_no_one_wants_unpacked_are_refused(tmp_path, data, message):
  (tmp_path / "x.tar").write_bytes(data)
  with pytest.raises(UserError, match=message), checkpoint_prefix(tmp_path / "x.tar"):
    pass


@pytest.mark.parametrize("compression", ["gz", "xz", "bz2"])
def test_cut_archives_of_boxes_and_checkpoints_are_one_line(tmp_path, compression):
  path = tmp_path / f"x.tar.{compression}"
  with tarfile.open(path, f"w:{compression}") as tar:
    add(tar, "a.xml", os.urandom(5000))
  path.write_bytes(path.read_bytes()[:3000])
  with pytest.raises(UserError, match=r"x.tar"):
    read_boxes(path)
  with pytest.raises(UserError, match="no checkpoint at .*x.tar"), checkpoint_prefix(path):
    pass


def test_a_damaged_file_checkpoint_beside_several_is_as_if_it_was_not_there(tmp_path):
  for step in (1, 2):
    (tmp_path / f"model.ckpt-{step}.index").touch()
  (tmp_path / "checkpoint").write_bytes(b"\xff\xfe\x00")
  with (
    pytest.raises(UserError, match="has 2 checkpoints, of which one must be named"),
    checkpoint_prefix(tmp_path),
  ):
    pass


# Record files.


def batch(folder, **fields):
  data = ImagenetDataset(small_config(**fields), folder, "train")
  with data.data_errors():
    return next(iter(data.training_batches(0)))


@pytest.mark.parametrize(
  ("label", "boxes", "message"),
  [
    (2**32 + 1, [], r"train-00000-of-00001, record .: label 4294967297 is out of range 1..1000"),
    (-(2**40), [], r"record .: label -1099511627776 is out of range"),
    (1, [(0.1, float("nan"), 0.5, 0.5)], "record .: a coordinate of a bounding box is not a number"),
  ],
)
def test_records_that_mean_nothing_are_named(tmp_path, label, boxes, message):
  write_records(tmp_path / "train-00000-of-00001", [classic_example(jpeg(0), label, boxes)] * 4)
  with pytest.raises(UserError, match=message):
    batch(tmp_path)


@pytest.mark.parametrize(
  "box", [(0.5, 0.5, 0.1, 0.1), (0.5, 0.5, 0.5, 0.5), (-3, float("-inf"), float("inf"), 7)]
)
def test_boxes_that_are_odd_are_no_error(tmp_path, box):
  write_records(tmp_path / "train-00000-of-00001", [classic_example(jpeg(0), 1, [box])] * 4)
  images, _ = batch(tmp_path)
  assert np.isfinite(images).all()


def test_a_surplus_record_file_is_refused(tmp_path):
  write_classic(tmp_path)
  (tmp_path / "train-00000-of-00004").rename(tmp_path / "train-00005-of-00004")
  write_classic(tmp_path)
  with pytest.raises(UserError, match="has a record file train-00005 of a set of 4; keep one set only"):
    ImagenetDataset(small_config(), tmp_path, "train")


def test_a_split_without_examples_is_an_error_before_the_first_step(tmp_path):
  for number in range(2):
    (tmp_path / f"train-0000{number}-of-00002").touch()
  with pytest.raises(UserError, match="the train record files in .* hold no example: all 2 are empty"):
    ImagenetDataset(small_config(), tmp_path, "train")


@pytest.mark.parametrize("num_shards", [2, 3])
def test_a_worker_without_examples_is_an_error_before_the_first_step(tmp_path, num_shards):
  write_records(tmp_path / "train-00000-of-00002", [classic_example(jpeg(0), 1)])
  (tmp_path / "train-00001-of-00002").touch()
  data = ImagenetDataset(small_config(batch_size=6), tmp_path, "train")
  with pytest.raises(UserError, match=f"has no train example for worker 1 of {num_shards}"):
    data.training_batches(0, num_shards, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (1, 1000)])
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_vgg_takes_pictures_one_pixel_wide(size, kind):
  image = np.full([*size, 3], 100, np.uint8)
  encoded = tf.io.encode_png(image) if kind == "png" else tf.io.encode_jpeg(image, quality=100)
  for prepared in (
    preprocess_for_evaluation("vgg", encoded, 8, 8),
    preprocess_for_training("vgg", encoded, tf.zeros([0, 4]), tf.constant([1, 2]), 0, 8, 8),
  ):
    np.testing.assert_allclose(prepared + [123.68, 116.779, 103.939], np.full([8, 8, 3], 100), atol=2)


# Pictures.


def test_a_broken_link_is_skipped_and_noted(tmp_path):
  (tmp_path / "train/n1").mkdir(parents=True)
  (tmp_path / "train/n1/a.JPEG").write_bytes(jpeg(0))
  (tmp_path / "train/n1/b.JPEG").symlink_to("nowhere")
  with pytest.raises(UserError, match="1 of 2 pictures were skipped"):
    build(tmp_path / "out", train_dir=tmp_path / "train", train_shards=1)
  assert "b.JPEG" in (tmp_path / "out/train-00000-of-00001.skipped").read_text()
  assert [*by_name(tmp_path / "out")] == ["a.JPEG"]


def test_names_that_are_not_utf8_are_kept(tmp_path):
  folder = os.fsencode(tmp_path) + b"/train/caf\xe9"
  os.makedirs(folder)
  with open(folder + b"/\xff.JPEG", "wb") as file:
    file.write(jpeg(0))
  build(tmp_path / "out", train_dir=tmp_path / "train", train_shards=1)
  (record,) = tf.data.TFRecordDataset(str(tmp_path / "out/train-00000-of-00001"))
  example = tf.train.Example.FromString(record.numpy())
  assert (value(example, "class/synset"), value(example, "filename")) == (b"caf\xe9", b"\xff.JPEG")


def test_two_builds_are_equal_byte_for_byte(tmp_path):
  (tmp_path / "train/n1").mkdir(parents=True)
  for number in range(8):
    (tmp_path / f"train/n1/{number}.JPEG").write_bytes(jpeg(number))
  for output in ("a", "b"):
    build(tmp_path / output, train_dir=tmp_path / "train", train_shards=2)
  for number in range(2):
    name = f"train-0000{number}-of-00002"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_boxes_that_are_not_numbers_are_named(tmp_path):
  (tmp_path / "boxes.csv").write_text("a.JPEG,0,0,1,1\nb.JPEG,0,nan,1,1\n")
  with pytest.raises(UserError, match="boxes.csv, line 2: expected filename,xmin,ymin,xmax,ymax"):
    read_boxes(tmp_path / "boxes.csv")


# Evaluation.


def test_fewer_classes_than_five_and_no_examples():
  model = keras.Sequential([keras.Input([2]), keras.layers.Dense(3)])
  evaluate = make_evaluate(model, tf.distribute.get_strategy(), top=(1, 5))
  batches = tf.data.Dataset.from_tensor_slices((tf.zeros([7, 2]), tf.zeros([7], tf.int32))).batch(4)
  assert evaluate(batches)[1] == 1
  with pytest.raises(UserError, match="no example to evaluate on"):
    evaluate(batches.take(0))
