"""Devices and determinism, before any test touches TensorFlow."""

import os
import runpy
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf
from helpers import ROOT, fresh_flags

# Two logical devices on the one CPU, so that data parallelism can be tested without GPUs.
tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.config.experimental.enable_op_determinism()


@pytest.fixture(autouse=True)
def seed():
  """The same initial weights in every run, whichever tests came before."""
  keras.utils.set_random_seed(1)


@pytest.fixture
def run_script(tmp_path, monkeypatch, capsys):
  """A function that runs a script in this process, and returns its exit code or error message."""
  monkeypatch.chdir(tmp_path)

  def run_in_process(script, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    handler = signal.getsignal(signal.SIGINT)
    with fresh_flags(), pytest.raises(SystemExit) as exit_info:
      runpy.run_path(str(ROOT / script), run_name="__main__")
    signal.signal(signal.SIGINT, handler)
    return exit_info.value.code

  return run_in_process


@pytest.fixture
def run_module(tmp_path, monkeypatch):
  """A function that runs a tool's `cli()` in this process, and returns its exit code or error message."""
  monkeypatch.chdir(tmp_path)

  def run_in_process(module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__file__, *arguments])
    with fresh_flags(), pytest.raises(SystemExit) as exit_info:
      module.cli()
    return exit_info.value.code

  return run_in_process
