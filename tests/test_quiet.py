"""What is written to standard error while TensorFlow is loaded: errors, and no information."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

from resnet.configs import get_config, save_config

NOISE = (
  b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
  b"I0000 00:00:1795715793.387348     626 port.cc:153] oneDNN custom operations are on.\n"
  b"2026-11-26 18:00:00.000000: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.\n"
)
ERROR = b"E0000 00:00:1795715793.387348     626 cuda_dnn.cc:8310] Unable to register cuDNN factory\n"


def test_information_is_left_out_and_the_rest_let_through():
  program = (
    "import os, sys\nfrom resnet.utils.quiet import without_noise\n"
    f"with without_noise():\n  os.write(2, {NOISE + ERROR + NOISE!r})\n  print('of Python', file=sys.stderr)\n"
    f"  os.write(2, b'half a line')\nos.write(2, {NOISE!r})"
  )
  ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
  assert ended.stderr == ERROR + b"of Python\nhalf a line" + NOISE


def test_the_first_import_of_tensorflow_is_quiet(tmp_path):
  (tmp_path / "tensorflow").mkdir()
  noisy = f"import os, sys\nos.write(2, {NOISE + ERROR!r})\nprint(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
  (tmp_path / "tensorflow/__init__.py").write_text(noisy)
  (tmp_path / "tensorflow/part.py").write_text("")
  program = f"import resnet.tools, tensorflow.part, os, sys\nos.write(2, {NOISE!r})\nprint(len(sys.meta_path))"
  env = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
  env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
  plain = subprocess.run(
    [sys.executable, "-c", "import sys\nprint(len(sys.meta_path))"], capture_output=True, check=False
  )
  ended = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=False)
  assert ended.stderr == ERROR + NOISE
  assert ended.stdout == b"2\n" + plain.stdout, "nothing stays in the way of later imports"


def test_the_last_words_of_a_process_are_let_through():
  program = (
    "import os\nfrom resnet.utils.quiet import without_noise\n"
    "with without_noise():\n  os.write(2, b'F0000 no AVX\\n')\n  os.abort()"
  )
  ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
  assert ended.returncode == -signal.SIGABRT
  assert ended.stderr == b"F0000 no AVX\n"


def test_without_a_standard_error_nothing_is_filtered():
  program = "from resnet.utils.quiet import without_noise\nwith without_noise():\n  print('done')"
  command = f'exec "{sys.executable}" -c "{program}" 2>&-'
  ended = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
  assert (ended.returncode, ended.stdout) == (0, "done\n")


def tools():
  """The programs of resnet/tools, as modules."""
  folder = ROOT / "resnet/tools"
  programs = [path for path in folder.glob("*.py") if '"__main__"' in path.read_text(encoding="utf-8")]
  names = [path.stem for path in programs] + [path.parent.name for path in folder.glob("*/__main__.py")]
  return [f"resnet.tools.{name}" for name in sorted(names)]


@pytest.fixture
def without_tensorflow(tmp_path):
  """A function that runs Python where TensorFlow, and what builds on it, cannot be loaded."""
  for name in ("tensorflow", "keras", "tensorflow_datasets"):
    (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} is loaded')")
  env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

  def run(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

  return run


@pytest.mark.parametrize("tool", tools())
def test_help_of_a_tool_does_not_load_tensorflow(without_tensorflow, tool):
  ended = without_tensorflow("-m", tool, "--help")
  assert f"python -m {tool}" in ended.stdout
  assert not ended.stderr


@pytest.mark.parametrize(
  ("program", "arguments", "answer"),
  [
    ("run_cifar_train.py", ["--help"], "--keep_checkpoints"),
    ("run_imagenet_train.py", ["--help"], "--num_pass"),
    ("run_imagenet_eval.py", ["--help"], "--watch"),
    ("run_cifar_train.py", ["--modle=revnet-38"], "Did you mean: model"),
    ("run_cifar_train.py", ["--model=revnet-83"], "unknown model 'revnet-83' (did you mean revnet-38?)"),
    ("run_cifar_train.py", ["--override=batchsize=3"], "did you mean batch_size"),
    ("run_cifar_train.py", ["--model=revnet-104"], "train it by run_imagenet_train.py"),
    ("run_cifar_train.py", ["--restore", "--id=none"], "no experiment none"),
    ("run_cifar_train.py", ["--monitor_reconstruction"], "needs a RevNet"),
    ("run_imagenet_train.py", ["--model=revnet-54"], "the original's revnet-54 is called revnet-56"),
    ("run_imagenet_eval.py", ["--id=none"], "no experiment none"),
    ("gradient_angles", ["--grid_bits=x"], "whole numbers"),
    ("import_checkpoint", ["--id=a", "--model=revnet-104", "--checkpoint=none"], "no checkpoint at none"),
    ("export_checkpoint", ["--id=none", "--output=out"], "no experiment none"),
    ("export_checkpoint", ["--id=there", "--results=.", "--output=pictures"], "pictures exists"),
    ("classify", ["--id=none", "picture.png"], "no experiment none"),
    ("classify", ["--export=none", "picture.png"], "no export in none"),
    ("classify", ["--checkpoint=none", "--model=revnet-104", "picture.png"], "no checkpoint at none"),
    ("prepare_data", ["--dataset=mnist"], "<cifar-10|cifar-100|fashion-mnist>"),
    ("build_imagenet_records", ["--train_dir=none", "--output_dir=out"], "cannot read none"),
    (
      "build_imagenet_records",
      ["--validation_dir=pictures/cat", "--validation_labels=none.tar.gz", "--output_dir=out"],
      "cannot read none.tar.gz",
    ),
    ("build_imagenet_records", ["--train_dir=pictures", "--output_dir=out"], "1024 train files for 1 pictures"),
    ("plot_curves", ["none"], "no experiment none"),
    ("benchmark", ["--mode=fast"], "--mode must be of ordinary"),
    ("xla_plan", ["--environment=none"], "JAX's environment is not in none"),
  ],
)
def test_mistakes_in_flags_do_not_load_tensorflow(without_tensorflow, tmp_path, program, arguments, answer):
  (tmp_path / "picture.png").touch()
  (tmp_path / "pictures/cat").mkdir(parents=True)
  (tmp_path / "pictures/cat/1.png").touch()
  (tmp_path / "there").mkdir()
  save_config(get_config("resnet-32"), tmp_path / "there/conf.json")
  command = [str(ROOT / program)] if program.endswith(".py") else ["-m", f"resnet.tools.{program}"]
  ended = without_tensorflow(*command, *arguments)
  assert answer in ended.stdout + ended.stderr
  assert "Traceback" not in ended.stderr


def test_no_module_loads_tensorflow_datasets(without_tensorflow, tmp_path):
  (tmp_path / "tensorflow.py").unlink()
  (tmp_path / "keras.py").unlink()
  program = (
    "import importlib, pkgutil, resnet\n"
    "for module in pkgutil.walk_packages(resnet.__path__, 'resnet.'):\n"
    "  if module.name != 'resnet.tools.xla_plan.plan':  # It is for JAX's environment.\n"
    "    importlib.import_module(module.name)\n"
    "    print(module.name)"
  )
  ended = without_tensorflow("-c", program)
  assert ended.returncode == 0, ended.stderr
  for loaded in ("tools.benchmark.worker", "tools.xla_plan.export", "training.train_loop"):
    assert f"resnet.{loaded}" in ended.stdout.split()
