"""What a run shows while it trains: lines, in a log as on a terminal, and there a bar below them."""

import contextlib
import datetime
import sys
import time
from collections.abc import Iterable, Iterator, Mapping

import tqdm

from resnet.configs.config import Config
from resnet.training.lr_schedule import learning_rate

SILENCE = 300  # seconds, after which there is a line in any case where no bar is shown


class Progress:
  """Shows how far a run is, and how fast its training steps are.

  The speed is that of the steps since the last line. Compiling, evaluations and saves are not counted.

  Args:
    config: of the run.
    num_examples: to train on; so many are an epoch.
    start: the step that the run starts from.
    stop: its last step.
    curves: those of the accuracies that are measured.
    shows: False for a process that shows nothing.
  """

  def __init__(
    self, config: Config, num_examples: int, start: int, stop: int, curves: Iterable[str], shows: bool = True
  ):
    self._config = config
    self._num_examples = num_examples
    self._stop = stop
    self._labels = {curve: _label(curve, config) for curve in curves}
    self._shows = shows
    self._has_bar = shows and sys.stderr.isatty()
    self._bar = tqdm.tqdm(
      initial=start, total=stop, desc=config.name, mininterval=1, leave=False, disable=not self._has_bar
    )
    self._compiles = True
    self._steps = 0  # since the last line
    self._seconds = 0.0  # that they took
    self._seconds_per_step: float | None = None
    self._seconds_per_evaluation = 0.0
    self._mark = self._known = self._last_line = time.monotonic()

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.close()

  def begin_step(self) -> None:
    """To be called before each step."""
    if self._compiles and not self._steps:
      self.write("compiling ...")
      self._mark = time.monotonic()

  def end_step(self) -> bool:
    """To be called when a step is on its way. Returns whether its loss is wanted."""
    self._steps += 1
    return bool(self._bar.update()) or self._compiles or self.is_silent()

  @contextlib.contextmanager
  def known_loss(self, loss: float) -> Iterator[None]:
    """To be entered when a step's loss is known, and so all steps up to it are done, for what follows the step.

    Its time is not that of a step. Where `line` is called with accuracies, they are what took it.
    """
    self._known = now = time.monotonic()
    if self._compiles:
      self.write(f"compiled, and took the first step, in {now - self._mark:.0f} s")
      self._compiles, self._steps = False, 0
    else:
      self._seconds += now - self._mark
      self._seconds_per_step = self._seconds / self._steps
    self._bar.set_postfix_str(f"loss={loss:.3f}, {self._speed()}", refresh=False)
    with self.pause():
      yield

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """To be entered for what is no step."""
    yield
    self._mark = time.monotonic()

  def is_silent(self) -> bool:
    """Whether nothing has been shown for long."""
    return not self._has_bar and time.monotonic() - self._last_line > SILENCE

  def line(self, step: int, loss: float, accuracies: Mapping[str, float]) -> None:
    """Shows the state after `step`. An accuracy that was not measured then is shown as a dash."""
    if accuracies:
      self._seconds_per_evaluation = time.monotonic() - self._known
    width = len(f"{self._stop}")
    words = [
      f"step {step:{width}}/{self._stop}",
      f"epoch {step * self._config.batch_size / self._num_examples:6.2f}",
      f"loss {loss:.4f}",
    ]
    for curve, label in self._labels.items():
      words.append(f"{label} {100 * accuracies[curve]:5.2f} %" if curve in accuracies else f"{label}    -   ")
    words += [
      f"rate {learning_rate(self._config, step):<7g}",
      f"{self._speed():>15}",
      f"{self._left(step)} left",
    ]
    self.write("  ".join(words))
    self._steps, self._seconds, self._last_line = 0, 0.0, time.monotonic()

  def write(self, text: str) -> None:
    """Shows a line. One that cannot be written, since the disk of the log is full, is no reason to stop."""
    if self._shows:
      with contextlib.suppress(OSError):
        tqdm.tqdm.write(text)  # Above the bar, if there is one.
        sys.stdout.flush()

  def _speed(self) -> str:
    if not self._seconds_per_step:
      return "- images/s"
    speed = self._config.batch_size / self._seconds_per_step
    return f"{speed:,.0f} images/s" if speed >= 100 else f"{speed:.1f} images/s"

  def _left(self, step: int) -> str:
    """The time that the rest of the run will take, evaluations included."""
    if self._seconds_per_step is None:
      return "-"
    every = self._config.valid_iter
    # The last step is evaluated in any case.
    evaluations = -(-self._stop // every) - step // every if self._labels and step < self._stop else 0
    seconds = (self._stop - step) * self._seconds_per_step + evaluations * self._seconds_per_evaluation
    return str(datetime.timedelta(seconds=round(seconds)))


def _label(curve: str, config: Config) -> str:
  evaluated = "validation" if config.run_validation else "test"
  return {"train_acc": "train acc", "valid_acc": f"{evaluated} acc"}.get(curve, curve)
