"""Configurations as the original code saved them, conf.json beside its checkpoints.

Most fields carry over by name. `OWN_FIELDS` are those that do not; any one of them marks a
configuration as the original's.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from resnet.configs import Config, get_config
from resnet.configs.config_factory import config_from_fields, config_names, errors_naming, read_fields
from resnet.utils.errors import UserError

# Fields of the original alone, and why nothing is lost by dropping them here.
_DROPPED = {
  "min_lrn_rate": "read nowhere in the original",
  "trainval_iter": "read nowhere in the original",
  "div255": "read nowhere in the original: CIFAR images are not divided by 255",
  "whiten": "read nowhere in the original: CIFAR images are not whitened",
  "data_aug": "read nowhere in the original: training images are always augmented",
  "prefetch": "read nowhere in the original; it would not change the batches",
}
# Fields of the original alone that name a choice. The networks here implement one value of each.
_FIXED = {
  "filter_initialization": ("'normal'", lambda value: value == "normal"),
  "lr_scheduler_type": ("'fixed'", lambda value: value == "fixed"),
  "relu_leakiness": ("0", lambda value: value in (0, False)),
  "activate_before_residual": (
    "true for the first stage and false for all others",
    lambda value: isinstance(value, list) and value[:1] == [True] and not any(value[1:]),
  ),
}
OWN_FIELDS = (*_DROPPED, *_FIXED)


def load_config(path: str | os.PathLike) -> Config:
  """The configuration at `path`, saved by `resnet.configs.save_config` or as conf.json by the original code.

  A file with any of `OWN_FIELDS` is the original's. Its name is that of the class it was derived from, often
  another network's. If a registered configuration has the same network, the result takes that one's name.

  Raises:
    UserError: no such file, not JSON, a field unknown, missing or impossible.

  Example:
    >>> save_config(get_config("revnet-38"), "conf.json")
    >>> load_config("conf.json").name
    'revnet-38'
  """
  fields = read_fields(path)
  with errors_naming(path):
    if not is_original(fields):
      return config_from_fields(fields)
    return _renamed(config_from_fields(from_original(fields)))


def is_original(fields: Mapping[str, Any]) -> bool:
  """Whether a configuration is in the original's form: it has a field that only the original knows."""
  return any(name in fields for name in OWN_FIELDS)


def from_original(fields: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a `Config` that mean what `fields` meant to the original code.

  Strides and filters beyond the last stage, which the original does not read, are cut. Fields that the original
  lacks get the values that its code implies, see `_implied`. Fields that neither code knows stay as they are.

  Raises:
    UserError: a choice that the networks here do not implement.
  """
  for name, (supported, is_supported) in _FIXED.items():
    if name in fields and not is_supported(fields[name]):
      raise UserError(f"{name} must be {supported}, got {fields[name]!r}")
  kept = {name: value for name, value in fields.items() if name not in OWN_FIELDS}
  kept = {**_implied(kept), **{name: value for name, value in kept.items() if value is not None}}
  stages = kept.get("num_residual_units")
  if isinstance(stages, list):
    for name, length in (("strides", len(stages)), ("filters", len(stages) + 1)):
      if isinstance(kept.get(name), list):
        kept[name] = kept[name][:length]
  return kept


def _implied(fields: Mapping[str, Any]) -> dict[str, Any]:
  """What the original's code does where its configuration is silent.

  Only its ImageNet configurations name a preprocessor. Its CIFAR script sets num_classes by --dataset,
  which is cifar-10 by default, evaluates in batches of 100, and on the held out images only on demand.
  """
  implied: dict[str, Any] = {"chain": "unrolled", "dtype": "float32", "run_validation": False, "seed": 1234}
  if fields.get("model_class") == "resnet":
    implied["manual_gradients"] = False
  if "preprocessor" in fields:
    return {**implied, "dataset": "imagenet"}
  dataset = "cifar-100" if fields.get("num_classes") == 100 else "cifar-10"
  return {**implied, "dataset": dataset, "num_classes": 10, "preprocessor": "cifar", "valid_batch_size": 100}


def _renamed(config: Config) -> Config:
  """`config`, under the name of the registered configuration of the same network if there is one."""
  same = [name for name in config_names() if _network(get_config(name)) == _network(config)]
  if not same or config.name in same:
    return config
  return dataclasses.replace(config, name=same[0])


def _network(config: Config) -> list[object]:
  """The fields that determine a network, but for the number of classes."""
  names = (
    "model_class height width num_channel num_residual_units filters strides use_bottleneck "
    "init_filter init_stride init_max_pool"
  )
  return [getattr(config, name) for name in names.split()]
