"""What the project says of itself in several places agrees."""

import re
import subprocess
import sys

import yaml
from helpers import ROOT
from test_import_directions import BELOW, imported

import resnet


def text_of(*path):
  return ROOT.joinpath(*path).read_text(encoding="utf-8")


def test_the_version_is_the_one_of_the_changelog_and_the_citation():
  assert re.search(r"^## (\d\S+)", text_of("CHANGELOG.md"), re.MULTILINE).group(1) == resnet.__version__
  assert yaml.safe_load(text_of("CITATION.cff"))["version"] == resnet.__version__


def test_the_python_versions_are_those_that_are_checked():
  promised = re.findall(r"Python :: (3\.\d+)", text_of("pyproject.toml"))
  jobs = yaml.safe_load(text_of(".github", "workflows", "check.yml"))["jobs"]
  assert jobs["check"]["strategy"]["matrix"]["python"] == promised
  assert f'requires-python = ">={promised[0]}"' in text_of("pyproject.toml")
  assert f"You need Python {promised[0]} to {promised[-1]}" in text_of("README.md")
  assert f"Python {promised[0]} or later is needed" in text_of("setup.sh")


def test_workflows_run_what_ci_runs():
  steps = [
    step["run"]
    for path in (ROOT / ".github" / "workflows").glob("*.yml")
    for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    for step in job["steps"]
    if "run" in step
  ]
  assert set(steps) == set(re.findall(r"^(?:\./|tests/)\w+\.sh$", text_of(".ci", "run"), re.MULTILINE))


def test_the_quick_check_finds_its_tests():
  command = [sys.executable, "-m", "pytest", "--collect-only", "@tests/quick.txt"]
  process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert process.returncode == 0, process.stdout


def test_the_quick_check_touches_every_package():
  modules = {line.partition("::")[0] for line in text_of("tests", "quick.txt").splitlines()}
  touched = {
    module.split(".")[1] for path in modules for module in imported(ROOT / path) if "resnet." in module
  }
  assert set(BELOW) - {"training_flags"} <= touched
