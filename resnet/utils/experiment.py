"""An experiment: a run's id, and its folders in the results and the logs."""

import contextlib
import dataclasses
import datetime
import pathlib
import random
from collections.abc import Iterator
from typing import Any, Protocol

from resnet.configs import get_config, get_config_from_json, override_config, save_config
from resnet.configs.config import NUM_CLASSES, Config
from resnet.utils.errors import UserError

MAX_ID_BYTES = 200  # Names of files may have 255.


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The files of one run.

  Attributes:
    id: its name.
    folder: {results}/{id}, where its configuration and checkpoints are.
    logs_folder: {logs}/{id}, where its curves are.
  """

  id: str
  folder: pathlib.Path
  logs_folder: pathlib.Path

  @classmethod
  def named(cls, experiment_id: str, results: str, logs: str) -> "Experiment":
    """The experiment `experiment_id` under the folders `results` and `logs`; makes nothing."""
    if experiment_id in ("", ".", "..") or "/" in experiment_id or not experiment_id.isprintable():
      raise UserError(f"--id must be the name of a folder, without '/', got {experiment_id!r}")
    if len(experiment_id.encode()) > MAX_ID_BYTES:
      raise UserError(f"--id must have at most {MAX_ID_BYTES} bytes, got {len(experiment_id.encode())}")
    return cls(experiment_id, pathlib.Path(results, experiment_id), pathlib.Path(logs, experiment_id))

  @property
  def config_file(self) -> pathlib.Path:
    return self.folder / "conf.json"

  def load_config(self) -> Config:
    """The configuration it was started with.

    Raises:
      UserError: no such experiment.
    """
    if not self.config_file.is_file():
      raise UserError(f"no experiment {self.id} in {self.folder.parent}: {self.config_file} is missing")
    return get_config_from_json(self.config_file)

  def require_new(self) -> None:
    """Refuses to write over an experiment with checkpoints; one that ended before its first may start anew.

    Raises:
      UserError: it has checkpoints.
    """
    if any(self.folder.glob("*.index")):
      raise UserError(
        f"experiment {self.id} exists in {self.folder.parent}; continue it with --restore, "
        "or choose another --id"
      )

  def create(self, config: Config) -> None:
    """Makes the folder of its results, with `config` in it. To be called with the folder locked.

    Raises:
      UserError: it has checkpoints already, or the folder cannot be written to.
    """
    self.require_new()
    with _write_errors(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)
      save_config(config, self.config_file)

  def make_logs_folder(self) -> None:
    """Makes the folder of its curves.

    Raises:
      UserError: it cannot be made.
    """
    with _write_errors(self.logs_folder):
      self.logs_folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _write_errors(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(f"cannot write to {error.filename or folder}: {error.strerror}") from error


class TrainingFlags(Protocol):
  """The flags of a run script that choose experiment and configuration; None is a flag not given."""

  id: str | None
  results: str
  logs: str
  restore: bool
  model: str | None
  config: str | None
  dtype: str | None
  override: list[str]


def open_experiment(
  flags: TrainingFlags, default_model: str, dataset: str | None = None, run_validation: bool | None = None
) -> tuple[Experiment, Config]:
  """The experiment and configuration that a run script's flags ask for.

  Args:
    flags: without an id it is a new experiment; with restore, the configuration is that which the
      experiment was started with, unless another is given.
    default_model: of a new experiment.
    dataset: instead of the configuration's; sets num_classes too. None leaves it.
    run_validation: instead of the configuration's. None leaves it.

  Raises:
    UserError: flags that contradict each other or the experiment, a configuration that cannot be.
  """
  if flags.restore and flags.id is None:
    raise UserError("--restore needs --id, the experiment to continue")
  chosen = [
    ("model", "name", flags.model),
    ("dataset", "dataset", dataset),
    ("validation", "run_validation", run_validation),
    ("dtype", "dtype", flags.dtype),
  ]
  if flags.config is not None:
    config = get_config_from_json(flags.config)
  elif flags.restore:
    config = Experiment.named(flags.id or "", flags.results, flags.logs).load_config()
    for flag, field, given in chosen:
      saved = getattr(config, field)
      if given not in (None, saved):
        raise UserError(f"--{flag} is {given}, but experiment {flags.id} was started with {saved}")
  else:
    config = get_config(default_model if flags.model is None else flags.model)
  fields: dict[str, Any] = {field: given for _, field, given in chosen[1:] if given is not None}
  if dataset is not None:
    fields["num_classes"] = NUM_CLASSES[dataset]
  config = override_config(dataclasses.replace(config, **fields), flags.override)
  name = flags.id if flags.id is not None else new_id(config.dataset, config.name)
  experiment = Experiment.named(name, flags.results, flags.logs)
  if not flags.restore:
    experiment.require_new()
  return experiment, config


def new_id(dataset: str, model: str) -> str:
  """A fresh id, e.g. exp_cifar-100_revnet-110_2017-05-19-12-30-00-123456-042."""
  now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S-%f")
  return f"exp_{dataset}_{model}_{now}-{random.SystemRandom().randrange(1000):03d}"
