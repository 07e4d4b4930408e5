"""tests/gpu_check.py still fits the code: on a CPU, with small networks."""

import json
import sys
import time

import gpu_check
import pytest
from helpers import ROOT

from resnet.tools.benchmark.report import Case
from resnet.tools.benchmark.worker import config_of

STEP = {"model": "revnet-test", "batch": 2, "units": None, "dtype": "float32", "jit": False}


def lines_of(capsys):
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def run_wave(tmp_path, monkeypatch, capsys):
  """A function that runs cases in processes of their own, and returns the lines that are printed."""
  monkeypatch.setenv("PYTHONPATH", str(ROOT))

  def run(cases, seconds):
    gpu_check.run_wave("some-0", cases, time.monotonic() + seconds, tmp_path)
    return lines_of(capsys)

  return run


def test_a_step_in_a_process_of_its_own(run_wave):
  case = {"do": "step", **STEP, "mode": "unrolled", "activation_memory": "least"}
  (line,) = run_wave([case], 300)
  assert (line["wave"], line["case"]) == ("some-0", case)
  times = line["result"]["step_ms"]
  assert 0 < times["min"] <= times["median"] <= times["max"]
  assert times["ten_in_a_row"] > 0
  assert line["result"]["first_s"] > 0
  assert line["result"]["peak_mb"] > 0


def test_processes_that_fail_or_outlast_the_budget_are_reported(run_wave, monkeypatch, tmp_path):
  program = tmp_path / "program.py"
  program.write_text(
    "import json, sys, time\n"
    "case = json.loads(sys.argv[2])\n"
    "if case['do'] == 'fail':\n"
    "  sys.exit('last words')\n"
    "if case['do'] == 'measure':\n"
    "  print('\"ready\"', flush=True)\n"
    "time.sleep(600)\n"
  )
  monkeypatch.setattr(gpu_check, "__file__", str(program))
  (line,) = run_wave([{"do": "fail"}], 300)
  assert line["result"] == {"error": 1, "log": "last words "}
  # The first is killed while it waits for its turn, the second while it gets ready.
  lines = run_wave([{"do": "measure"}, {"do": "compile"}], 1)
  assert {line["case"]["do"]: line["result"]["error"] for line in lines} == {"measure": -9, "compile": -9}


def test_gradients():
  results = list(
    gpu_check.compare_gradients("revnet-test", "float32", tf32=True, grid_bits=14, deterministic=True)
  )
  assert [result["chain"] for result in results] == ["unrolled", "while_loop"]
  for result in results:
    assert result["degrees"] == [0, 0, 0]
    assert result["equal"] == 1
    assert set(result["reconstruction_error"]) == {0}


def test_the_installation():
  gpus, versions, *compared = gpu_check.check_installation()
  assert {"gpus", "tensorflow", "keras", "numpy", "python"} == set(gpus | versions)
  for result, jit in zip(compared, (False, True), strict=True):
    assert result["jit"] == jit
    assert max(result["relative_errors"].values()) < 1e-2  # TensorFloat-32 on a GPU.


@pytest.mark.parametrize("small", [False, True])
def test_every_case_is_one_that_can_be_run(small):
  cases = [case for wave in gpu_check.make_waves(small).values() for case in wave]
  assert {case["do"] for case in cases} == {"info", "step", "report", "gradients", "exact", "grid"}
  for case in cases:
    if case["do"] == "step":
      fields = {name: value for name, value in case.items() if name != "do"}
      units = fields["units"] or (2, 2, 2, 2)
      assert config_of(Case(**{**fields, "units": units})).name == case["model"]


def test_unknown_waves_are_refused(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--waves=info,wrong"])
  with pytest.raises(SystemExit):
    gpu_check.main()
  assert "--waves has wrong; there are info, cifar" in capsys.readouterr().err
