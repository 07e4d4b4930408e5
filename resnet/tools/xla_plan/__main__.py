"""The memory of compiled training steps on a GPU, as XLA plans it. It needs no GPU.

python -m resnet.tools.xla_plan --install
python -m resnet.tools.xla_plan --model revnet-104 --batch 64 --activation_memory auto,least --peak 8
python -m resnet.tools.xla_plan --network examples/reversible_transformer.py:make_model \
  --arguments width=64,heads=4,rate=0.1 --units 10,40 --batch 64

Each step is written as XLA's program and compiled for the GPU. XLA then says how many bytes the program needs
beside its weights, images and gradients. What the convolutions' algorithms need is not in it: cuDNN chooses
them on the GPU.

Compiling for a GPU takes a plugin of JAX, which needs Python 3.12 or later and an environment of its own of
1.4 GB: --install makes it.

With --network the step is the one that Keras' `fit` compiles, of a network of your own: the function takes
units=... and the arguments, and returns a Keras model of one input and one output. If it is not compiled, Adam
and the mean squared error to targets of the output's shape are taken. Mode ordinary is the same model by
ordinary backpropagation, mode reversible as it was built.
"""

import ast
import collections
import functools
import json
import pathlib
import runpy
import tempfile
from collections.abc import Callable, Iterator

from absl import flags

from resnet.configs import get_config
from resnet.configs.config import DTYPES
from resnet.tools.benchmark.report import Case
from resnet.tools.xla_plan import environment
from resnet.utils.app import run
from resnet.utils.errors import UserError

FLAGS = flags.FLAGS
MODES = ("ordinary", "unrolled", "while_loop")
NETWORK_MODES = ("ordinary", "reversible")


def define_flags() -> None:
  flags.DEFINE_string("model", "revnet-104", "Model: one of resnet/configs.")
  flags.DEFINE_string("network", None, "FILE.py:FUNCTION that makes a network of your own, instead of --model.")
  flags.DEFINE_list("arguments", [], "Of the function of --network, such as width=64,rate=0.1.")
  flags.DEFINE_list("units", ["0"], "Units of each stage, or of --network, e.g. 3,9; 0: as many as it has.")
  flags.DEFINE_integer("batch", 64, "Examples of a step.", lower_bound=1)
  flags.DEFINE_list("mode", None, f"Of {', '.join(MODES)}; with --network of {', '.join(NETWORK_MODES)}.")
  flags.DEFINE_list("activation_memory", ["auto"], "Settings of mode unrolled, as of the run scripts.")
  flags.DEFINE_list("dtype", ["float32"], f"Of {', '.join(DTYPES)}. Not of --network.")
  flags.DEFINE_list("filters", [], "Channels of the stem and of each stage; none: the model's.")
  flags.DEFINE_enum("gpu", "h100", environment.GPUS, "What to compile for.")
  flags.DEFINE_integer("peak", 0, "How many of the largest tensors at the peak to name.", lower_bound=0)
  flags.DEFINE_string("environment", environment.default_folder(), "Where JAX's environment is.")
  flags.DEFINE_bool("install", False, "Make the environment, by the Python of --python, and do no more.")
  flags.DEFINE_string(
    "python", None, "Python 3.12 or later; default: this one, or python3.12 and later on PATH."
  )
  flags.DEFINE_string("json", None, "A file for the numbers, too.")


def main() -> None:
  if FLAGS.install:
    environment.install(FLAGS.environment, FLAGS.python)
    return
  python = environment.python_of(FLAGS.environment)
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    for name, fields, step in _steps():
      program = pathlib.Path(folder) / "step.hlo"
      program.write_bytes(step())
      plan = environment.plan(python, program, FLAGS.gpu, FLAGS.peak)
      rows.append({**fields, "batch": FLAGS.batch, "gpu": FLAGS.gpu, **plan})
      megabytes = plan["temporary_bytes"] / 1e6
      print(f"{name}: {megabytes:,.1f} MB, {megabytes / FLAGS.batch:.2f} MB an example", flush=True)
      for (shape, size), names in _by_shape(plan["peak"]).items():
        print(f"  {len(names):3} x {size / 1e6:8.1f} MB  {shape}  {', '.join(names)}", flush=True)
  if FLAGS.json:
    pathlib.Path(FLAGS.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _by_shape(tensors: list[list]) -> dict[tuple[str, int], list[str]]:
  """The names of the tensors of each shape and size."""
  found = collections.defaultdict(list)
  for shape, name, size in tensors:
    found[shape, size].append(name)
  return found


def _steps() -> Iterator[tuple[str, dict, Callable[[], bytes]]]:
  """(a name, what it is, a function that makes the program) of each step that the flags ask for."""
  units = [_whole_number("units", number) for number in FLAGS.units]
  modes = FLAGS.mode or list(NETWORK_MODES if FLAGS.network else MODES)
  possible = NETWORK_MODES if FLAGS.network else MODES
  for mode in modes:
    if mode not in possible:
      raise UserError(f"--mode must be of {', '.join(possible)}, got {mode!r}")
  if FLAGS.network:
    make = _function_of(FLAGS.network)
    arguments = dict(map(_argument, FLAGS.arguments))
    for number in units:
      for mode in modes:
        fields = {"network": FLAGS.network, "units": number, "mode": mode}
        given = {**arguments, **({"units": number} if number else {})}
        yield f"{FLAGS.network} {mode}, {number} units", fields, functools.partial(_fit_step, make, mode, given)
    return
  filters = tuple(_whole_number("filters", number) for number in FLAGS.filters)
  for dtype in FLAGS.dtype:
    if dtype not in DTYPES:
      raise UserError(f"--dtype must be of {', '.join(DTYPES)}, got {dtype!r}")
    for number in units:
      for mode in modes:
        for memory in FLAGS.activation_memory if mode == "unrolled" else ["auto"]:
          stages = get_config(FLAGS.model).num_residual_units
          case = Case(
            FLAGS.model, mode, FLAGS.batch, (number,) * len(stages) if number else stages, dtype, True, memory
          )
          fields = {
            "model": case.model,
            "units": case.units,
            "mode": mode,
            "activation_memory": memory,
            "dtype": dtype,
          }
          yield f"{case}, {dtype}", fields, functools.partial(_model_step, case, filters)


def _model_step(case: Case, filters: tuple[int, ...]) -> bytes:
  from resnet.tools.xla_plan.export import export_step  # TensorFlow is loaded late: mistakes are told at once.

  return export_step(case, filters)


def _fit_step(make: Callable, mode: str, arguments: dict) -> bytes:
  from resnet.tools.xla_plan.export import export_fit_step

  return export_fit_step(make(**arguments), FLAGS.batch, ordinary=mode == "ordinary")


def _whole_number(flag: str, text: str) -> int:
  if not text.isdigit():
    raise UserError(f"--{flag} must be whole numbers, got {text!r}")
  return int(text)


def _argument(text: str) -> tuple[str, object]:
  name, equals, value = text.partition("=")
  if not equals:
    raise UserError(f"--arguments must be NAME=VALUE,..., got {text!r}")
  try:
    return name, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return name, value


def _function_of(network: str) -> Callable:
  file, _, name = network.rpartition(":")
  if not pathlib.Path(file).is_file():
    raise UserError(f"--network must be FILE.py:FUNCTION, got {network!r}")
  if not callable(function := runpy.run_path(file).get(name)):
    raise UserError(f"--network: {file} has no function {name!r}")
  return function


if __name__ == "__main__":
  run(define_flags, main)
