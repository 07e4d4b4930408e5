"""From pictures in folders or tar files to record files."""

import base64
import io
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from helpers import fresh_flags
from imagenet_helpers import cmyk_jpeg, jpeg, picture, small_config

from resnet.configs.description import FILE, read_description
from resnet.data.imagenet import ImagenetDataset
from resnet.tools.build_imagenet_records import __main__ as build_imagenet_records
from resnet.tools.build_imagenet_records import shard_files
from resnet.tools.build_imagenet_records.bounding_boxes import read_boxes
from resnet.tools.build_imagenet_records.pictures import list_pictures
from resnet.utils.errors import UserError

SYNSETS = ("n01440764", "n01443537", "n02105855")


@pytest.fixture(name="source")
def _source(tmp_path):
  """Training and validation pictures in class folders, two of them no RGB JPEG."""
  for number in range(9):
    synset = SYNSETS[number // 3]
    folder = tmp_path / "train" / synset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{synset}_{number}.JPEG").write_bytes(jpeg(number))
  (folder / f"{synset}_6.JPEG").write_bytes(tf.io.encode_png(picture(6)).numpy())
  (folder / f"{synset}_7.JPEG").write_bytes(cmyk_jpeg(255, 128, 55, 200))
  for number in range(4):
    folder = tmp_path / "validation" / SYNSETS[number % 3]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"ILSVRC2012_val_{number + 1:08d}.JPEG").write_bytes(jpeg(number))
  return tmp_path


def build(output: pathlib.Path, **arguments) -> None:
  defaults = {"train_shards": 2, "validation_shards": 2, "num_workers": 1}
  with fresh_flags():
    build_imagenet_records.define_flags()
    flags.FLAGS(
      ["build", f"--output_dir={output}"]
      + [f"--{key}={value}" for key, value in (defaults | arguments).items()]
    )
    build_imagenet_records.main()


def records(output: pathlib.Path, split: str = "train") -> list[tf.train.Example]:
  paths = sorted(map(str, output.glob(f"{split}-?????-of-?????")))
  return [tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(paths)]


def value(example: tf.train.Example, name: str):
  feature = example.features.feature[f"image/{name}"]
  values = list(getattr(feature, feature.WhichOneof("kind")).value)
  return values[0] if len(values) == 1 else values


def by_name(output: pathlib.Path, split: str = "train") -> dict[str, tf.train.Example]:
  return {value(example, "filename").decode(): example for example in records(output, split)}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
  info = tarfile.TarInfo(name)
  info.size = len(data)
  tar.addfile(info, io.BytesIO(data))


def pack_classes(folder: pathlib.Path, path: pathlib.Path) -> None:
  """A tar of one tar for each class, like ILSVRC2012_img_train.tar."""
  with tarfile.open(path, "w") as outer:
    for class_folder in sorted(folder.iterdir(), reverse=True):
      buffer = io.BytesIO()
      with tarfile.open(fileobj=buffer, mode="w") as inner:
        for file in sorted(class_folder.iterdir()):
          add(inner, file.name, file.read_bytes())
      add(outer, f"{class_folder.name}.tar", buffer.getvalue())


def test_records_are_the_classic_ones(source):
  labels = source / "labels.txt"
  labels.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\nn02105855 Shetland sheepdog\n")
  boxes = source / "boxes.csv"
  boxes.write_text("n01440764_0.JPEG,0.25,0.1,1.0001,0.5\nn01440764_0.JPEG,0.5,0.2,0.75,0.9\nother,0,0,1,1\n")
  build(source / "out", train_dir=source / "train", labels_file=labels, bounding_boxes=boxes)
  assert sorted(os.listdir(source / "out")) == [FILE, "train-00000-of-00002", "train-00001-of-00002"]
  examples = by_name(source / "out")
  assert len(examples) == 9
  expected = {
    "height": 40,
    "width": 60,
    "colorspace": b"RGB",
    "channels": 3,
    "format": b"JPEG",
    "filename": b"n01440764_0.JPEG",
    "encoded": jpeg(0),
    "class/label": 1,
    "class/synset": b"n01440764",
    "class/text": b"tench, Tinca tinca",
    "object/bbox/label": [1, 1],
    "object/bbox/ymin": pytest.approx([0.1, 0.2]),
    "object/bbox/xmin": [0.25, 0.5],
    "object/bbox/ymax": pytest.approx([0.5, 0.9]),
    "object/bbox/xmax": [1, 0.75],
  }
  example = examples["n01440764_0.JPEG"]
  assert {name.removeprefix("image/") for name in example.features.feature} == set(expected)
  assert {name: value(example, name) for name in expected} == expected
  assert value(examples["n02105855_8.JPEG"], "class/label") == 3
  assert value(examples["n02105855_8.JPEG"], "object/bbox/xmin") == []


