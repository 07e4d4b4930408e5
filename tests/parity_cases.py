"""Five small networks that the original code was run on: see docs/fidelity.md."""

import dataclasses
import functools
import pathlib

import numpy as np

from resnet.configs.config import Config
from resnet.models import ResNet, get_model
from resnet.original.checkpoint import load_tf1_checkpoint
from resnet.original.config_file import load_config
from resnet.training.optimizer import Momentum

FOLDER = pathlib.Path(__file__).parent / "parity"
CASES = ("resnet-test", "revnet-test", "revnet-btl-test", "resnet-imagenet-tiny", "revnet-imagenet-tiny")


def case_config(case: str, **changes) -> Config:
  return dataclasses.replace(load_config(FOLDER / case / "conf.json"), **changes)


@functools.cache
def expected(case: str) -> dict[str, np.ndarray]:
  """What the original computed, by the names of expected.npz."""
  with np.load(FOLDER / case / "expected.npz") as file:
    return dict(file)


def restored(case: str, **changes) -> tuple[ResNet, Momentum]:
  """The network of `case` with the weights that the original started from, and its optimizer."""
  config = case_config(case, **changes)
  model, optimizer = get_model(config), Momentum(config.base_learn_rate, config.momentum)
  load_tf1_checkpoint(model, FOLDER / case, optimizer)
  return model, optimizer
