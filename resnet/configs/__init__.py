"""Model and training configurations, by name or from a JSON file."""

from resnet.configs import cifar_configs, imagenet_configs, tiny_configs  # noqa: F401 (they register themselves)
from resnet.configs.config import Config
from resnet.configs.config_factory import (
  get_config,
  get_config_from_json,
  override_config,
  save_config,
)

__all__ = ["Config", "get_config", "get_config_from_json", "override_config", "save_config"]
