"""Every public name has an example in its docstring, and it runs."""

import doctest
import importlib
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT

from resnet.training.optimizer import Momentum

PACKAGES = [importlib.import_module(f"resnet.{name}") for name in ("reversible", "models", "configs", "data")]
PUBLIC = {name: getattr(package, name) for package in PACKAGES for name in package.__all__}
for line in (ROOT / "docs" / "api" / "training.md").read_text(encoding="utf-8").splitlines():
  if line.startswith(".. autofunction:: "):
    module, _, name = line.split()[-1].rpartition(".")
    PUBLIC[name] = getattr(importlib.import_module(module), name)

# What examples take as given.
GIVEN = {"keras": keras, "np": np, "tf": tf, "Momentum": Momentum, **PUBLIC}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  example = doctest.DocTestParser().get_doctest(
    inspect.getdoc(PUBLIC[name]), {**GIVEN, "__name__": "example"}, name, None, None
  )
  assert example.examples, "there is none"
  printed: list[str] = []
  result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=printed.append)
  assert not result.failed, "".join(printed)
