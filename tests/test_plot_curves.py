"""The curves of experiments in a picture: what is read, what is drawn, and every mistake as one line."""

import numpy as np
import pytest

from resnet.experiments.logger import ExperimentLogger
from resnet.tools import figures, plot_curves
from resnet.utils.errors import UserError


def write(logs, experiment_id, losses, accuracies=()):
  logger = ExperimentLogger(logs / experiment_id)
  for step, loss in losses:
    logger.log("train_ce", step, ce=loss)
  for step, accuracy in accuracies:
    logger.log("valid_acc", step, acc=accuracy)


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are made, as they are when the test looks at them."""
  made = []

  def new_figure(figsize):
    made.append(figures_new_figure(figsize))
    return made[-1]

  figures_new_figure = figures.new_figure
  monkeypatch.setattr(plot_curves, "new_figure", new_figure)
  return made


def lines(figure, title):
  (axis,) = [axis for axis in figure.axes if title in axis.get_title()]
  return [(list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))) for line in axis.lines]


def test_two_experiments_in_one_picture(run_module, tmp_path, drawn):
  write(tmp_path / "logs/public", "a", [(1, 2.0), (2, 1.0)], [(1, 0.125), (2, 0.5)])
  write(tmp_path / "logs/public", "b", [(1, 3.0), (5, 1.5)])
  assert run_module(plot_curves, "a", "b", "--label=resnet", "--label=revnet") is None
  (figure,) = drawn
  assert lines(figure, "training loss") == [([1, 2], [2, 1]), ([1, 5], [3, 1.5])]
  assert lines(figure, "test or validation accuracy") == [([1, 2], [12.5, 50])]
  assert lines(figure, "learning rate") == []
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ["resnet", "revnet"]
  assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_seeds_are_drawn_as_their_mean_and_range(run_module, tmp_path, drawn):
  logs = tmp_path / "logs/public"
  write(logs, "a", [(1, 2.0), (2, 1.0), (3, 0.5)], [(1, 0.25)])
  write(logs, "b", [(1, 4.0), (3, 1.5), (4, 9.0)], [(2, 0.5)])
  write(logs, "c", [(1, 6.0), (2, 9.0), (3, 2.5)])
  write(logs, "a,c", [(7, 3.0)])  # Its name has a comma.
  assert run_module(plot_curves, "a,b,c", "a", "a,c", "--label=mean", "--label=one", "--label=comma") is None
  (figure,) = drawn
  assert lines(figure, "training loss") == [([1, 3], [4, 1.5]), ([1, 2, 3], [2, 1, 0.5]), ([7], [3])]
  (axis,) = [axis for axis in figure.axes if "training loss" in axis.get_title()]
  (band,) = axis.collections
  assert {tuple(point) for point in band.get_paths()[0].vertices} == {(1, 2), (1, 6), (3, 0.5), (3, 2.5)}
  assert lines(figure, "test or validation accuracy") == [([1], [25])], "no step in common, and c has none"


def test_dense_seeds_are_smoothed(tmp_path, drawn):
  zigzag = np.arange(1000) % 2 + 1.0
  seeds = np.stack([zigzag, zigzag + 10])
  plot_curves.plot({"a": {"train_ce": (np.arange(1000), seeds)}}, tmp_path / "a.png")
  ((_, smooth),) = lines(drawn[0], "training loss")
  np.testing.assert_allclose(smooth[20:-20], 6.5, atol=0.1)


def test_a_resumed_run_is_drawn_once(tmp_path):
  write(tmp_path, "a", [(1, 2.0), (2, 1.0), (3, 0.5), (2, 9.0), (3, 9.0), (4, 0.25)])
  steps, values = plot_curves.read_curves("a", tmp_path)["train_ce"]
  assert (list(steps), list(values)) == ([1, 2, 3, 4], [2, 1, 0.5, 0.25])


def test_a_dense_curve_is_smoothed_and_a_sparse_one_is_not(tmp_path, drawn):
  zigzag = np.arange(1000) % 2 + 1.0
  steps = np.arange(1000)
  plot_curves.plot({"a": {"train_ce": (steps, zigzag)}}, tmp_path / "a.png")
  (_, raw), (_, smooth) = lines(drawn[0], "training loss")
  assert raw == list(zigzag)
  assert np.ptp(smooth[20:-20]) < 0.1
  plot_curves.plot({"a": {"train_ce": (steps[:10], zigzag[:10])}}, tmp_path / "b.png")
  ((_, only),) = lines(drawn[1], "training loss")
  assert only == list(zigzag[:10])


def test_smoothing_keeps_straight_lines_and_ends():
  line = np.arange(300.0)
  np.testing.assert_allclose(plot_curves.smoothed(line), line)


def test_a_long_list_of_experiments_keeps_its_lines_apart(tmp_path, drawn):
  curves = {str(k): {"train_ce": (np.array([1, 2]), np.array([1.0, k + 1]))} for k in range(8)}
  plot_curves.plot(curves, tmp_path / "a.png")
  styles = {(line.get_color(), line.get_linestyle()) for line in drawn[0].axes[0].lines}
  assert len(styles) == 8


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "no experiment is named; write its ID behind the command"),
    (["a", "c"], "no experiment c in ./logs/public; there are a, late"),
    (["a", "--logs=nowhere"], "no experiment a in nowhere; there is none"),
    (["empty"], "experiment empty has no curves: no point in logs/public/empty/{train_ce,"),
    (["a", "--label=x", "--label=y"], "--label must be given once for each of the 1 IDs, got 2"),
    (["a,c"], "no experiment c in ./logs/public; there are a"),
    (["a,late"], "a,late have no step of a curve in common"),
    (["a", "a"], "a is named twice; give each experiment a --label of its own"),
    (["a", "--output=nowhere/a.png"], "cannot write nowhere/a.png: No such file or directory"),
    (["../a"], "an experiment's ID must be the name of a folder, without '/', got '../a'"),
    (["a", "--lable=x"], "Unknown command line flag 'lable'"),
  ],
)
def test_a_mistake_is_one_line(run_module, tmp_path, arguments, message):
  write(tmp_path / "logs/public", "a", [(1, 2.0)])
  write(tmp_path / "logs/public", "late", [(9, 2.0)])
  (tmp_path / "logs/public/empty").mkdir()
  error = run_module(plot_curves, *arguments)
  assert error.startswith("plot_curves.py: error: ")
  assert message in error
  assert "\n" not in error


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(UserError, match="matplotlib, which is not installed: pip install matplotlib"):
    plot_curves.plot({}, tmp_path / "a.png")