def test_png_and_cmyk_become_rgb_jpeg(source):
  build(source / "out", train_dir=source / "train")
  examples = by_name(source / "out")
  for name, original in (
    ("n02105855_6.JPEG", picture(6)),
    ("n02105855_7.JPEG", np.full([16, 16, 3], [200, 100, 43])),
  ):
    encoded = value(examples[name], "encoded")
    assert tf.io.is_jpeg(encoded)
    np.testing.assert_array_equal(tf.io.extract_jpeg_shape(encoded), original.shape)
    assert np.abs(tf.io.decode_jpeg(encoded).numpy().astype(int) - original).mean() < 4


def test_tars_and_folders_give_the_same_records(source):
  build(source / "folders", train_dir=source / "train", validation_dir=source / "validation")
  pack_classes(source / "train", source / "train.tar")
  flat = sorted(source.glob("validation/*/*"), key=lambda file: file.name)
  with tarfile.open(source / "validation.tar", "w") as tar:
    for file in reversed(flat):
      add(tar, file.name, file.read_bytes())
  synsets = source / "synsets.txt"
  synsets.write_text("".join(f"{file.parent.name}\n" for file in flat))
  build(
    source / "tars",
    train_dir=source / "train.tar",
    validation_dir=source / "validation.tar",
    validation_labels=synsets,
  )
  names = sorted(os.listdir(source / "folders"))
  assert len(names) == 5
  assert sorted(os.listdir(source / "tars")) == names
  assert by_name(source / "tars") == by_name(source / "folders")
  assert records(source / "tars") == records(source / "folders")
  assert by_name(source / "tars", "validation") == by_name(source / "folders", "validation")


