"""The API reference: it shows every public name, and each has an example that runs."""

import doctest
import importlib
import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT

PACKAGES = {
  name: importlib.import_module(f"resnet.{name}")
  for name in ("reversible", "models", "configs", "data", "trained")
}


def shown(page):
  """The objects that a page of the reference shows, by name."""
  text = (ROOT / "docs" / "api" / f"{page}.md").read_text(encoding="utf-8")
  (current,) = re.findall(r"^\.\. currentmodule:: (.*)$", text, re.MULTILINE) or [""]
  paths = re.findall(r"^\.\. auto(?:function|class):: (.*)$", text, re.MULTILINE)
  split = [path.rpartition(".") for path in paths]
  return {name: getattr(importlib.import_module(module or current), name) for module, _, name in split}


PUBLIC = {name: value for page in (*PACKAGES, "training") for name, value in shown(page).items()}

# What examples take as given.
GIVEN = {"keras": keras, "np": np, "tf": tf, **PUBLIC}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_shows_what_a_package_exports(package):
  assert set(PACKAGES[package].__all__) <= set(shown(package))


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - {"Dataset"}))
def test_the_example_runs(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  example = doctest.DocTestParser().get_doctest(
    inspect.getdoc(PUBLIC[name]), {**GIVEN, "__name__": "example"}, name, None, None
  )
  assert example.examples, "there is none"
  printed: list[str] = []
  result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=printed.append)
  assert not result.failed, "".join(printed)
