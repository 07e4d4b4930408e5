"""Running a script's main function: a user's mistake ends in one line, not in a traceback."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging

from resnet.utils.errors import UserError, reason_of


def run(define_flags: Callable[[], None], main: Callable[..., None], takes_arguments: bool = False) -> None:
  """Defines a script's flags, parses the command line, and calls `main()`.

  With `takes_arguments` it calls `main(arguments)` with the list of arguments that are not flags; without, such
  an argument is a mistake.

  A UserError, a mistake in the flags, a file that cannot be read or written, and too little memory are each
  printed as one line on standard error; the exit status is then 1. Any other error is a fault of the program
  and keeps its traceback.
  """
  logging.set_verbosity(logging.WARNING)  # TensorFlow reports its routine at the level of info.
  others = set(flags.FLAGS)
  define_flags()
  for name in (
    set(flags.FLAGS) - others
  ):  # --help shows those of the started program, wherever they are defined.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
  sys.modules["__main__"].__doc__ = sys.modules[define_flags.__module__].__doc__  # It shows that, too.
  try:
    app.run(
      lambda argv: main(argv[1:]) if takes_arguments else main(),
      flags_parser=lambda argv: _parse(argv, takes_arguments),
    )
  except UserError as error:
    _fail(error)
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
  except Exception as error:
    if _is_out_of_memory(error):
      _fail(f"memory or disk is full; for memory, lower batch_size ({reason_of(error)})")
    if isinstance(error, OSError) and error.strerror:
      _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    traceback.print_exc()
    _fail("this is a fault of the program: please report it, with the lines above and the command")


def _is_out_of_memory(error: Exception) -> bool:
  tensorflow = sys.modules.get("tensorflow")  # The benchmark's process must not load it.
  return isinstance(error, MemoryError) or (
    tensorflow is not None and isinstance(error, tensorflow.errors.ResourceExhaustedError)
  )


def _parse(argv: list[str], takes_arguments: bool) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    _fail(error)
  if rest[1:] and not takes_arguments:
    _fail(f"unexpected argument {rest[1]!r}; flags are written --name=value or --name value")
  return rest


def _fail(error: object) -> None:
  message = " ".join(str(error).split())
  program = sys.argv[0].removesuffix("/__main__.py")  # A tool that is a folder has the folder's name.
  sys.exit(f"{os.path.basename(program)}: error: {message}")
