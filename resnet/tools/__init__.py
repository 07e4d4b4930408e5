"""Programs beside training, each run as python -m resnet.tools.NAME; figures.py is what two of them share."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # Before TensorFlow is loaded: warnings and worse only.
