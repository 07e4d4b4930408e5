"""Running a script's main function: a user's mistake ends in one line, not in a traceback."""

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

from resnet.utils.errors import UserError


def run(main: Callable[[], None]) -> None:
  """Parses the command line, then calls `main()`. Flags the script defines are set by then.

  A UserError, or a mistake in the flags, is printed as one line on standard error; the exit status is
  then 1.
  """
  logging.set_verbosity(logging.WARNING)  # TensorFlow reports its routine at the level of info.
  try:
    app.run(lambda _: main(), flags_parser=_parse)
  except UserError as error:
    _fail(error)


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
