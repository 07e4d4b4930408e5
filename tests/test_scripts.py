"""The run scripts as a user starts them: end to end on tiny data, and with every kind of mistake."""

import dataclasses
import json
import shlex
import signal

import pytest
from helpers import start

from resnet.configs import get_config, get_config_from_json, save_config
from resnet.experiments.curves import read_curve
from resnet.training.checkpoint import Checkpoints

NETWORK = ["height=32", "width=32", "num_residual_units=1,2", "filters=8,8,16"]
TINY = ["--dataset=digits", "--model=revnet-test", *[f"--override={change}" for change in NETWORK]]
FAST = ["--num_gpu=0", "--override=valid_batch_size=300"]


def test_cifar_script_trains_stops_and_resumes(tmp_path):
  mixed = ["--dtype=mixed_bfloat16", "--monitor_reconstruction"]
  first = start("run_cifar_train.py", *TINY, *FAST, *mixed, "--id=a", "--max_num_steps=2", cwd=tmp_path)
  assert first.returncode == 0, first.stderr
  assert "Final test accuracy = " in first.stdout
  assert "steps 1 to 2" in first.stdout
  assert not first.stderr, "nothing of TensorFlow's log"
  second = start("run_cifar_train.py", "--restore", "--id=a", "--num_gpu=0", "--max_num_steps=1", cwd=tmp_path)
  assert second.returncode == 0, second.stderr
  assert "steps 3 to 3" in second.stdout
  assert "configured as the last run" in second.stdout
  results, logs = tmp_path / "results/cifar/a", tmp_path / "logs/public/a"
  assert {path.name for path in results.glob("*.index")} == {f"model.ckpt-{k}.index" for k in (1, 2, 3)}
  saved = json.loads((results / "conf.json").read_text())
  assert (saved["name"], saved["dataset"], saved["dtype"]) == ("revnet-test", "digits", "mixed_bfloat16")
  assert (logs / "reconstruction_error.csv").read_text().startswith("step,time,stage_1,stage_2\n1,")
  commands = (logs / "cmd.txt").read_text().splitlines()
  assert len(commands) == 2
  assert commands[1].endswith("--restore --id=a --num_gpu=0 --max_num_steps=1")


def test_what_a_restore_changes_stays_in_force(run_script, tmp_path, capsys):
  train = ("run_cifar_train.py", "--id=a", "--num_gpu=0")
  short = [*TINY, "--override=max_train_iter=20", "--override=lr_decay_steps=10,15"]
  assert run_script(*train, *short, "--max_num_steps=1") is None
  new = [
    "base_learn_rate=0.05",
    "max_train_iter=40",
    "lr_decay_steps=3,35",
    "num_pass=2",
    "valid_batch_size=297",
  ]
  changes = [f"--override={change}" for change in new]
  assert run_script(*train, "--restore", *changes, "--max_num_steps=1") is None
  shown = capsys.readouterr().out
  for words in (
    "changed since the last run: ",
    "max_train_iter 20 -> 40",
    "base_learn_rate 0.1 -> 0.05",
    "lr_decay_steps [10, 15] -> [3, 35]",
    "num_pass 1 -> 2",
    "; the configuration until step 1 is kept in results/cifar/a/conf-1.json",
    "learning rate 0.05 from step 1, 0.01 from step 3, 0.001 from step 35; the training ends after step 40",
  ):
    assert words in shown, shown
  assert run_script(*train, "--restore", "--max_num_steps=1") is None
  assert "configured as the last run" in capsys.readouterr().out
  config = get_config_from_json(tmp_path / "results/cifar/a/conf.json")
  assert (config.base_learn_rate, config.max_train_iter, config.num_pass) == (0.05, 40, 2)
  assert get_config_from_json(tmp_path / "results/cifar/a/conf-1.json").max_train_iter == 20
  assert read_curve(tmp_path / "logs/public/a/learn_rate.csv") == {1: 0.1, 2: 0.05, 3: 0.01}


def test_the_printed_command_continues_a_run(run_script, tmp_path, monkeypatch, capsys):
  save = Checkpoints.save

  def interrupted(self, step):
    save(self, step)
    if step == 1:
      signal.raise_signal(signal.SIGINT)

  given = ["--results=my results", "--logs=my logs", "--num_gpu=0", "--keep_checkpoints=1"]
  with monkeypatch.context() as patched:
    patched.setattr(Checkpoints, "save", interrupted)
    assert run_script("run_cifar_train.py", *TINY, "--id=a", *given, "--override=num_pass=2") == 130
  last = capsys.readouterr().out.splitlines()[-1]
  assert last.startswith("stopped at step 2; ")
  continuing = shlex.split(last.partition("continue with ")[2])
  assert run_script("run_cifar_train.py", *continuing, "--max_num_steps=2") is None
  assert "steps 3 to 4" in capsys.readouterr().out
  folder = tmp_path / "my results/a"
  assert get_config_from_json(folder / "conf.json").num_pass == 2
  assert {path.name for path in folder.glob("*.index")} == {"model.ckpt-2.index", "model.ckpt-4.index"}
  assert list(read_curve(tmp_path / "my logs/a/learn_rate.csv")) == [1, 2, 4]


