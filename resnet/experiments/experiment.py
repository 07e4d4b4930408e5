"""An experiment: a run's id, and its folders in the results and the logs."""

import contextlib
import dataclasses
import glob
import os
import pathlib
import re
import shlex
from collections.abc import Iterator, Sequence

import numpy as np

from resnet.configs import Config, get_config_from_json, save_config
from resnet.configs.config_factory import differences
from resnet.utils.errors import UserError

MAX_ID_BYTES = 200  # Names of files may have 255.


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The files of one run.

  Attributes:
    id: the name of the run.
    folder: {results}/{id}, of configuration and checkpoints.
    logs_folder: {logs}/{id}, of the curves.
    program: the words that start the program that works on it, e.g. python run_cifar_train.py.
    flags: those to give it each time, since they are not part of the configuration, e.g. --data_dir=images.
  """

  id: str
  folder: pathlib.Path
  logs_folder: pathlib.Path
  program: tuple[str, ...] = ()
  flags: tuple[str, ...] = ()

  @classmethod
  def named(cls, experiment_id: str, results: str, logs: str) -> "Experiment":
    """The experiment `experiment_id` under the folders `results` and `logs`; makes no folder.

    Raises:
      UserError: the name cannot be that of a folder, or is too long.
    """
    if experiment_id in ("", ".", "..") or "/" in experiment_id or not experiment_id.isprintable():
      raise UserError(f"an experiment's ID must be the name of a folder, without '/', got {experiment_id!r}")
    if len(experiment_id.encode()) > MAX_ID_BYTES:
      raise UserError(
        f"an experiment's ID must have at most {MAX_ID_BYTES} bytes, got {len(experiment_id.encode())}"
      )
    return cls(experiment_id, pathlib.Path(results, experiment_id), pathlib.Path(logs, experiment_id))

  @property
  def config_file(self) -> pathlib.Path:
    """{folder}/conf.json."""
    return self.folder / "conf.json"

  @property
  def class_names_file(self) -> pathlib.Path:
    """{folder}/class_names.txt: a name a line, in the order of the network's outputs."""
    return self.folder / "class_names.txt"

  def load_config(self) -> Config:
    """The configuration in force: that of the last run.

    Raises:
      UserError: no such experiment, or its conf.json is invalid.
    """
    if not self.config_file.is_file():
      elsewhere = sorted(self.folder.parent.parent.glob(f"*/{glob.escape(self.id)}/{self.config_file.name}"))
      hint = f"; there is one by --results {elsewhere[0].parent.parent}" if elsewhere else ""
      raise UserError(f"no experiment {self.id} in {self.folder.parent}: {self.config_file} is missing{hint}")
    return get_config_from_json(self.config_file)

  def earlier_configs(self) -> dict[int, pathlib.Path]:
    """The files {folder}/conf-{step}.json, by step: each has the configuration that was in force until then."""
    found = ((re.fullmatch(r"conf-(\d{1,18})\.json", path.name), path) for path in self.folder.glob("conf-*"))
    return {int(match[1]): path for match, path in sorted(found, key=lambda pair: pair[1]) if match}

  def change_config(self, config: Config, step: int) -> list[str]:
    """Puts `config` in force for the steps after `step`. Call it while holding the folder's lock.

    Another configuration that was in force up to there is kept as conf-{step}.json. Where the experiment goes
    back to a step before earlier changes, the files of these go: their steps are taken again.

    Returns:
      What differs from the last run.

    Raises:
      UserError: a file cannot be written.
    """
    later = {changed: path for changed, path in self.earlier_configs().items() if changed >= step}
    until_now = later[min(later)] if later else self.config_file
    changes = _changes(self.config_file, config)
    with _write_errors(self.folder):
      if _changes(until_now, config):
        kept = self.folder / f"conf-{step}.json"
        _copy(until_now, kept)
        later.pop(step, None)
      if changes or not self.config_file.is_file() or self.load_config() != config:
        save_config(config, self.config_file)
      for path in later.values():
        path.unlink()
    return changes

  def command(self, *more: str, restore: bool = True) -> str:
    """The command that continues the experiment, with the flags `more`; its flags alone without a `program`.

    With `restore` False it starts the experiment again, with the same configuration.
    """
    first = "--restore" if restore else f"--config={self.config_file}"
    return shlex.join([*self.program, first, f"--id={self.id}", *self.flags, *more])

  def how_to_continue(self) -> str:
    """`command` in words, which end with its flags."""
    flags = dataclasses.replace(self, program=()).command()
    return (
      f"{shlex.join(self.program)} will continue with {flags}" if self.program else f"continue with {flags}"
    )

  def require_new(self) -> None:
    """Refuses to write over an experiment with checkpoints; one that ended without any may start anew.

    Raises:
      UserError: the experiment has checkpoints.
    """
    if any(self.folder.glob("*.index")):
      raise UserError(
        f"experiment {self.id} exists in {self.folder.parent}; continue it with --restore, "
        "or choose another --id"
      )

  @property
  def mean_image_file(self) -> pathlib.Path:
    """{folder}/mean_image.npy: [height, width, 3] float, of the training images. ImageNet has none."""
    return self.folder / "mean_image.npy"

  def load_class_names(self) -> tuple[str, ...] | None:
    """The names of the classes, in the order of the network's outputs; None if the experiment has none.

    Raises:
      UserError: they cannot be read.
    """
    try:
      text = self.class_names_file.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
      return None
    except OSError as error:
      raise UserError(f"cannot read {self.class_names_file}: {error.strerror}") from error
    return tuple(text.removesuffix("\n").split("\n"))

  def require_classes(self, names: Sequence[str] | None) -> None:
    """Refuses data of other classes than those that the experiment was started with; None fits any.

    Raises:
      UserError: the names or their order differ.
    """
    trained = self.load_class_names()
    if trained is None or names is None or trained == tuple(names):
      return
    number = next(
      (number for number, pair in enumerate(zip(trained, names)) if pair[0] != pair[1]),
      min(len(trained), len(names)),
    )
    ours, theirs = (repr(of[number]) if number < len(of) else "none" for of in (trained, names))
    raise UserError(
      f"class {number} is {ours} in {self.class_names_file}, but {theirs} in the data; give the data that "
      f"experiment {self.id} was started with, or data of the same classes"
    )

  def create(self, config: Config, class_names: Sequence[str] | None = None) -> None:
    """Makes `folder`, with `config` and the classes' names in it. Call it while holding the folder's lock.

    Raises:
      UserError: the experiment has checkpoints already, or the folder cannot be written to.
    """
    self.require_new()
    with _write_errors(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)
      for path in self.earlier_configs().values():
        path.unlink()
      save_config(config, self.config_file)
      self.class_names_file.unlink(missing_ok=True)
      if class_names is not None:
        text = "".join(f"{name}\n" for name in class_names)
        self.class_names_file.write_text(text, encoding="utf-8", errors="surrogateescape")

  def save_mean_image(self, mean_image: np.ndarray) -> None:
    """Writes `mean_image_file`.

    Raises:
      UserError: the folder cannot be written to.
    """
    with _write_errors(self.folder):
      np.save(self.mean_image_file, mean_image.astype(np.float32))

  def make_logs_folder(self) -> None:
    """Makes `logs_folder`.

    Raises:
      UserError: the folder cannot be made.
    """
    with _write_errors(self.logs_folder):
      self.logs_folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _write_errors(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(f"cannot write to {error.filename or folder}: {error.strerror}") from error


def _changes(file: pathlib.Path, config: Config) -> list[str]:
  """What `config` has otherwise than the configuration in `file`."""
  if not file.is_file():
    return []
  try:
    return differences(get_config_from_json(file), config)
  except UserError as error:  # Damaged, and replaced by --config.
    return [str(error)]


def _copy(file: pathlib.Path, target: pathlib.Path) -> None:
  temporary = target.with_suffix(".json.tmp")
  temporary.write_bytes(file.read_bytes())
  os.replace(temporary, target)
