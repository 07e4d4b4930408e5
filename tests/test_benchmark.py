"""The benchmark: its numbers and its processes, with measurements that are made up, and once as a whole."""

import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest
import tensorflow as tf
from helpers import assert_close, make_batch, values

from resnet.tools.benchmark import __main__ as benchmark
from resnet.tools.benchmark import measure as measuring
from resnet.tools.benchmark.largest_batch import largest_batch
from resnet.tools.benchmark.measure import measure
from resnet.tools.benchmark.pictures import plot
from resnet.tools.benchmark.report import MODES, Case, Result, summarize, table
from resnet.tools.benchmark.worker import config_of, model_of
from resnet.training.step import loss_and_gradients
from resnet.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"

# Answers like the worker. Mode recompute is refused, unrolled is killed when it should take steps, and
# while_loop interrupts the benchmark then.
FAKE_WORKER = """
import json, os, signal, sys
case = json.loads(sys.stdin.readline())
if case["mode"] == "recompute":
  print(json.dumps({"error": "ResourceExhaustedError: out of memory"}), flush=True)
print(json.dumps({"seconds": 5.0, "peak_bytes": os.getpid(), "gpu": None, "tensorflow": "2"}), flush=True)
for line in sys.stdin:
  if case["mode"] == "unrolled":
    os.kill(os.getpid(), signal.SIGKILL)
  if case["mode"] == "while_loop":
    os.kill(os.getppid(), signal.SIGINT)
    signal.pause()
  print(json.dumps({"seconds": 0.5 * json.loads(line)["steps"], "peak_bytes": os.getpid()}), flush=True)
"""


@pytest.fixture
def fake_worker(monkeypatch):
  monkeypatch.setattr(measuring, "WORKER", [sys.executable, "-c", FAKE_WORKER])


@pytest.fixture
def run_benchmark(run_module):
  """A function that runs the tool in this process, and returns its exit status or message."""
  return functools.partial(run_module, benchmark, "--output=out")


def made_up(mode, batch, steps, peak_mb, units=(9, 9, 9), error=None):
  return Result(Case("revnet-110", mode, batch, units), 10.0, steps, int(peak_mb * 1e6), error)


MADE_UP = [
  made_up("ordinary", 100, [1.0, 2.0, 4.0], 1400),
  made_up("unrolled", 100, [1.5, 2.4, 4.4], 650),
  made_up("while_loop", 100, [1.0], 650, error="killed"),
  made_up("ordinary", 200, [8.0, 8.0, 8.0], 9999),
  made_up("ordinary", 300, [3.0, 3.0, 3.0], 3200),
  made_up("unrolled", 300, [6.0, 6.0, 3.0], 950),
  made_up("unrolled", 100, [1.0, 1.0, 1.0], 500, units=(3, 3, 3)),
]


def test_numbers_of_made_up_measurements():
  rows = summarize(MADE_UP)
  first = rows[1]
  assert first["step_seconds"] == {"median": 2.4, "min": 1.5, "max": 4.4}
  # Round by round 1.5, 1.2, 1.1; the ratio of the medians would be 1.2 as well, that of the means 1.19.
  assert first["ratio_to_ordinary"] == pytest.approx({"median": 1.2, "min": 1.1, "max": 1.5})
  assert rows[5]["ratio_to_ordinary"] == {"median": 2.0, "min": 1.0, "max": 2.0}
  assert first["images_per_second"] == pytest.approx(100 / 2.4)
  assert first["first_step_seconds"] == 10.0
  assert first["peak_mb"] == 650
  # Of the largest and smallest batch.
  assert [row["mb_per_image"] for row in rows] == pytest.approx([9.0, 1.5, None, 9.0, 9.0, 1.5, None])
  # No ordinary case of the same depth.
  assert rows[6]["ratio_to_ordinary"] is None


def test_table_has_an_aligned_row_for_each_case():
  header, *lines = table(summarize(MADE_UP)).splitlines()
  assert len(lines) == len(MADE_UP) + 1
  assert len({len(line) for line in [header, *lines[:-1]]}) == 1
  numbers = "10.00 2400.0 (1500.0-4400.0) 1.20 (1.10-1.50) 41.7 650 1.50"
  assert " ".join(lines[1].split()) == f"revnet-110 unrolled 9 100 {numbers}"
  assert " ".join(lines[2].split()) == "revnet-110 while_loop 9 100 failed - - - - -"
  assert lines[-1] == "revnet-110 while_loop, batch 100, 9 units a stage: failed, killed"


