"""resnet.tools.xla_plan, but for what needs JAX's environment: that is checked by tests/check_gpu_plan.sh."""

import json
import pathlib
import sys

import keras
import pytest
import tensorflow as tf
from absl import flags
from helpers import fresh_flags
from tensorflow.compiler.xla.service import hlo_pb2

from resnet.tools.benchmark.report import Case
from resnet.tools.xla_plan import __main__ as xla_plan
from resnet.tools.xla_plan import environment
from resnet.tools.xla_plan.export import export, export_fit_step, export_step
from resnet.utils.errors import UserError


@pytest.fixture(autouse=True)
def seed():
  keras.utils.set_random_seed(0)  # TensorFlow draws values for the arguments; the tests' ops are deterministic.


def operations(program: bytes) -> list[str]:
  module = hlo_pb2.HloModuleProto.FromString(program)
  return [instruction.opcode for computation in module.computations for instruction in computation.instructions]


def test_a_program_does_what_the_function_does():
  program = export(lambda x, y: x @ y, tf.TensorSpec([3, 4]), tf.TensorSpec([4, 5]))
  (entry,) = hlo_pb2.HloModuleProto.FromString(program).computations
  shapes = [list(instruction.shape.dimensions) for instruction in entry.instructions]
  for shape in ([3, 4], [4, 5], [3, 5]):
    assert shape in shapes
  assert "dot" in operations(program)


def test_the_modes_of_a_model():
  count = {
    mode: operations(export_step(Case("revnet-38", mode, 2, (1, 1, 1)), (8, 8, 8, 8))).count("convolution")
    for mode in ("ordinary", "unrolled")
  }
  assert count["unrolled"] > count["ordinary"] > 0  # Activations are computed again.


def test_fit_steps_with_the_network_s_own_loss_or_none():
  def model():
    x = keras.Input([6])
    return keras.Model(x, keras.layers.Dense(2)(x))

  compiled = model()
  compiled.compile("sgd", "mean_absolute_error", metrics=["mean_absolute_error"])
  for network in (model(), compiled):
    program = export_fit_step(network, 5, ordinary=False)
    assert operations(program).count("dot") >= 2  # Forward, and the kernel's gradient.


@pytest.fixture
def run(monkeypatch, tmp_path):
  """A function that runs the tool with flags, each program being planned as so many bytes as the batch."""
  monkeypatch.setattr(environment, "python_of", lambda folder: "python")
  monkeypatch.setattr(xla_plan, "_model_step", lambda case, filters: json.dumps([str(case), filters]).encode())
  tensors = [["f32[2]", "a", 3_000_000], ["f32[2]", "b", 3_000_000], ["f32[1]", "c", 1_000_000]]
  monkeypatch.setattr(
    environment,
    "plan",
    lambda python, program, gpu, largest: {
      "temporary_bytes": 12_000_000,
      "peak": tensors[:largest],
      "program": program.read_text(),
    },
  )

  def run(*arguments):
    with fresh_flags():
      xla_plan.define_flags()
      flags.FLAGS([sys.argv[0], *arguments])
      xla_plan.main()

  return run


def test_the_table(run, capsys, tmp_path):
  file = tmp_path / "rows.json"
  run(
    "--model=revnet-38",
    "--batch=4",
    "--units=2,3",
    "--mode=unrolled",
    "--activation_memory=least,auto",
    "--peak=3",
    f"--json={file}",
  )
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "revnet-38 unrolled least, batch 4, 2 units a stage, float32: 12.0 MB, 3.00 MB an example"
  assert lines[1:3] == ["    2 x      3.0 MB  f32[2]  a, b", "    1 x      1.0 MB  f32[1]  c"]
  rows = json.loads(file.read_text(encoding="utf-8"))
  assert [(row["units"][0], row["activation_memory"]) for row in rows] == [
    (2, "least"),
    (2, "auto"),
    (3, "least"),
    (3, "auto"),
  ]
  assert "3 units a stage" in rows[-1]["program"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--mode=rolled"], "--mode must be of ordinary, unrolled, while_loop, got 'rolled'"),
    (
      ["--network=examples/exact_chain.py:Function", "--mode=unrolled"],
      "--mode must be of ordinary, reversible",
    ),
    (["--network=nothing.py:make"], "--network must be FILE.py:FUNCTION, got 'nothing.py:make'"),
    (["--units=some"], "--units must be whole numbers, got 'some'"),
    (["--dtype=float8"], "--dtype must be of float32, .*, got 'float8'"),
  ],
)
def test_mistakes(run, arguments, message, monkeypatch):
  monkeypatch.chdir(pathlib.Path(xla_plan.__file__).parents[3])
  with pytest.raises(UserError, match=message):
    run(*arguments)


def test_an_environment_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match="JAX's environment is not in .*--install"):
    environment.python_of(str(tmp_path))
  with pytest.raises(UserError, match="--python must be Python 3.12 or later; /nowhere/python"):
    environment.install(str(tmp_path), "/nowhere/python")