def test_boxes_from_xml_in_folder_or_tar(source):
  xml = """<annotation><filename>%s</filename><size><width>200</width><height>100</height></size>
    <object><bndbox><xmin>20</xmin><ymin>30</ymin><xmax>210</xmax><ymax>80</ymax></bndbox></object>
    <object><bndbox><xmin>50</xmin><ymin>30</ymin><xmax>50</xmax><ymax>80</ymax></bndbox></object></annotation>"""
  folder = source / "boxes" / "n01440764"
  folder.mkdir(parents=True)
  (folder / "n01440764_1.xml").write_text(xml)
  with tarfile.open(source / "boxes.tar.gz", "w:gz") as tar:
    tar.add(folder, "bbox/n01440764")
  for number, boxes in enumerate((source / "boxes", source / "boxes.tar.gz")):
    build(source / f"out{number}", train_dir=source / "train", bounding_boxes=boxes)
    example = by_name(source / f"out{number}")["n01440764_1.JPEG"]
    coordinates = [value(example, f"object/bbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
    assert coordinates == pytest.approx([0.1, 0.3, 1.0, 0.8])


def test_the_reader_reads_them(source):
  build(source / "out", train_dir=source / "train", validation_dir=source / "validation")
  for split, counts in (("train", [3, 3, 3]), ("validation", [2, 1, 1])):
    dataset = ImagenetDataset(small_config(num_classes=3), source / "out", split)
    labels = np.concatenate([labels for _, labels in dataset.evaluation_batches()])
    assert np.bincount(labels).tolist() == counts


def test_restart_keeps_finished_files(source, monkeypatch):
  output = source / "out"
  build(output, train_dir=source / "train")
  expected = records(output)
  kept, lost = output / "train-00000-of-00002", output / "train-00001-of-00002"
  before = kept.stat().st_mtime_ns
  lost.rename(output / "train-00001-of-00002.tmp")  # as if interrupted while writing
  written = []
  write_shard = shard_files.write_shard
  monkeypatch.setattr(
    shard_files,
    "write_shard",
    lambda shard, boxes: written.append(shard.path) or write_shard(shard, boxes),
  )
  build(output, train_dir=source / "train")
  assert written == [str(lost)]
  assert kept.stat().st_mtime_ns == before
  assert records(output) == expected
  assert sorted(os.listdir(output)) == [FILE, kept.name, lost.name]


def test_a_bad_picture_is_skipped_and_told(source, capsys):
  bad = source / "train" / SYNSETS[1] / f"{SYNSETS[1]}_4.JPEG"
  bad.write_bytes(jpeg(4)[:500])
  for _ in range(2):  # a restart does not forget it
    with pytest.raises(UserError, match=r"1 of 9 pictures were skipped"):
      build(source / "out", train_dir=source / "train")
  assert "skipped n01443537_4.JPEG" in capsys.readouterr().out
  assert sorted(by_name(source / "out")) == [f"{SYNSETS[n // 3]}_{n}.JPEG" for n in range(9) if n != 4]
  (note,) = (source / "out").glob("*.skipped")
  assert note.read_text().startswith("n01443537_4.JPEG")
  bad.write_bytes(jpeg(4))
  note.with_suffix("").unlink()
  build(source / "out", train_dir=source / "train")
  assert len(by_name(source / "out")) == 9


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({}, "nothing to do: give --train_dir or --validation_dir"),
    ({"train_dir": "nowhere"}, "cannot read nowhere: No such file"),
    ({"train_dir": "{source}/empty"}, "no pictures in .*empty; expected class folders"),
    (
      {"train_dir": "{source}/train", "train_shards": 10},
      "10 train files for 9 pictures; lower --train_shards",
    ),
    (
      {"train_dir": "{source}/train", "labels_file": "{source}/one"},
      "2 classes without a label, such as 'n01443537'",
    ),
    ({"train_dir": "{source}/train", "bounding_boxes": "{source}/one"}, "one, line 1: expected filename,xmin"),
    ({"train_dir": "{source}/one"}, "one is no intact tar file"),
    ({"train_dir": "{source}/train/n01440764"}, "must hold one folder or tar for each class"),
    ({"validation_dir": "{source}/train/n01440764"}, "not sorted by class; give --validation_labels"),
    (
      {"validation_dir": "{source}/train/n01440764", "validation_labels": "{source}/one"},
      "one has 1 lines for 3 pictures",
    ),
  ],
)
def test_mistakes_are_one_line(source, arguments, message):
  (source / "empty").mkdir()
  (source / "one").write_text("n01440764\n")
  with pytest.raises(UserError, match=message):
    build(source / "out", **{key: str(item).format(source=source) for key, item in arguments.items()})


def test_another_number_of_files_is_refused(source):
  build(source / "out", train_dir=source / "train")
  with pytest.raises(UserError, match=r"already holds train-0000.-of-00002, of another set"):
    build(source / "out", train_dir=source / "train", train_shards=3)