@pytest.mark.parametrize("results", [MADE_UP, MADE_UP[:3], MADE_UP[2:3]], ids=["depths", "one batch", "failed"])
def test_picture_of_any_rows(results, tmp_path):
  plot(summarize(results), "machine", tmp_path / "picture.png")
  assert (tmp_path / "picture.png").read_bytes().startswith(PNG)


def by_setting(memory, batch, steps, peak_mb):
  return Result(
    Case("revnet-110", "unrolled", batch, (9, 9, 9), activation_memory=memory), 5.0, steps, int(peak_mb * 1e6)
  )


def test_settings_of_the_dial_are_compared_with_ordinary_backprop_and_drawn(tmp_path):
  results = [made_up("ordinary", 100, [1.0, 2.0], 1400), made_up("ordinary", 300, [3.0, 4.0], 3400)]
  for memory, peak in (("least", 650), ("2GB", 900), ("auto", 700)):
    results += [
      by_setting(memory, 100, [1.2, 2.2], peak),
      by_setting(memory, 300, [3.2, 4.2], 3 * peak),
    ]
  rows = summarize(results)
  assert [row["ratio_to_ordinary"] is None for row in rows] == [False] * 8
  assert rows[4]["ratio_to_ordinary"]["max"] == pytest.approx(1.2)
  assert [row["mb_per_image"] for row in rows[2::2]] == pytest.approx([6.5, None, 7])  # An amount has none.
  assert "revnet-110  unrolled 2GB" in table(rows)
  plot(rows, "machine", tmp_path / "dial.png")
  assert (tmp_path / "dial.png").read_bytes().startswith(PNG)


