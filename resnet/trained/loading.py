"""From an experiment, or a checkpoint of the original code, to a network with its weights."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import keras
import numpy as np

from resnet.configs.config import Config
from resnet.data import get_dataset
from resnet.data.class_names import known_class_names
from resnet.data.preprocessing import Preprocessing
from resnet.experiments.experiment import Experiment
from resnet.models import get_model
from resnet.original.checkpoint import load_tf1_checkpoint
from resnet.trained.classifier import Classifier
from resnet.training.checkpoint import Checkpoints
from resnet.utils.errors import UserError


def pretrained_model(
  source: str | os.PathLike, config: Config | None = None, include_top: bool = True, step: int | None = None
) -> keras.Model:
  """A network with the weights and moving statistics of a training.

  Args:
    source: an experiment's folder; or, with `config`, a checkpoint of the original code: its prefix, its
      folder, or a .tar.gz of it.
    config: of the original's network; None for an experiment, which has its own.
    include_top: see `resnet.models.get_model`.
    step: of the experiment's checkpoint; None for the newest.

  Raises:
    UserError: no such experiment or checkpoint, a damaged one, or one that does not fit.

  Example:
    >>> model, optimizer = get_model(get_config("revnet-38")), Momentum()
    >>> optimizer.build(model.trainable_variables)
    >>> save_tf1_checkpoint(model, optimizer, "exported")
    >>> backbone = pretrained_model("exported/model.ckpt-0", get_config("revnet-38"), include_top=False)
    >>> backbone(np.zeros([2, 32, 32, 3])).shape
    TensorShape([2, 8, 8, 112])

    Of an experiment: `pretrained_model("results/cifar/EXPERIMENT", include_top=False)`.
  """
  if config is None:
    folder = pathlib.Path(source)
    config = _experiment_in(folder).load_config()
    network = get_model(config)
    Checkpoints(folder, network).restore(step)
  else:
    network = get_model(config)
    load_tf1_checkpoint(network, source)
  if include_top:
    return network
  backbone = get_model(config, include_top=False)
  values = {variable.path: variable for variable in network.variables}
  for variable in backbone.variables:
    variable.assign(values[variable.path])
  return backbone


def load_classifier(
  source: str | os.PathLike,
  config: Config | None = None,
  step: int | None = None,
  data_dir: str | os.PathLike | None = None,
) -> Classifier:
  """The network of `pretrained_model`, with the preprocessing of its evaluation and the names of its classes.

  Args:
    source, config, step: as of `pretrained_model`.
    data_dir: see `preprocessing_of`.

  Raises:
    UserError: as `pretrained_model`; or the mean of the training images is neither in the experiment's folder
      nor to be had from data_dir.

  Example:
    >>> import dataclasses
    >>> config = dataclasses.replace(get_config("revnet-38"), dataset="digits")
    >>> model, optimizer = get_model(config), Momentum()
    >>> optimizer.build(model.trainable_variables)
    >>> save_tf1_checkpoint(model, optimizer, "exported")
    >>> classifier = load_classifier("exported/model.ckpt-0", config)
    >>> classifier.serve(np.zeros([2, 50, 40, 3], "uint8"))["probabilities"].shape
    TensorShape([2, 10])
  """
  model = pretrained_model(source, config, step=step)
  folder = pathlib.Path(source) if config is None else None
  return Classifier(
    model, preprocessing_of(model.config, folder, data_dir), class_names_of(model.config, folder)
  )


def preprocessing_of(
  config: Config, folder: pathlib.Path | None, data_dir: str | os.PathLike | None
) -> Preprocessing:
  """The preprocessing of a network's evaluation.

  Args:
    config: of the network.
    folder: of the experiment, or None.
    data_dir: the folder of the data set, by default "data". Only networks of small images need it, and only if
      `folder` has no mean_image.npy: those imported from the original, or trained by version 0.1.

  Raises:
    UserError: mean_image.npy is not one of this network, or the training images are not there.
  """
  if config.dataset == "imagenet":
    return Preprocessing(config, mean_image=None)
  file = None if folder is None else _experiment_in(folder).mean_image_file
  if file is None or not file.exists():
    with _naming("the mean of the training images is needed"):
      return get_dataset(config, "data" if data_dir is None else data_dir, "train").preprocessing
  shape = (config.height, config.width, config.num_channel)
  try:
    mean_image = np.load(file, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f"{file} is damaged or cannot be read: {error}") from error
  if mean_image.shape != shape or not np.issubdtype(mean_image.dtype, np.floating):
    raise UserError(f"{file} must have the shape {shape}, in float, got {mean_image.shape} {mean_image.dtype}")
  return Preprocessing(config, mean_image)


def class_names_of(config: Config, folder: pathlib.Path | None) -> list[str]:
  """The names in the experiment's class_names.txt, or else those of the data set, or numbers.

  Raises:
    UserError: the file cannot be read, or has not a name for each class.
  """
  experiment = None if folder is None else _experiment_in(folder)
  if experiment is None or (names := experiment.load_class_names()) is None:
    return known_class_names(config)
  if len(names) != config.num_classes:
    raise UserError(
      f"{experiment.class_names_file} must have {config.num_classes} lines, a name for each class, "
      f"got {len(names)}"
    )
  # Names of folders need not be UTF-8, but servers answer in it.
  return [name.encode(errors="surrogateescape").decode(errors="replace") for name in names]


def _experiment_in(folder: pathlib.Path) -> Experiment:
  return Experiment(folder.name, folder, logs_folder=folder)


@contextlib.contextmanager
def _naming(need: str) -> Iterator[None]:
  try:
    yield
  except UserError as error:
    raise UserError(f"{need}, and {error}") from error
