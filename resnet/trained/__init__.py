"""Trained networks in use: their weights in one call, as classifiers of pictures, as SavedModels and for TFLite."""

from resnet.trained.classifier import Classifier
from resnet.trained.loading import load_classifier, pretrained_model

__all__ = ["Classifier", "load_classifier", "pretrained_model"]
