"""Trained networks in use: weights in one call, classifiers of pictures, SavedModels, TFLite."""

from resnet.trained.classifier import Classifier
from resnet.trained.loading import load_classifier, pretrained_model

__all__ = ["Classifier", "load_classifier", "pretrained_model"]