def test_truncated_tar(source):
  pack_classes(source / "train", source / "train.tar")
  data = (source / "train.tar").read_bytes()
  (source / "train.tar").write_bytes(data[: len(data) // 2 + 100])
  with pytest.raises(UserError, match=r"train.tar is no intact tar file"):
    build(source / "out", train_dir=source / "train.tar")


def test_command_line_with_two_processes(source):
  (source / "train" / SYNSETS[0] / f"{SYNSETS[0]}_1.JPEG").write_bytes(b"broken")
  command = [sys.executable, "-m", "resnet.tools.build_imagenet_records", f"--output_dir={source / 'out'}"]
  command += [f"--train_dir={source / 'train'}", "--train_shards=2", "--num_workers=2"]
  run = subprocess.run(
    command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parent.parent, timeout=120, check=False
  )
  assert run.returncode == 1
  assert "error: 1 of 9 pictures were skipped" in run.stderr.splitlines()[-1]
  assert "Traceback" not in run.stderr
  assert "skipped n01440764_1.JPEG" in run.stdout
  assert "8 pictures in 2 record files" in run.stdout
  assert len(records(source / "out")) == 8


def test_a_class_tar_without_end_is_damaged_and_named(source):
  pack_classes(source / "train", source / "train.tar")
  with tarfile.open(source / "train.tar") as outer:
    members = [(member.name, outer.extractfile(member).read()) for member in outer]
  name, data = members.pop()
  whole = max(index for index, byte in enumerate(data) if byte) // 512 * 512 + 512
  with tarfile.open(source / "cut.tar", "w") as cut:
    for member in members:
      add(cut, *member)
    add(cut, name, data[:whole])
  with pytest.raises(UserError, match=f"cut.tar is no intact tar file: {name.removesuffix('.tar')} is cut off"):
    list_pictures(source / "cut.tar")
  (source / "classes").mkdir()
  (source / "classes" / name).write_bytes(data[:whole])
  with pytest.raises(UserError, match=f"classes/{name} is no intact tar file: it is cut off"):
    list_pictures(source / "classes")


BOX = (
  "<annotation><size><width>9</width><height>9</height></size><object><bndbox>%s</bndbox></object></annotation>"
)


def test_damaged_boxes_are_named(source):
  (source / "boxes").mkdir()
  file = source / "boxes" / "a.xml"
  sides = "".join(f"<{side}>{{}}</{side}>" for side in ("xmin", "ymin", "xmax", "ymax"))
  for text in (BOX % sides.format("nan", 0, 1, 1), BOX % sides.format(0, 0, "inf", 1), "<?xml encoding='x'?>"):
    file.write_text(text)
    with pytest.raises(UserError, match="a.xml is no PASCAL VOC annotation"):
      read_boxes(source / "boxes")
  (source / "boxes.csv").write_text("a.JPEG,0,0,inf,1\n")
  with pytest.raises(UserError, match="boxes.csv, line 1: expected filename"):
    read_boxes(source / "boxes.csv")
  (source / "boxes.csv").write_text("a" * 200000)
  with pytest.raises(UserError, match="cannot read .*boxes.csv: field larger than"):
    read_boxes(source / "boxes.csv")


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_one_flipped_bit_of_a_compressed_tar_of_boxes_changes_no_box(source, compression):
  path = source / f"boxes.tar.{compression}"
  with tarfile.open(path, f"w:{compression}") as tar:
    for number in range(3):
      sides = f"<xmin>{number}</xmin><ymin>1</ymin><xmax>5</xmax><ymax>7</ymax>"
      add(tar, f"{number}.xml", (BOX % sides).encode())
  whole, expected = path.read_bytes(), read_boxes(path)
  refused = 0
  for position in range(len(whole)):
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
    try:
      assert read_boxes(path) == expected
    except UserError:
      refused += 1
  assert refused > len(whole) / 3


def test_a_skipped_picture_whose_name_is_not_utf8_is_told(tmp_path):
  folder = os.fsencode(tmp_path) + b"/train/n1"
  os.makedirs(folder)
  for name, data in ((b"a.JPEG", jpeg(0)), (b"\xff.JPEG", b"broken")):
    with open(folder + b"/" + name, "wb") as file:
      file.write(data)
  command = [sys.executable, "-m", "resnet.tools.build_imagenet_records", f"--output_dir={tmp_path / 'out'}"]
  command += [f"--train_dir={tmp_path / 'train'}", "--train_shards=1", "--num_workers=1"]
  run = subprocess.run(
    command,
    capture_output=True,
    cwd=pathlib.Path(__file__).parent.parent,
    env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},  # As in the locale en_US.UTF-8.
    timeout=120,
    check=False,
  )
  assert b"skipped \xff.JPEG" in run.stdout
  assert b"error: 1 of 2 pictures were skipped" in run.stderr.splitlines()[-1]


# The description.


def test_the_description_says_what_the_records_are(source):
  labels = source / "labels.txt"
  labels.write_text("n01440764 tench,   Tinca tinca\nn01443537\nn02105855 Shetland sheepdog\n")
  (source / "train" / SYNSETS[0] / "wide.png").write_bytes(jpeg(1, 30, 90))
  (source / "train" / SYNSETS[0] / "broken.jpg").write_bytes(b"broken")
  build(source / "out", validation_dir=source / "validation", labels_file=labels)
  with pytest.raises(UserError, match="1 of 11 pictures were skipped"):
    build(source / "out", train_dir=source / "train", labels_file=labels)
  expected = {
    "classes": ["tench, Tinca tinca", "n01443537", "Shetland sheepdog"],
    "folders": list(SYNSETS),
    "counts": {"train": 10, "validation": 4},
    "bytes": {
      split: sum(path.stat().st_size for path in (source / "out").glob(f"{split}-*-of-00002"))
      for split in ("train", "validation")
    },
    "sizes": {
      "train": {"height": [16, 40, 40], "width": [16, 60, 90]},
      "validation": {"height": [40, 40, 40], "width": [60, 60, 60]},
    },
  }
  path = source / "out" / FILE
  assert json.loads(path.read_text()) == expected
  path.unlink()  # Records made by an earlier version have none: starting again makes it.
  build(source / "out", validation_dir=source / "validation", labels_file=labels)
  with pytest.raises(UserError, match="1 of 11 pictures were skipped"):
    build(source / "out", train_dir=source / "train", labels_file=labels)
  assert json.loads(path.read_text()) == expected


def test_validation_pictures_built_later_have_the_labels_of_the_training(source):
  build(source / "out", train_dir=source / "train")
  shutil.rmtree(source / "validation" / SYNSETS[0])
  build(source / "out", validation_dir=source / "validation")
  examples = records(source / "out", "validation")
  assert {value(example, "class/synset").decode(): value(example, "class/label") for example in examples} == {
    SYNSETS[1]: 2,
    SYNSETS[2]: 3,
  }
  assert read_description(source / "out").folders == list(SYNSETS)


@pytest.mark.parametrize("interrupted", [True, False])
def test_records_of_other_classes_are_not_mixed(source, monkeypatch, interrupted):
  if interrupted:
    with monkeypatch.context() as patch:
      patch.setattr(build_imagenet_records, "build", lambda *_: 1 / 0)
      with pytest.raises(ZeroDivisionError):
        build(source / "out", train_dir=source / "train")
  else:
    build(source / "out", train_dir=source / "train")
  (source / "train" / SYNSETS[0]).rename(source / "train/n99")
  with pytest.raises(UserError, match="already holds records of other classes, see description.json"):
    build(source / "out", train_dir=source / "train")


def test_records_of_other_pictures_are_not_mixed(source):
  build(source / "out", train_dir=source / "train")
  (source / "train" / SYNSETS[0] / "new.jpg").write_bytes(jpeg(1))
  with pytest.raises(
    UserError, match="train-0000.-of-00002 was made of . pictures, but would now be of .; delete"
  ):
    build(source / "out", train_dir=source / "train")


def test_a_damaged_record_file_is_not_kept(source):
  build(source / "out", train_dir=source / "train")
  path = source / "out/train-00001-of-00002"
  path.write_bytes(path.read_bytes()[:-50])
  with pytest.raises(UserError, match="train-00001-of-00002 is damaged; delete it, and start again"):
    build(source / "out", train_dir=source / "train")


# Pictures of one's own.


def test_a_share_of_each_class_is_held_out(source):
  for number in range(20):
    (source / "train" / SYNSETS[0] / f"more_{number}.jpg").write_bytes(jpeg(number))
  build(source / "none", train_dir=source / "train", validation_share=0)
  assert read_description(source / "none").counts == {"train": 29}
  build(source / "out", train_dir=source / "train", validation_share=0.2)
  train, validation = by_name(source / "out"), by_name(source / "out", "validation")
  assert not set(train) & set(validation)
  assert len(train) + len(validation) == 29
  held_out = [value(example, "class/synset").decode() for example in validation.values()]
  assert [held_out.count(synset) for synset in SYNSETS] == [5, 1, 1]
  more = [sorted(name for name in of_split if name.startswith("more")) for of_split in (train, validation)]
  assert more[0][0] < more[1][-1], "chosen at random, not the first by name"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"validation_share": 0.9, "train_dir": "{source}/train"}, "=0.9 is all of the 3 pictures of 'n01440764'"),
    ({"validation_share": 0.1, "validation_dir": "{source}/validation"}, "instead of --validation_dir"),
    ({"train_dir": "{source}/webp"}, "^pictures must be JPEG or PNG; convert a.webp, or remove it"),
    ({"train_dir": "{source}/webp.tar"}, "^pictures must be JPEG or PNG; convert a.webp, or remove it"),
    (
      {"train_dir": "{source}/deep"},
      "deep/cat/2019 is a folder within a class; move its pictures into .*deep/cat",
    ),
  ],
)
def test_pictures_that_would_be_left_out_without_a_word_are_refused(source, arguments, message):
  for name in ("webp/cat/a.webp", "webp/cat/b.jpg", "deep/cat/2019/a.jpg", "deep/cat/b.jpg"):
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes(jpeg(0))
  with tarfile.open(source / "webp.tar", "w") as tar:
    tar.add(source / "webp/cat", "cat")
  with pytest.raises(UserError, match=message):
    build(source / "out", **{key: str(item).format(source=source) for key, item in arguments.items()})


