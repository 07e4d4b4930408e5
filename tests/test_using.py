"""docs/using.md: every block of it runs, in order, on a smaller network and fewer digits."""

import base64
import contextlib
import importlib
import io
import json
import re
import shlex
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT

from resnet.data import digits
from resnet.recomputation import memory
from resnet.tools import classify, export_checkpoint

PAGE = (ROOT / "docs/using.md").read_text(encoding="utf-8")
NETWORK = ["num_residual_units=1,1,1", "filters=4,4,8,12"]
TRAINING = ["max_train_iter=3", "lr_decay_steps=1,2", "batch_size=10"]
SHORT = {"epochs=4": "epochs=1", "EPOCHS = 12": "EPOCHS = 1"}
COUNT = 50  # digits of each split
TOOLS = {"resnet.tools.classify": classify, "resnet.tools.export_checkpoint": export_checkpoint}


@pytest.fixture
def few(monkeypatch):
  """There are few digits, and no processes for the measurement of memory."""
  whole = {split: tuple(part[:COUNT] for part in parts) for split, parts in digits.load_digits().items()}
  for module in (digits, importlib.import_module("resnet.data.get_dataset")):
    monkeypatch.setattr(module, "load_digits", lambda: whole)
  monkeypatch.setattr(memory, "_in_a_process", lambda model, given, ordinary: 1 + ordinary)


def run_python(block):
  """What it prints."""
  for long, short in SHORT.items():
    block = block.replace(long, short)
  printed = io.StringIO()
  tf.config.run_functions_eagerly("fit(" in block)  # A step or two take less time than their graph.
  try:
    with contextlib.redirect_stdout(printed):
      exec(compile(block, "using.md", "exec"), {"__name__": "__main__"})
  finally:
    tf.config.run_functions_eagerly(False)
  return printed.getvalue()


def answer(command):
  """What a server of the exported model answers to curl's request."""
  echo = 'curl() { printf %s "${@: -1}"; }; ' + command
  done = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=True)
  files = [base64.b64decode(instance["b64"]) for instance in json.loads(done.stdout)["instances"]]
  return tf.saved_model.load("exported/saved_model").signatures["serving_default"](tf.constant(files))


@pytest.mark.usefixtures("few")
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")
def test_every_block_runs(tmp_path, run_script, run_module, capsys, monkeypatch):
  blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
  ran = []

  def run_command(command):
    words = shlex.split(command)
    if words[0] == "curl":
      outputs = answer(command)
      return {name: x.shape for name, x in outputs.items()}
    redirected = [word.removeprefix("<") for word in words if word.startswith("<")]
    arguments = [word for word in words if not word.startswith("<")]
    if arguments[0] == "./run_cifar_train.py":
      changes = [flag for change in NETWORK + TRAINING for flag in ("--override", change)]
      assert run_script("run_cifar_train.py", *arguments[1:], *changes) is None
    else:
      assert arguments[:2] == ["python", "-m"]
      for path in redirected:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / path).read_bytes())))
      assert run_module(TOOLS[arguments[2]], *arguments[3:]) is None
    return capsys.readouterr().out

  for language, block in blocks:
    if language == "python":
      ran.append(run_python(block))
    else:
      ran += [run_command(line) for line in block.replace("\\\n", " ").splitlines()]

  _, _, folder, table, from_stdin, odd, dense, exported, served, by_curl, quantised = ran
  images, labels = digits.load_digits()["test"]
  pictures = [f"pictures/{k}_is_{labels[k]}.png" for k in range(5)]
  assert [line for line in folder.splitlines() if not line.startswith(" ")] == pictures
  assert table.splitlines()[1].startswith("pictures/4_is_8.png,1,")
  assert from_stdin.splitlines()[1:] == folder.splitlines()[-5:]
  assert re.search(r"ordinary +0.0 MB", odd)
  assert re.search(r"right: [\d.]+ % of all pixels, [\d.]+ % of those with ink", dense)
  assert re.search(r"model_int8.tflite: [\d.]+ MB, accuracy [\d.]+ % on 50 test images", exported)
  likeliest = folder.splitlines()[-5].split()[-1]
  assert served.split()[0] == likeliest
  assert by_curl == {"probabilities": [1, 10], "class_names": [1, 10]}
  assert re.fullmatch(r"2 \d\n", quantised)
  # Each file of the table is there.
  (rows,) = re.findall(r"\| in `exported/` .*?\n\n", PAGE, re.DOTALL)
  for name in re.findall(r"^\| `([\w./]+)`", rows, re.MULTILINE):
    assert (tmp_path / "exported" / name).exists(), name
  loaded = keras.models.load_model("odd.keras")
  assert loaded(images[:2].astype(np.float32)).shape == (2, 2)


def test_the_network_of_the_figures_fits_its_words():
  """The shapes that the page gives for RevNet-38's features."""
  from resnet.configs import get_config
  from resnet.models import get_model

  features = get_model(get_config("revnet-38"), include_top=False).features(keras.Input([32, 32, 3]))
  for name in ("stage_1", "stage_2", "stage_3"):
    shape = "N, " + ", ".join(map(str, features[name].shape[1:]))
    assert re.search(rf"`{name}`\s+\[{shape}\]", PAGE), (name, shape)
  assert features["final"].shape == features["stage_3"].shape
