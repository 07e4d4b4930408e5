"""Pictures: matplotlib, which nothing else of the package needs, and what all pictures have in common."""

import importlib.util
from typing import Any

from resnet.utils.errors import UserError

# Colours that differ in lightness and for the colour-blind too (Okabe and Ito 2008).
BLACK, ORANGE, GREEN, BLUE, VERMILION, PINK = "#000000", "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
COLORS = (BLACK, BLUE, ORANGE, GREEN, PINK, VERMILION)


def require_matplotlib() -> None:
  """Raises a UserError if matplotlib is not installed."""
  if importlib.util.find_spec("matplotlib") is None:
    raise UserError("pictures are drawn by matplotlib, which is not installed: pip install matplotlib")


def new_figure(figsize: tuple[float, float]) -> Any:
  """An empty `matplotlib.figure.Figure` of this width and height in inches, whose parts do not overlap.

  Raises:
    UserError: matplotlib is not installed.
  """
  require_matplotlib()
  from matplotlib.figure import Figure

  return Figure(figsize=figsize, layout="constrained")
