"""The one exception that the run scripts turn into a line, and the line that other errors come down to."""

import re


class UserError(ValueError):
  """A mistake in the user's input: one line that names the value and what would be right."""


# What TensorFlow's messages have around the reason: the operation's place in the graph and in the program.
_AROUND = re.compile(r"{{.*?}}\s*|\[\[.*?\]\]|\s*\[Op:.*")
_BEFORE = re.compile(r"Graph execution error:|Detected at node |<stack traces unavailable>| *File \"|    ")


def reason_of(error: BaseException) -> str:
  """The first line of an error's message that says what is wrong; its name if none does."""
  lines = [_AROUND.sub("", line).strip() for line in str(error).splitlines() if not _BEFORE.match(line)]
  return next(filter(None, lines), type(error).__name__)