def test_a_mistake_is_one_line_in_a_process_of_its_own(tmp_path):
  process = start("run_cifar_train.py", "--model=revnet-111", cwd=tmp_path)
  assert process.returncode == 1
  last = process.stderr.splitlines()[-1]
  assert last.startswith(
    "run_cifar_train.py: error: unknown model 'revnet-111' (did you mean revnet-110?); allowed are"
  )
  assert "Traceback" not in process.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--modle=x"], "Unknown command line flag 'modle'"),
    (["--max_num_steps=many"], "flag --max_num_steps=many"),
    (
      ["--dtype=float64"],
      "flag --dtype=float64: value should be one of <float32|mixed_bfloat16|mixed_float16>",
    ),
    (["--model=resnet-32", "--monitor_reconstruction"], "--monitor_reconstruction needs a RevNet; resnet-32"),
    (["--dataset=mnist"], "value should be one of <cifar-10|cifar-100|fashion-mnist|digits>"),
    (["train"], "unexpected argument 'train'"),
    (["--model=revnet-39"], "unknown model 'revnet-39' (did you mean revnet-38?); allowed are resnet-32"),
    (["--model=revnet-104"], "revnet-104 is a model for ImageNet; train it by run_imagenet_train.py"),
    (["--config=nowhere.json"], "cannot read config nowhere.json: No such file or directory"),
    (["--config=bad.json"], "config bad.json is not JSON"),
    (["--override=batchsize=3"], "unknown field 'batchsize' (did you mean batch_size?)"),
    (["--override=filters=1,2"], "filters must have 4 entries"),
    (
      ["--model=revnet-54"],
      "unknown model 'revnet-54' (the original's revnet-54 is called revnet-56); allowed",
    ),
    (["--restore"], "--restore needs --id"),
    (["--keep_checkpoints=0"], "flag --keep_checkpoints=0"),
    (["--override=num_replicas=2"], "num_replicas is no choice"),
    (["--override=num_pass=3"], "--num_pass must divide the 100 images of a replica, got 3"),
    (["--restore", "--id=none"], "no experiment none in results/cifar"),
    (["--restore", "--id=there"], "no checkpoint in results/cifar/there"),
    (["--id=there"], "experiment there exists in results/cifar; continue it with --restore"),
    (["--num_gpu=2"], "--num_gpu is 2, but 0 GPUs are visible to TensorFlow"),
    (["--num_gpu=-1"], "flag --num_gpu=-1"),
    (
      ["--activation_memory=2"],
      "activation_memory must be least, auto, all, or an amount of memory such as 2GB",
    ),
    (["--activation_memory=1MB", "--model=revnet-38"], "--activation_memory must be at least "),
    (["--results=bad.json"], "cannot write to bad.json/"),
    (["--logs=bad.json"], "cannot write to bad.json/"),
    (
      ["--model=revnet-test"],
      "digits has images of shape [32, 32, 3], but the network of revnet-test takes [8, 8, 3]",
    ),
  ],
)
def test_mistakes_are_one_clear_line(run_script, tmp_path, arguments, message):
  (tmp_path / "bad.json").write_text("{")
  folder = tmp_path / "results/cifar/there"
  folder.mkdir(parents=True)
  save_config(dataclasses.replace(get_config("resnet-test"), dataset="digits"), folder / "conf.json")
  if "--id=there" in arguments and "--restore" not in arguments:
    (folder / "model.ckpt-1.index").touch()
  before = sorted(tmp_path.rglob("*"))
  dataset = [] if {"--restore", "--model=revnet-104"} & set(arguments) else ["--dataset=digits"]
  error = run_script("run_cifar_train.py", *dataset, *arguments)
  assert isinstance(error, str), "a message as exit code means status 1"
  assert error.startswith("run_cifar_train.py: error: ")
  assert message in error
  assert "\n" not in error
  left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
  assert not [path for path in left if path.is_file() and path.name != "lock"], "nothing is written"


def test_help_lists_all_flags(tmp_path):
  shown = start("run_cifar_train.py", "--help", cwd=tmp_path).stdout
  assert shown.startswith("Trains a ResNet or RevNet on CIFAR-10")
  for flag in ("model", "dataset", "[no]restore", "override", "data_dir", "[no]jit"):
    assert f"\n  --{flag}:" in shown, shown


def test_missing_data_is_one_clear_line(run_script, tmp_path, monkeypatch):
  def no_network(*_, **__):
    raise OSError("no route to host")

  monkeypatch.setattr("urllib.request.urlopen", no_network)
  error = run_script("run_cifar_train.py", "--data_dir=empty", "--dataset=cifar-100", "--id=x")
  assert "cifar-100 is not in empty and could not be downloaded (no route to host)" in error
  assert "put cifar-100-python.tar.gz or cifar-100-binary.tar.gz into empty" in error
  assert not (tmp_path / "results").exists()
