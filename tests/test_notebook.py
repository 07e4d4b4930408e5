"""The notebook, as committed and run in short: it shows what it says.

After a change to the notebook, python tests/test_notebook.py runs it and writes its outputs.
"""

import pathlib
import re

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "revnet.ipynb"
NUMBER = r"(\d[\d.]*(?:e[-+]\d+)?)"


def read():
  return nbformat.read(NOTEBOOK, as_version=4)


def run(notebook):
  """Adds the outputs; leaves out what differs from machine to machine."""
  language = notebook.metadata.language_info
  folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
  nbclient.NotebookClient(
    notebook, timeout=600, resources=folder, record_timing=False, coalesce_streams=True
  ).execute()
  notebook.metadata.language_info = language
  return notebook


def run_in_short():
  notebook = read()
  (cell,) = (cell for cell in notebook.cells if cell.source.startswith("EPOCHS = "))
  cell.source = "EPOCHS, UNITS, DEPTHS = 3, 2, (3,)"
  return run(notebook)


@pytest.fixture(scope="module", params=[read, run_in_short], ids=["committed", "in_short"])
def outputs(request):
  """All that the cells gave, in order."""
  return [output for cell in request.param().cells for output in cell.get("outputs", [])]


@pytest.fixture(scope="module")
def numbers(outputs):
  """A function: pattern of a line that was printed, each # a number -> their values, a tuple a line."""
  text = "".join(output.text for output in outputs if output.output_type == "stream")

  def find(pattern):
    lines = re.findall(f"^{pattern.replace('#', NUMBER)}$", text, re.MULTILINE)
    assert lines, f"no line {pattern!r} in:\n{text}"
    return [tuple(map(float, [line] if isinstance(line, str) else line)) for line in lines]

  return find


def test_it_prints_no_warnings_and_draws_two_pictures(outputs):
  assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
  others = [output for output in outputs if output.output_type != "stream"]
  assert [sorted(output.data) for output in others] == [["image/png", "text/plain"]] * 2


def test_the_network_learns(numbers):
  ((accuracy, chance),) = numbers("test accuracy # %, by chance # %")
  assert chance == 10
  assert accuracy > 50


def test_a_picture_has_five_classes(numbers):
  ((*percentages,),) = numbers("likeliest: " + ", ".join(["\\d \\(# %\\)"] * 5))
  assert percentages == sorted(percentages, reverse=True)
  assert 20 < sum(percentages) < 100.3


def test_the_chain_that_cannot_be_undone_says_why(outputs):
  text = "".join(output.text for output in outputs if output.output_type == "stream")
  assert "has no inverse, since its Shortcut has none" in text


def test_the_inverse_gives_the_inputs(numbers):
  ((changed,),) = numbers("outputs - inputs: at most #")
  ((difference,),) = numbers("rebuilt - inputs: at most #")
  assert changed > 0.5
  assert 0 < difference < 1e-5
  (errors,) = numbers("reconstruction error of each stage: #, #, #")
  assert max(errors) < 1e-5


def test_gradients_are_those_of_ordinary_backprop(numbers):
  ((variables, difference),) = numbers("# variables, largest relative difference #")
  assert variables > 50
  assert 0 < difference < 1e-3  # In float32. With 1 % of error in the inverse it is 0.1.


def test_memory_is_saved(numbers):
  reports = numbers("# units a stage: RevNet # MB, ordinary backpropagation # MB")
  _, revnet, ordinary = reports[-1]
  assert ordinary > 100
  assert revnet < 0.6 * ordinary


def test_the_committed_notebook_is_small_and_ran_from_top_to_bottom():
  assert NOTEBOOK.stat().st_size < 150e3
  cells = [cell for cell in read().cells if cell.cell_type == "code"]
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  assert not any(cell.metadata for cell in cells)  # Times of execution.
  assert str(ROOT) not in NOTEBOOK.read_text(encoding="utf-8")


def test_its_links_lead_somewhere():
  links = re.findall(r"\]\((\.\./[^)#]+)", "".join(cell.source for cell in read().cells))
  assert links
  assert all((NOTEBOOK.parent / link).is_file() for link in links)


if __name__ == "__main__":
  nbformat.write(run(read()), NOTEBOOK)
