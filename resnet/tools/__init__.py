"""Programs beside training, each run as python -m resnet.tools.NAME."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # Before TensorFlow is loaded: warnings and worse only.
