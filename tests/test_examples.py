"""The examples, each in short: they learn what they claim to."""

import re
import runpy

from helpers import ROOT

EXAMPLES = {path.stem: path for path in (ROOT / "examples").glob("*.py")}


def load(name):
  return runpy.run_path(str(EXAMPLES[name]))


def test_a_reversible_transformer_reads_digits():
  assert load("reversible_transformer")["main"](units=1, width=32, epochs=3) > 0.6  # By chance: 0.1.


def test_a_reversible_trunk_finds_the_ball():
  score = load("segmentation_3d")["main"](units=1, channels=8, count=60, epochs=5)
  assert score > 0.4  # By a threshold: 0.29.


def test_a_flow_is_likelier_than_a_gaussian(tmp_path, capsys):
  flow, gaussian = load("affine_flow")["main"](str(tmp_path / "moons.png"), units=3, width=32, steps=600)
  assert flow > gaussian + 0.3
  (truth,) = re.findall(r"truth (\S+)", capsys.readouterr().out)
  assert -1.05 < float(truth) < -0.95
  assert (tmp_path / "moons.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_an_i_revnet_reads_digits():
  assert load("irevnet")["main"](units=1, epochs=15) > 0.8  # By chance: 0.1.


def test_a_momentum_network_tells_spirals_apart():
  accuracy, error = load("momentum_resnet")["main"](units=10, epochs=15)
  assert accuracy > 0.8  # By chance: 0.5.
  assert 0 < error < 1e-4


def test_an_exact_chain_rebuilds_every_bit():
  measure = load("exact_chain")["measure"]
  assert measure(3, "mixed_bfloat16", False, 14) == (1, 0, 0, 1)
  same, *_, equal = measure(3, "float32", False, None)
  assert same < 0.5
  assert equal < 0.5
