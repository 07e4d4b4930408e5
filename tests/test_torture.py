"""The short form of tests/torture.py: every part of it, a few times."""

import os

from helpers import ROOT, start


def test_nothing_happens_that_is_not_allowed(tmp_path):
  parts = ["kills", "signals", "disks", "mutations", "soak"]
  sizes = ["--number=1", "--mutations=30", "--steps=20", "--processes=1"]
  paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
  process = start("tests/torture.py", *parts, *sizes, cwd=tmp_path, PYTHONPATH=paths)
  assert process.returncode == 0, process.stdout + process.stderr
  for outcome in (
    "SIGKILL: 1 killed",
    "full disks: 1 ended bit-identical",
    "UserError",
    "resident memory by quarters",
  ):
    assert outcome in process.stdout, process.stdout
