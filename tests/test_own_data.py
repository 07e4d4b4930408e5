"""docs/own_data.md, from a folder of pictures to an accuracy: its commands run as they stand there."""

import dataclasses
import importlib
import json
import re
import shlex

from helpers import ROOT
from imagenet_helpers import jpeg, small_config

from resnet.configs import config_factory

# In the place of the network that the page trains.
TINY = small_config(name="revnet-56", num_residual_units=(1, 2), filters=(8, 4, 8), strides=(1, 2), disp_iter=1)
QUICK = {
  "build_imagenet_records": ["--num_workers=1"],
  "run_imagenet_train": ["--num_gpu=0", "--max_num_steps=1"],
  "run_imagenet_eval": [],
}
CLASSES = ("cat", "dog", "owl")


def commands():
  """(program, arguments) of every command on the page."""
  text = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
  for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
    for line in block.replace("\\\n", " ").splitlines():
      words = shlex.split(line, comments=True)
      if words:
        yield (
          (words[2], words[3:]) if words[:2] == ["python", "-m"] else (words[0].removeprefix("./"), words[1:])
        )


def test_the_commands_of_the_page(tmp_path, run_script, run_module, monkeypatch, capsys):
  monkeypatch.setitem(config_factory._REGISTRY, "revnet-56", TINY)
  for number in range(24):
    folder = tmp_path / "pictures" / CLASSES[number % 3]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.jpg").write_bytes(jpeg(number, 30 + number, 90 - number))

  def run(program, *arguments):
    name = program.rpartition(".")[2] if program.startswith("resnet.") else program.removesuffix(".py")
    arguments = [*arguments, *QUICK[name]]
    if program.startswith("resnet."):
      return run_module(importlib.import_module(f"{program}.__main__"), *arguments)
    return run_script(program, *arguments)

  (_, build), (_, train), (_, evaluate) = programs = list(commands())
  for program, arguments in programs:
    assert run(program, *arguments) is None, program
  shown = capsys.readouterr().out
  assert "24 pictures in 9 record files in data/own, 3 classes: cat, dog, owl" in shown
  assert re.search(r"step 1: valid_acc top-1 \d+\.\d+ %, top-5 100.000 %", shown)
  description = tmp_path / "data/own/description.json"
  described = json.loads(description.read_text())
  assert described["counts"] == {"train": 21, "validation": 3}
  experiment = tmp_path / "results/imagenet/own"
  assert json.loads((experiment / "conf.json").read_text())["num_classes"] == 3
  assert (experiment / "class_names.txt").read_text() == "cat\ndog\nowl\n"

  # What does not fit is refused, before a new experiment has a folder.
  config_factory.save_config(dataclasses.replace(TINY, num_classes=1000), tmp_path / "other.json")
  new = [*train, "--id=new"]
  for arguments in (["--override=num_classes=1000"], ["--config=other.json"]):
    error = run("run_imagenet_train.py", *new, *arguments)
    assert "num_classes is 1000, but the data has 3 classes, see data/own/description.json" in error
  assert not (tmp_path / "results/imagenet/new").exists()
  again = [("run_imagenet_train.py", [*train, "--restore"]), ("run_imagenet_eval.py", evaluate)]
  description.write_text(json.dumps(described | {"classes": ["cat", "owl", "dog"]}))
  for program, arguments in again:
    error = run(program, *arguments)
    assert "class 1 is 'dog' in results/imagenet/own/class_names.txt, but 'owl' in the data" in error
  description.write_text(json.dumps(described | {"classes": ["cat", "dog"]}))
  for program, arguments in again:
    assert "num_classes is 3, but the data has 2 classes" in run(program, *arguments)
  description.unlink()  # Without it, anything goes.
  assert run("run_imagenet_eval.py", *evaluate) is None
  assert "already holds train-0000" in run("resnet.tools.build_imagenet_records", *build, "--train_shards=7")
