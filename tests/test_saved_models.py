"""Models saved by version 0.1 load, and give what they gave then.

The files were written by `Model.save` of version 0.1: a RevNet of two stages of two bottleneck units, and a
functional model around a chain of dense layers.
"""

import keras
import numpy as np
import pytest
from helpers import ROOT

import resnet.models  # noqa: F401  Registers the classes.

FOLDER = ROOT / "tests" / "saved_models"


@pytest.mark.parametrize("name", ["revnet-0.1", "chain-0.1"])
def test_models_saved_by_version_0_1_load(name):
  expected = np.load(FOLDER / "expected.npz")
  model = keras.models.load_model(FOLDER / f"{name}.keras")
  np.testing.assert_allclose(model(expected[f"{name}/x"]), expected[f"{name}/y"], rtol=1e-5, atol=1e-6)
