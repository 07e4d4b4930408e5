"""Residual and reversible residual networks as Keras models."""

from resnet.models.model_factory import get_model
from resnet.models.resnet_model import ResNet
from resnet.models.revnet_model import RevNet

__all__ = ["ResNet", "RevNet", "get_model"]