def test_largest_batches_are_drawn(tmp_path):
  rows = summarize([made_up("ordinary", 14, [4.0], 4000), made_up("unrolled", 72, [20.0], 4000)])
  plot(rows, "machine", tmp_path / "largest.png", largest=True)
  assert (tmp_path / "largest.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("bytes_per_image", [1e6, 1e7, 1.5e8])
@pytest.mark.parametrize("hidden", [0, 20], ids=["linear", "small batches in memory that is there anyway"])
def test_the_largest_batch_is_found_in_few_trials(bytes_per_image, hidden):
  trials = []

  def peak_of(batch):
    trials.append(batch)
    peak = 5e8 + bytes_per_image * max(batch - hidden, 0)
    return peak if peak < 1.2 * 4e9 else None  # It is killed far beyond.

  found = largest_batch(peak_of, 4e9)
  true = hidden + int(3.5e9 / bytes_per_image)
  assert 0.98 * true - 1 <= found <= true
  assert len(trials) == len(set(trials)) <= 14, trials


@pytest.mark.parametrize("seed", [33, 193])
def test_the_search_does_not_creep_where_the_peak_grows_unevenly(seed):
  trials = []

  def peak_of(batch):
    trials.append(batch)
    return 8e8 + 8e5 * batch + random.Random(seed * 100003 + batch).uniform(-2e7, 2e7)

  assert largest_batch(peak_of, 2e9) == pytest.approx(1500, rel=0.03)
  assert len(trials) <= 14, trials


def test_no_batch_fits():
  assert largest_batch(lambda batch: None, 1e9) == 0


def test_a_process_that_takes_too_much_memory_is_killed(monkeypatch):
  code = "import sys, time; sys.stdin.readline(); block = bytearray(10**9); time.sleep(60)"
  monkeypatch.setattr(measuring, "WORKER", [sys.executable, "-c", code])
  result = made_up("ordinary", 1, [], 0)
  with measuring.Worker(most_resident=2e8) as worker:
    assert worker.ask({}, result) is None
    assert worker.exceeded
  assert result.error.startswith("killed")


# Takes 10 MB for each image in mode ordinary, 2 in the others, and 100 MB beside.
FAKE_MEMORY = """
import json, sys
case = json.loads(sys.stdin.readline())
peak = 100_000_000 + (10_000_000 if case["mode"] == "ordinary" else 2_000_000) * case["batch"]
line = True
while line:
  print(json.dumps({"seconds": 2.0, "peak_bytes": peak, "gpu": None, "tensorflow": "2"}), flush=True)
  line = sys.stdin.readline()
"""


@pytest.fixture
def fake_memory(monkeypatch):
  monkeypatch.setattr(measuring, "WORKER", [sys.executable, "-c", FAKE_MEMORY])
  monkeypatch.setattr("resnet.tools.benchmark.largest_batch._available", lambda: 8e9)


def test_the_largest_batch_of_each_mode(fake_memory, run_benchmark, tmp_path):
  run_benchmark("--mode=ordinary,unrolled", "--memory=1.1GB", "--steps=1", "--rounds=2")
  ordinary, unrolled = json.loads((tmp_path / "out.json").read_text())["cases"]
  assert 98 <= ordinary["batch"] <= 100
  assert 490 <= unrolled["batch"] <= 500
  assert ordinary["images_per_second"] == ordinary["batch"] / 2
  assert (tmp_path / "out.png").read_bytes().startswith(PNG)


def test_memory_that_is_too_much_or_too_little(fake_memory, run_benchmark, capfd):
  message = "benchmark: error: --memory must leave a tenth of the machine's free 8.00 GB, got 9.00 GB"
  assert run_benchmark("--memory=9GB") == message
  assert run_benchmark("--mode=ordinary", "--memory=50MB") == 1
  assert "a batch of 1 takes more than 50 MB" in capfd.readouterr().out


def test_cases():
  cases = benchmark.make_cases(
    ["revnet-110", "resnet-32", "revnet-104"], ["ordinary", "unrolled"], [10, 20], [0, 3, 9]
  )
  of_model = lambda name: [(c.units_text, c.batch, c.mode) for c in cases if c.model == name]  # noqa: E731
  assert of_model("revnet-110") == [
    (units, batch, mode) for units in "93" for batch in (10, 20) for mode in ("ordinary", "unrolled")
  ]
  assert of_model("resnet-32") == [(units, batch, "ordinary") for units in "539" for batch in (10, 20)]
  assert "-" in of_model("revnet-104")[0][0]  # Its own stages differ.
  cases = benchmark.make_cases(["revnet-110"], ["ordinary", "unrolled"], [10], [9], ["least", "all"])
  assert [case.mode_text for case in cases] == ["ordinary", "unrolled least", "unrolled all"]
  assert [config_of(case).activation_memory for case in cases] == ["auto", "least", "all"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--model=revnet-111"], "unknown model 'revnet-111' (did you mean revnet-110?); allowed are"),
    (
      ["--mode=ordinary,fast"],
      "--mode must be of ordinary, recompute, unrolled, while_loop, exact; got 'fast'",
    ),
    (["--mode=unrolled", "--model=resnet-32"], "--mode must have ordinary for resnet-32"),
    (["--batch=0"], "--batch must be whole numbers of at least 1, got '0'"),
    (["--batch=10,many"], "--batch must be whole numbers of at least 1, got '10,many'"),
    (["--units=-1"], "--units must be whole numbers of at least 0"),
    (["--rounds=0"], "--rounds"),
    (["--activation_memory=auto,82"], "activation_memory must be least, auto, all, or an amount"),
    (["--memory=much"], "--memory=much: it must be a number and one of B, kB, MB"),
    (["--output=/nowhere/out"], "--output is in /nowhere, which is not a folder"),
  ],
)
def test_a_mistake_is_one_line(arguments, message, run_benchmark):
  error = run_benchmark(*arguments)
  assert error.startswith("benchmark: error: ")
  assert message in error
  assert "\n" not in error


def test_unknown_mode_is_a_user_error():
  with pytest.raises(UserError, match="got 'fast'"):
    benchmark.make_cases(["revnet-110"], ["fast"], [10], [0])


def test_failing_cases_are_reported_and_the_others_measured(fake_worker, run_benchmark, tmp_path, capfd):
  modes = ["recompute", "ordinary", "unrolled"]
  assert run_benchmark(f"--mode={','.join(modes)}", "--batch=10", "--steps=4", "--rounds=2") == 1
  _, *lines = capfd.readouterr().out.splitlines()
  assert [line.split()[1] for line in lines[:3]] == modes
  assert [line.split()[4] for line in lines[:3]] == ["failed", "5.00", "failed"]
  assert lines[3].endswith(
    "recompute, batch 10, 9 units a stage: failed, ResourceExhaustedError: out of memory"
  )
  assert lines[4].endswith("failed, killed, as processes are that take too much memory")
  rows = json.loads((tmp_path / "out.json").read_text())["cases"]
  assert rows[1]["round_step_seconds"] == [0.5, 0.5]
  assert [row["error"] is None for row in rows] == [False, True, False]
  assert (tmp_path / "out.png").read_bytes().startswith(PNG)


