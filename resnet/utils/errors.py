"""The one exception that the run scripts turn into a line on standard error."""


class UserError(ValueError):
  """A mistake in the user's input: one line that names the value and what would be right."""
