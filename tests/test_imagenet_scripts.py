"""The ImageNet scripts end to end on tiny data, and evaluation beside training."""

import dataclasses
import json

import pytest
from imagenet_helpers import prepare_tfds, small_config, write_classic

from resnet.configs import get_config, save_config
from resnet.data import EvaluationData, get_dataset
from resnet.experiments.experiment import Experiment
from resnet.experiments.watch import to_be_evaluated
from resnet.models import get_model
from resnet.training import evaluate
from resnet.training.checkpoint import Checkpoints
from resnet.training.evaluate import evaluate_checkpoints
from resnet.training.optimizer import make_optimizer

CONFIG = small_config(
  num_residual_units=(1, 2),
  filters=(8, 4, 8),
  strides=(1, 2),
  max_train_iter=3,
  disp_iter=1,
  save_iter=2,
)


@pytest.fixture
def folder(tmp_path):
  """A configuration and record files, as the scripts expect them."""
  save_config(CONFIG, tmp_path / "tiny.json")
  (tmp_path / "data").mkdir()
  for split in ("train", "validation"):
    write_classic(tmp_path / "data/imagenet", split)
  return tmp_path


def points(folder, curve):
  lines = (folder / f"logs/public/a/{curve}.csv").read_text().splitlines()
  return [int(line.split(",")[0]) for line in lines[1:]]


def test_train_evaluate_stop_and_resume(folder, run_script, capsys):
  train = ("run_imagenet_train.py", "--num_gpu=0", "--id=a")
  assert run_script(*train, "--config=tiny.json", "--max_num_steps=2", "--num_pass=2") is None
  assert points(folder, "train_ce") == [1, 2]
  assert (
    "data/imagenet has no description.json: its pictures are taken as of 1000 classes"
    in capsys.readouterr().out
  )
  assert run_script("run_imagenet_eval.py", "--id=a") is None
  assert run_script("run_imagenet_eval.py", "--id=a", "--ckpt_num=1") is None
  assert points(folder, "valid_acc") == points(folder, "train_acc5") == [2, 1]
  assert "step 2: valid_acc top-1" in capsys.readouterr().out
  assert run_script(*train, "--restore") is None
  assert points(folder, "train_ce") == [1, 2, 3]
  # Step 3 is the last: watching evaluates what has not been, and ends.
  assert run_script("run_imagenet_eval.py", "--id=a", "--watch") is None
  assert points(folder, "valid_acc") == points(folder, "valid_acc5") == [2, 1, 3]


def test_training_on_what_tensorflow_datasets_prepared(tmp_path, run_script):
  save_config(CONFIG, tmp_path / "tiny.json")
  prepare_tfds(tmp_path / "prepared", {"train": [1, 2, 3, 4, 5], "validation": [1, 2]})
  arguments = ["--num_gpu=0", "--id=a", "--config=tiny.json", "--data_dir=prepared", "--max_num_steps=2"]
  assert run_script("run_imagenet_train.py", *arguments) is None
  assert run_script("run_imagenet_eval.py", "--id=a", "--data_dir=prepared") is None
  assert points(tmp_path, "valid_acc") == [2]


def test_watching_takes_complete_checkpoints_as_they_appear(folder, monkeypatch):
  experiment = Experiment.named("a", str(folder / "results"), str(folder / "logs/public"))
  first = dataclasses.replace(CONFIG, max_train_iter=2)
  experiment.create(first)
  model = get_model(CONFIG)
  optimizer = make_optimizer(CONFIG, model)
  checkpoints = Checkpoints(experiment.folder, model, optimizer)

  def half_written():
    assert evaluated() == []
    (experiment.folder / "model.ckpt-1.data-00000-of-00001").write_bytes(b"half of it")
    (experiment.folder / "model.ckpt-1.index").write_bytes(b"")

  def evaluated():
    path = experiment.logs_folder / "valid_acc.csv"
    return points(folder, "valid_acc") if path.exists() else []

  def continued_for_longer():
    assert to_be_evaluated(experiment, [2, 3]) == {2, 3}
    experiment.change_config(CONFIG, 1)
    checkpoints.save(2)

  while_it_sleeps = iter([half_written, continued_for_longer, lambda: checkpoints.save(3)])
  seen = []

  def sleep(seconds):
    assert seconds == evaluate.WATCH_INTERVAL
    seen.append(evaluated())
    next(while_it_sleeps)()

  monkeypatch.setattr("time.sleep", sleep)
  data = {"valid_acc": EvaluationData(get_dataset(CONFIG, folder / "data/imagenet", "validation"), 1)}
  evaluate_checkpoints(first, experiment, data, watch=True)
  assert seen == [[], [], [2]], "the schedule in force decides when all is evaluated"
  assert evaluated() == [2, 3]
  assert not to_be_evaluated(experiment, [4]), "it watches no more"


