"""Running a script's main function: a user's mistake ends in one line, not in a traceback."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

import tensorflow as tf
from absl import app, flags, logging

from resnet.utils.errors import UserError


def define_training_flags(models: str, results: str, num_gpu: int | None) -> None:
  """Defines the flags that training scripts have in common.

  Args:
    models: where the names of models are listed.
    results: default of --results.
    num_gpu: default of --num_gpu; None for all.
  """
  flags.DEFINE_string("model", None, f"Model: one of {models}.")
  flags.DEFINE_string("config", None, "JSON file of a configuration, instead of --model.")
  flags.DEFINE_string("id", None, "Experiment ID. Default: a new one.")
  flags.DEFINE_string("results", results, "Folder of configurations and checkpoints, by experiment ID.")
  flags.DEFINE_string("logs", "./logs/public", "Folder of the training curves, by experiment ID.")
  flags.DEFINE_bool("restore", False, "Continue the experiment of --id from its newest checkpoint.")
  flags.DEFINE_integer("max_num_steps", -1, "Take at most so many steps in this run; -1: no limit.")
  flags.DEFINE_integer(
    "num_gpu", num_gpu, "Number of GPUs of each machine; all if not given; 0: the CPU.", lower_bound=0
  )
  flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "What the residual functions compute in; streams and weights are float32. Default: the configuration's.",
  )
  flags.DEFINE_bool("jit", False, "Compile forward and backward pass by XLA.")
  flags.DEFINE_bool(
    "monitor_reconstruction", False, "Log how well a RevNet's activations are rebuilt; warn when they are not."
  )
  flags.DEFINE_multi_string(
    "override", [], "field=value: a field of the configuration to change, in this run. Repeatable."
  )


def run(main: Callable[[], None]) -> None:
  """Parses the command line, then calls `main()`. Flags the script defines are set by then.

  A UserError, or a mistake in the flags, is printed as one line on standard error, and so is a file that cannot
  be read or written and a memory that is too small; the exit status is then 1. Any other error is the
  program's own fault, and keeps its traceback.
  """
  logging.set_verbosity(logging.WARNING)  # TensorFlow reports its routine at the level of info.
  try:
    app.run(lambda _: main(), flags_parser=_parse)
  except UserError as error:
    _fail(error)
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
  except (tf.errors.ResourceExhaustedError, MemoryError) as error:
    reason = (str(error).strip() or "out of memory").splitlines()[0]
    _fail(f"memory or disk is full; for memory, lower batch_size ({reason})")
  except Exception as error:
    if isinstance(error, OSError) and error.strerror:
      _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    traceback.print_exc()
    _fail("this is a fault of the program: please report it, with the lines above and the command")


def _parse(argv: list[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    _fail(error)
  if rest[1:]:
    _fail(f"unexpected argument {rest[1]!r}; flags are written --name=value or --name value")
  return rest


def _fail(error: object) -> None:
  message = " ".join(str(error).split())
  sys.exit(f"{os.path.basename(sys.argv[0])}: error: {message}")
