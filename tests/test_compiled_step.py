"""What XLA makes of a training step: recomputation survives, and memory does not grow with depth."""

import json
import os

import pytest
from helpers import ROOT, start

from resnet.utils.xla import heed_memory_on_a_cpu


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
  """mode -> units of the stage -> (convolutions, bytes of temporary memory)."""
  dump = tmp_path_factory.mktemp("dump")
  flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"  # XLA reads its flags once: hence a process.
  process = start(
    "tests/compiled_step.py", str(dump), "1", "4,6", cwd=dump, PYTHONPATH=str(ROOT), XLA_FLAGS=flags
  )
  assert process.returncode == 0, process.stderr
  return {
    mode: {int(units): tuple(numbers) for units, numbers in by_units.items()}
    for mode, by_units in json.loads(process.stdout).items()
  }


def test_every_function_of_the_chain_is_computed_again(steps):
  more = {mode: steps[mode][6][0] - steps[mode][4][0] for mode in steps}
  # Two units more are eight convolutions more, each of which takes two more in the backward pass.
  assert more == {"ordinary": 3 * 8, "unrolled": 4 * 8, "while_loop": 0}


def test_memory_of_the_chain_does_not_grow_with_depth(steps):
  growth = {mode: steps[mode][6][1] / steps[mode][4][1] for mode in steps}
  assert growth["ordinary"] > 1.3
  assert growth["unrolled"] < 1.05
  assert growth["while_loop"] < 1.05
  assert steps["unrolled"][6][1] < 0.8 * steps["ordinary"][6][1]


def test_a_choice_of_one_s_own_is_left_alone(monkeypatch):
  chosen = "--xla_cpu_enable_concurrency_optimized_scheduler=true"
  for given, expected in [
    ("", chosen.replace("true", "false")),
    ("--xla_other=1", f"{chosen.replace('true', 'false')} --xla_other=1"),
    (chosen, chosen),
  ]:
    monkeypatch.setenv("XLA_FLAGS", given)
    heed_memory_on_a_cpu()
    assert os.environ["XLA_FLAGS"] == expected