def test_hidden_files_and_folders_are_no_pictures(source):
  for name in (".cache/a.jpg", "n01440764/._a.jpg", "n01440764/.cache/a.jpg", "n01440764/notes.txt"):
    (source / "train" / name).parent.mkdir(exist_ok=True)
    (source / "train" / name).write_bytes(b"")
  assert {(picture.synset, picture.name) for picture in list_pictures(source / "train")} == {
    (SYNSETS[number // 3], f"{SYNSETS[number // 3]}_{number}.JPEG") for number in range(9)
  }


# Validation labels as people have them.

# The devkit's table for three synsets and one that is no leaf, written by scipy.io.savemat: number 1 is
# n02105855, 2 n01440764, 3 n01443537, and 1001 n00001740.
META = base64.b64decode(
  "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFRodSBOb3YgMjYgMTg6MTY6MjAgMjAyNgAA"
  "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAAywEAAHic7ZVBT8IwFMcrQYSD"
  "BL2amHrwBslAEG6S4AETY4gY9Uaa7bE2js60JYRv4M2LH9SPYOsGjAadYd70hUfzf+T/29766MoIIVpCqKDXos4cimI31nmdO3Hu"
  "6ZRzLkFJ/XseHcT1F51X18P7217DqTdGV5cG8HATrcuYhcKTyYIfhHKtwKeTkUtZ4Angn4U1sWBwUCMKzKcqtihBGB+xCfFBorIu"
  "dtCqn4LVz04iTZTiehTvF8bfTfjzG/ylhL8Sa+406k6r02rFdcN5TOGcWhyjhxRUQLiHJQV49kK/itdLWNdiftp9Viy+SYLlhATB"
  "Ep/teUX34XzjX0TSv/Blve7W/sFbN+P1u9vPSb3ZdNrnzUQf/RTOocUxWgF3aRXfMe4SrMz3ijdI4R1bPKPHAiSdEQUCe8SFWsCe"
  "APtkAnjMJP2d/fp7c1LMNidnrbN2oo+0fT2yOEb7YeCZHaziHhFESjaVmEwFUVO55KadUycW1+joFDF04DgU+kO4DzUB3ufAwOJg"
  "/5+bLfz91wxzo6Pebjpf9LGJU7A4RgNXTM1/9p7Zt/xGK0oUnlHmUsxk1ue54bzd5M9Z/krCHy3FjP/nRtb3BvoAWMeG2w=="
)


@pytest.fixture(name="flat")
def _flat(source):
  """The four validation pictures in one folder; their synsets are SYNSETS[0], [1], [2] and [0]."""
  (source / "flat").mkdir()
  for number in range(1, 5):
    name = f"ILSVRC2012_val_{number:08d}.JPEG"
    (source / "validation" / SYNSETS[(number - 1) % 3] / name).rename(source / "flat" / name)
  return source


def labelled(flat, labels):
  build(flat / "out", train_dir=flat / "train", validation_dir=flat / "flat", validation_labels=labels)
  examples = by_name(flat / "out", "validation")
  return [
    value(examples[f"ILSVRC2012_val_{number:08d}.JPEG"], "class/synset").decode() for number in range(1, 5)
  ]


EXPECTED = [SYNSETS[0], SYNSETS[1], SYNSETS[2], SYNSETS[0]]
KAGGLE = """ImageId,PredictionString
ILSVRC2012_val_00000003,n02105855 85 1 499 272 n02105855 3 3 4 4
ILSVRC2012_val_00000001,n01440764 14 2 3 4
ILSVRC2012_val_00000004,n01440764 0 0 1 1
ILSVRC2012_val_00000002,n01443537 5 6 7 8
"""


def write_devkit(flat, numbers="2\n3\n1\n2\n", meta=META):
  folder = flat / "ILSVRC2012_devkit_t12/data"
  folder.mkdir(parents=True)
  (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(numbers)
  (folder / "meta.mat").write_bytes(meta)
  (folder / "readme.txt").write_text("")
  with tarfile.open(flat / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
    tar.add(folder.parent, folder.parent.name)


@pytest.mark.parametrize(
  "labels",
  [
    "LOC_val_solution.csv",
    "ILSVRC2012_devkit_t12.tar.gz",
    "ILSVRC2012_devkit_t12",
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
  ],
)
def test_validation_labels_as_people_have_them(flat, labels):
  (flat / "LOC_val_solution.csv").write_text(KAGGLE)
  write_devkit(flat)
  assert labelled(flat, flat / labels) == EXPECTED


def test_the_table_of_synsets_may_be_uncompressed_and_come_second(flat):
  number = struct.pack("<2I 4I 2I2i I4s 2Id", 14, 56, 6, 8, 6, 0, 5, 8, 1, 1, 1 << 16 | 1, b"a", 9, 8, 3.0)
  packed = zlib.compress(number)
  assert len(packed) % 8, "a compressed element is not padded"
  number = struct.pack("<2I", 15, len(packed)) + packed
  write_devkit(flat, meta=META[:128] + number + zlib.decompress(META[136:]))
  assert labelled(flat, flat / "ILSVRC2012_devkit_t12") == EXPECTED


@pytest.mark.parametrize("size", [0, 100, 200, 400, 590])
def test_a_damaged_table_of_synsets_is_one_line(flat, size):
  write_devkit(flat, meta=META[:size])
  with pytest.raises(UserError, match=r"devkit_t12: cannot read the devkit's meta.mat: it is"):
    labelled(flat, flat / "ILSVRC2012_devkit_t12")


@pytest.mark.parametrize(
  ("labels", "text", "message"),
  [
    ("a.csv", KAGGLE.replace("00000002", "00000009"), "a.csv has no line for ILSVRC2012_val_00000002.JPEG"),
    ("a.csv", KAGGLE + "ILSVRC2012_val_00000005\n", "a.csv, line 6: expected ImageId,PredictionString; got"),
    ("a.txt", "2\n3\n1\n2\n", "3 classes without a label, such as '1'; the devkit's numbers need its meta.mat"),
    ("ILSVRC2012_devkit_t12", "2\n3\n1\n", "devkit_t12 has 3 lines for 4 pictures"),
    ("ILSVRC2012_devkit_t12", "2\n3\n1\n7\n", "the devkit's meta.mat has no synset of number '7'"),
    (
      "train",
      "",
      "train is not ILSVRC2012's devkit: it has no ILSVRC2012_validation_ground_truth.txt and no meta",
    ),
  ],
)
def test_labels_that_do_not_fit_are_named(flat, labels, text, message):
  write_devkit(flat, numbers=text)
  if "." in labels:
    (flat / labels).write_text(text)
  with pytest.raises(UserError, match=message):
    labelled(flat, flat / labels)
