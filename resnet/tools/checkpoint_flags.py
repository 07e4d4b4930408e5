"""The flags that name a checkpoint of the original code, and the network that it is of."""

import dataclasses
from typing import Protocol

from absl import flags

from resnet.configs import get_config, override_config
from resnet.configs.config import NUM_CLASSES, Config
from resnet.original.config_file import load_config
from resnet.utils.errors import UserError


class CheckpointFlags(Protocol):
  """The flags that choose the configuration of a checkpoint; None is a flag not given."""

  model: str | None
  config: str | None
  dataset: str | None
  override: list[str]


def define_checkpoint_flags() -> None:
  """Defines --checkpoint, and the flags of `config_of_checkpoint`."""
  flags.DEFINE_string(
    "checkpoint", None, "Checkpoint of the original code: its prefix, its folder, or a .tar.gz of it."
  )
  flags.DEFINE_string("model", None, "Model that it is of: one of resnet/configs.")
  flags.DEFINE_string("config", None, "JSON file of its configuration, instead of --model.")
  flags.DEFINE_enum("dataset", None, list(NUM_CLASSES), "Dataset. Default: the configuration's.")
  flags.DEFINE_multi_string("override", [], "field=value: a field of the configuration to change. Repeatable.")


def config_of_checkpoint(values: CheckpointFlags) -> Config:
  """The configuration that the flags choose.

  Raises:
    UserError: none or two are chosen, or it is impossible.
  """
  if (values.model is None) == (values.config is None):
    raise UserError("one of --model and --config must be given: what the checkpoint is of")
  config = get_config(values.model) if values.model else load_config(values.config or "")
  if values.dataset:
    config = dataclasses.replace(config, dataset=values.dataset, num_classes=NUM_CLASSES[values.dataset])
  return override_config(config, values.override)