def test_processes_are_started_anew_each_time_in_another_order(fake_worker, monkeypatch):
  asked = []
  ask = measuring.Worker.ask
  monkeypatch.setattr(
    measuring.Worker, "ask", lambda self, message, result: asked.append(message) or ask(self, message, result)
  )
  cases = [Case("revnet-110", "ordinary", batch, (9, 9, 9)) for batch in (10, 20, 30)]
  results, _ = measure(cases, steps=4, rounds=2, in_turn=lambda _: None, starts=4)
  assert [result.step_seconds for result in results] == [8 * [0.5]] * 3
  order = [message["batch"] for message in asked if "batch" in message]
  assert order == [10, 20, 30, 20, 30, 10, 30, 10, 20, 10, 20, 30]


@pytest.fixture
def heeds_interruption():
  """Of a job in the background the shell has interruptions ignored."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interruption")
def test_interruption_ends_all_processes(fake_worker):
  results = []
  cases = benchmark.make_cases(["revnet-110"], ["ordinary", "while_loop"], [10], [0])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(measuring, "Result", lambda case: results.append(Result(case)) or results[-1])
    with pytest.raises(KeyboardInterrupt):
      measure(cases, steps=1, rounds=1)
  assert len(results) == 2
  for result in results:
    with pytest.raises(ProcessLookupError):
      os.kill(result.peak_bytes, 0)  # The fake worker's process number.


def test_recompute_runs_every_convolution_again_and_gives_the_same_step():
  models = [model_of(Case("revnet-test", mode, 4, (2, 2))) for mode in ("ordinary", "recompute")]
  for ours, theirs in zip(*(model.variables for model in models), strict=True):
    ours.assign(theirs)
  batch = make_batch(models[0], 4)
  convolutions, gradients, statistics = [], [], []
  for model in models:
    step = tf.function(functools.partial(loss_and_gradients, model)).get_concrete_function(*batch)
    convolutions.append(sum(op.type == "Conv2D" for op in step.graph.get_operations()))
    gradients.append(step(*batch)[1])
    statistics.append(values(model.non_trainable_variables))
  assert convolutions[1] == 2 * convolutions[0]
  assert_close(*gradients, 1e-4)
  assert_close(*statistics, 1e-5)


def test_configurations_of_modes():
  configs = [config_of(Case("revnet-110", mode, 30, (3, 3, 3))) for mode in MODES]
  assert [config.manual_gradients for config in configs] == [False, True, True, True, True]
  assert [config.chain for config in configs] == ["unrolled"] * 3 + ["while_loop", "unrolled"]
  assert [config.grid_bits for config in configs] == [0, 0, 0, 0, 14]
  assert {(config.batch_size, config.num_residual_units) for config in configs} == {(30, (3, 3, 3))}


def test_benchmark_as_a_user_starts_it(tmp_path):
  command = "-m resnet.tools.benchmark --model revnet-test --mode ordinary,recompute --batch 2,4 --units 1"
  process = subprocess.run(
    [sys.executable, *command.split(), "--steps=1", "--rounds=2", f"--output={tmp_path}/out"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  cells = [line.split()[:4] for line in process.stdout.splitlines()[1:]]
  assert cells == [
    ["revnet-test", mode, "1", batch] for batch in ("2", "4") for mode in ("ordinary", "recompute")
  ]
  report = json.loads((tmp_path / "out.json").read_text())
  assert report["command"].startswith("python -m resnet.tools.benchmark --model revnet-test --mode")
  assert (report["steps"], report["rounds"]) == (1, 2)
  assert report["machine"]["tensorflow"]
  assert report["machine"]["cpu"]
  for row in report["cases"]:
    assert row["error"] is None
    assert len(row["round_step_seconds"]) == 2
    assert row["units"] == [1, 1]
    assert row["mb_per_image"] is not None
    assert row["ratio_to_ordinary"].keys() == {"median", "min", "max"}
    assert min(row["first_step_seconds"], row["images_per_second"], row["peak_mb"]) > 0
  assert (tmp_path / "out.png").read_bytes().startswith(PNG)