@pytest.mark.parametrize(
  ("script", "arguments", "message"),
  [
    ("train", ["--num_gpu=4"], "--num_gpu is 4, but 0 GPUs are visible to TensorFlow"),
    ("train", [], "the default of --num_gpu is 4, but 0 GPUs are visible to TensorFlow; give --num_gpu 0"),
    ("train", ["--model=revnet-110"], "revnet-110 is a model for cifar-10; train it by run_cifar_train.py"),
    ("train", ["--num_gpu=0", "--data_dir=empty"], "empty"),
    ("train", ["--num_gpu=0", "--num_pass=0"], "flag --num_pass=0"),
    ("train", ["--num_gpu=0", "--num_pass=3"], "--num_pass must divide the 256 images of a replica, got 3"),
    ("train", ["--num_gpu=0", "--id=cifar"], "experiment cifar exists in results/imagenet"),
    ("train", ["--num_gpu=0", "--id=there", "--restore"], "no checkpoint in results/imagenet/there"),
    ("train", ["--id=there", "--restore", "--model=resnet-50"], "--model is resnet-50, but experiment there"),
    ("eval", [], "Flag --id must have a value"),
    ("eval", ["--id=none"], "no experiment none in results/imagenet"),
    ("eval", ["--id=other"], "other/conf.json is missing; there is one by --results results/cifar"),
    ("eval", ["--id=cifar"], "experiment cifar is one of cifar-10, not of imagenet"),
    ("eval", ["--id=there"], "no checkpoint in results/imagenet/there"),
    ("eval", ["--id=there", "--ckpt_num=7"], "no checkpoint results/imagenet/there/model.ckpt-7"),
    ("eval", ["--id=there", "--data_dir=empty"], "empty"),
  ],
)
def test_mistakes_are_one_clear_line(folder, run_script, script, arguments, message):
  for name, config in (("there", CONFIG), ("cifar", get_config("revnet-test"))):
    (folder / f"results/imagenet/{name}").mkdir(parents=True)
    save_config(config, folder / f"results/imagenet/{name}/conf.json")
  (folder / "results/imagenet/cifar/model.ckpt-1.index").touch()
  (folder / "results/cifar/other").mkdir(parents=True)
  save_config(CONFIG, folder / "results/cifar/other/conf.json")
  (folder / "empty").mkdir()
  before = sorted(folder.rglob("*"))
  error = run_script(f"run_imagenet_{script}.py", *arguments)
  assert isinstance(error, str), "a message as exit code means status 1"
  assert error.startswith(f"run_imagenet_{script}.py: error: ")
  assert message in error
  assert "\n" not in error
  written = [path for path in folder.rglob("*") if path not in before and path.is_file()]
  assert not [path for path in written if "logs" not in path.parts and path.name != "lock"], (
    "no result is written"
  )


def test_a_damaged_record_stops_training_and_is_named(folder, run_script):
  for path in (folder / "data/imagenet").glob("train-*"):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(bytes(data))
  error = run_script("run_imagenet_train.py", "--num_gpu=0", "--id=a", "--config=tiny.json")
  assert "data/imagenet/train-0000" in error


def test_an_experiment_of_another_network_is_refused(folder, run_script):
  arguments = ["--num_gpu=0", "--id=a", "--config=tiny.json", "--max_num_steps=1"]
  assert run_script("run_imagenet_train.py", *arguments) is None
  conf = folder / "results/imagenet/a/conf.json"
  conf.write_text(json.dumps(json.loads(conf.read_text()) | {"filters": [8, 4, 12]}))
  assert "is not a checkpoint of this model" in run_script("run_imagenet_eval.py", "--id=a")
