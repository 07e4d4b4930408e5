"""The program that compares manual gradients to ordinary ones."""

import re

import numpy as np
import pytest

from resnet.tools.gradient_angles import angle


def test_angles():
  assert angle(np.array([1.0, 0]), np.array([1.0, 1])) == pytest.approx(45)
  assert angle(np.zeros(2), np.zeros(2)) == 0


def test_a_grid_makes_gradients_equal(run_script, capsys):
  arguments = ["--model=revnet-38", "--batch=4", "--chain=unrolled", "--dtype=float32"]
  assert not run_script("resnet/tools/gradient_angles.py", *arguments)
  lines = capsys.readouterr().out.splitlines()
  found = [
    re.findall(r"grid_bits (\d+), unrolled: angle .* degrees, (\S+) % of gradients", line)[0] for line in lines
  ]
  assert [bits for bits, _ in found] == ["0", "14"]
  assert float(found[0][1]) < 90  # Units that keep their streams are rebuilt exactly without a grid, too.
  assert float(found[1][1]) == 100


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--model=resnet-32", "must be a RevNet for CIFAR, got resnet-32"),
    ("--grid_bits=x", "whole numbers, got 'x'"),
  ],
)
def test_mistakes_are_one_line(run_script, flag, message):
  assert message in run_script("resnet/tools/gradient_angles.py", flag)
