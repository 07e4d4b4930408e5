"""How an evaluation that watches an experiment tells the training which checkpoints it has yet to evaluate."""

import contextlib
from collections.abc import Iterable

from resnet.experiments.curves import read_curve
from resnet.experiments.experiment import Experiment

FILE = "watched"  # in the folder of the curves


def begin_watching(experiment: Experiment) -> None:
  """From now on checkpoints without a point in valid_acc.csv wait to be evaluated, until `end_watching`.

  So they do if the process that watches is killed, since it will be started again.
  """
  with contextlib.suppress(OSError):  # The curves cannot be written either, of which there is a warning.
    experiment.logs_folder.mkdir(parents=True, exist_ok=True)
    (experiment.logs_folder / FILE).touch()


def end_watching(experiment: Experiment) -> None:
  """All checkpoints are evaluated."""
  with contextlib.suppress(OSError):
    (experiment.logs_folder / FILE).unlink(missing_ok=True)


def to_be_evaluated(experiment: Experiment, steps: Iterable[int]) -> set[int]:
  """Those of `steps` whose checkpoints wait to be evaluated."""
  if not (experiment.logs_folder / FILE).exists():
    return set()
  return set(steps) - set(read_curve(experiment.logs_folder / "valid_acc.csv"))
