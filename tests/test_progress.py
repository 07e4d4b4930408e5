"""What a run shows: the time that it counts, the lines, and what it says at its start."""

import io
import re
import sys

import pytest
from test_training import CONFIG

from resnet.configs import override_config
from resnet.training import announcement
from resnet.training.announcement import schedule, space
from resnet.training.progress import SILENCE, Progress

CURVES = ("train_acc", "valid_acc")
RUN = override_config(CONFIG, ["batch_size=10", "valid_iter=4", "max_train_iter=20", "lr_decay_steps=6,9"])


@pytest.fixture
def clock(monkeypatch):
  """A list of one number, the seconds that time.monotonic() says."""
  now = [0.0]
  monkeypatch.setattr("time.monotonic", lambda: now[0])
  return now


def words(line):
  """The parts of a line, which stand two spaces apart or more."""
  return re.split(r" {2,}", line)


def test_lines_have_the_speed_of_training_steps_alone(clock, capsys):
  with Progress(RUN, 100, 0, 20, CURVES) as shown:
    for step in range(1, 9):
      shown.begin_step()
      clock[0] += 50 if step == 1 else 0.5 if step <= 4 else 0.25
      assert shown.end_step() == (step == 1), "the first loss is waited for: then all is compiled"
      if step not in (1, 3, 4, 6, 8):
        continue  # The loss of the others stays on the device.
      with shown.known_loss(2.0):
        clock[0] += 100  # an evaluation
        if step == 6:
          shown.line(step, 3.0, {})
        elif step != 3:
          shown.line(step, 2.0, {"train_acc": 0.5, "valid_acc": 0.125})
      with shown.pause():
        clock[0] += 10  # a checkpoint
  lines = [" | ".join(words(line)) for line in capsys.readouterr().out.splitlines()]
  assert lines[:2] == ["compiling ...", "compiled, and took the first step, in 50 s"]
  measured = "train acc 50.00 % | test acc 12.50 %"
  assert lines[2:] == [
    f"step | 1/20 | epoch | 0.10 | loss 2.0000 | {measured} | rate 0.1 | - images/s | - left",
    # 16 steps of half a second, and evaluations of 100 s after the steps 8, 12, 16 and 20.
    f"step | 4/20 | epoch | 0.40 | loss 2.0000 | {measured} | rate 0.1 | 20.0 images/s | 0:06:48 left",
    "step | 6/20 | epoch | 0.60 | loss 3.0000 | train acc | - | test acc | - | rate 0.01 | 40.0 images/s | "
    "0:06:44 left",
    f"step | 8/20 | epoch | 0.80 | loss 2.0000 | {measured} | rate 0.01 | 40.0 images/s | 0:05:03 left",
  ]


def test_the_first_step_of_a_continued_run_is_not_counted(clock, capsys):
  with Progress(RUN, 100, 4, 20, CURVES) as shown:
    for step in (5, 6, 7, 8):
      shown.begin_step()
      clock[0] += 50 if step == 5 else 0.5
      shown.end_step()
      if step in (5, 8):
        with shown.known_loss(2.0):
          if step == 8:
            shown.line(step, 2.0, {})
  assert "  20.0 images/s  0:00:06 left" in capsys.readouterr().out


def test_a_log_is_not_silent_for_long(clock, capsys):
  with Progress(RUN, 100, 4, 20, ()) as shown:
    for step in (5, 6, 7):
      shown.begin_step()
      assert shown.end_step() == (step != 6)
      if step != 6:
        with shown.known_loss(2.0):
          assert shown.is_silent() == (step == 7)
      clock[0] += SILENCE - 1


def test_a_terminal_has_a_bar_below_the_lines(monkeypatch, capsys):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  monkeypatch.setattr(sys, "stderr", Terminal())
  with Progress(RUN, 100, 0, 20, CURVES) as shown:
    shown.begin_step()
    shown.end_step()
    with shown.known_loss(2.0):
      shown.line(1, 2.0, {})
  assert "\r" in sys.stderr.getvalue()
  assert f"{RUN.name}:" in sys.stderr.getvalue()
  printed = capsys.readouterr().out
  assert "\r" not in printed
  assert words(printed.splitlines()[-1])[:2] == ["step", "1/20"]


def test_a_line_that_cannot_be_written_does_not_stop_a_run(monkeypatch):
  class Full(io.StringIO):
    def write(self, text):
      raise OSError(28, "No space left on device")

  monkeypatch.setattr(sys, "stdout", Full())
  Progress(RUN, 100, 0, 20, CURVES).line(1, 2.0, {})


def test_held_out_images_are_called_validation(capsys):
  Progress(override_config(RUN, ["run_validation=true"]), 100, 0, 20, CURVES).line(20, 2.0, {"valid_acc": 1.0})
  assert "validation acc 100.00 %  rate" in capsys.readouterr().out


def test_a_process_that_shows_nothing_shows_nothing(capsys):
  shown = Progress(RUN, 100, 0, 20, CURVES, shows=False)
  shown.begin_step()
  shown.line(1, 2.0, {})
  assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
  ("start", "rates"),
  [
    (0, "0.1 from step 1, 0.01 from step 6, 0.001 from step 9"),
    (4, "0.1 from step 1, 0.01 from step 6, 0.001 from step 9"),
    (5, "0.01 from step 6, 0.001 from step 9"),
    (19, "0.001 from step 9"),
  ],
)
def test_the_schedule_is_what_is_to_come(start, rates):
  assert schedule(RUN, start) == f"learning rate {rates}; the training ends after step 20"


def test_rates_beyond_the_end_are_not_to_come():
  config = override_config(RUN, ["lr_decay_steps=6,21"])
  assert schedule(config, 0).startswith("learning rate 0.1 from step 1, 0.01 from step 6; the")
  assert schedule(config, 20).startswith("learning rate 0.01 from step 6; the")


@pytest.mark.parametrize(
  ("start", "stop", "keep", "text"),
  [
    (0, 20, None, "checkpoints: 6 to come, of 300 MB each: 1.80 GB, where 2.00 GB are free"),
    (0, 0, None, "checkpoints: 0 to come, of 300 MB each: 0 kB, where 2.00 GB are free"),
    (1, 8, None, "checkpoints: 2 to come, of 300 MB each: 600 MB, where 2.00 GB are free"),
    (4, 20, 2, "checkpoints: 4 to come, of 300 MB each, the newest 2 kept: 900 MB, where 2.00 GB are free"),
  ],
)
def test_the_space_of_the_checkpoints_to_come_is_said(monkeypatch, tmp_path, start, stop, keep, text):
  assert shown_space(monkeypatch, tmp_path, 300e6, start, stop, keep) == text


def test_too_little_space_is_said(monkeypatch, tmp_path):
  said = shown_space(monkeypatch, tmp_path, 400e6, 0, 20, None)
  assert said.endswith(
    "2.40 GB, where 2.00 GB are free, too little; --keep_checkpoints N keeps the newest N alone"
  )


def shown_space(monkeypatch, folder, size, start, stop, keep):
  class Sized:
    num_bytes = size

  class Disk:
    free = 2e9

  monkeypatch.setattr(announcement.shutil, "disk_usage", lambda _: Disk)
  return space(Sized, override_config(RUN, ["save_iter=4"]), folder, start, stop, keep)
