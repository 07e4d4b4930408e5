"""The flags of the run scripts choose experiment and configuration."""

import dataclasses
import json
import shlex
import sys

import pytest
from absl import flags
from helpers import fresh_flags

from resnet.configs import get_config, get_config_from_json
from resnet.experiments.experiment import Experiment
from resnet.training_flags import choose_experiment, define_training_flags, new_id
from resnet.utils.errors import UserError


def opened(tmp_path, *arguments):
  """What a training script chooses by these flags."""
  with fresh_flags():
    define_training_flags("cifar-10", str(tmp_path / "r"), "all")
    flags.DEFINE_string("dataset", None, "")
    flags.DEFINE_bool("validation", None, "")
    flags.FLAGS(["train.py", f"--logs={tmp_path}/l", *arguments])
    return choose_experiment(flags.FLAGS, "resnet-32", flags.FLAGS.dataset, flags.FLAGS.validation)


def test_flags_choose_the_configuration(tmp_path):
  found, config = opened(tmp_path)
  assert config == get_config("resnet-32")
  assert found.id.startswith("exp_cifar-10_resnet-32_")
  _, config = opened(tmp_path, "--id=x", "--model=revnet-38", "--dataset=cifar-100", "--override=batch_size=7")
  assert (config.name, config.dataset, config.num_classes, config.batch_size) == (
    "revnet-38",
    "cifar-100",
    100,
    7,
  )
  _, config = opened(tmp_path, "--id=x", "--validation", "--dtype=mixed_bfloat16")
  assert config.run_validation
  assert config.dtype == "mixed_bfloat16"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--restore"], "--restore needs --id"),
    (["--restore", "--id=nothing"], "no experiment nothing in .*conf.json is missing"),
    (["--restore", "--id=x", "--model=resnet-32"], "--model is resnet-32, but experiment x"),
    (["--restore", "--id=x", "--dataset=cifar-100"], "--dataset is cifar-100, but experiment x"),
    (["--restore", "--id=x", "--validation"], "--validation is True, but experiment x"),
    (["--restore", "--id=x", "--dtype=mixed_float16"], "--dtype is mixed_float16, but experiment x"),
    (["--id=x"], "experiment x exists in"),
    (["--id=a/b"], "an experiment's ID must be the name of a folder, without '/', got 'a/b'"),
    (["--id=.."], "an experiment's ID must be the name of a folder"),
    (
      ["--activation_memory=least"],
      "--activation_memory needs a RevNet with manual_gradients, which resnet-32",
    ),
    (["--monitor_reconstruction"], "--monitor_reconstruction needs a RevNet; resnet-32 rebuilds nothing"),
  ],
)
def test_flags_that_contradict_the_experiment_are_refused(tmp_path, arguments, message):
  experiment(tmp_path).create(get_config("revnet-38"))
  (tmp_path / "r/x/model.ckpt-1.index").touch()
  with pytest.raises(UserError, match=message):
    opened(tmp_path, *arguments)


def test_fields_have_flags(tmp_path):
  fields = ["--id=x", "--model=revnet-38", "--jit", "--activation_memory=2GB"]
  _, config = opened(tmp_path, *fields)
  assert (config.jit, config.activation_memory) == (True, "2GB")
  experiment(tmp_path).create(config)
  assert opened(tmp_path, "--restore", "--id=x")[1] == config
  _, config = opened(tmp_path, "--restore", "--id=x", "--activation_memory=least", "--nojit")
  assert (config.jit, config.activation_memory) == (False, "least")


def test_the_next_command_has_the_flags_that_no_configuration_has(tmp_path):
  given = ["--num_gpu=0", "--monitor_reconstruction", "--keep_checkpoints=3"]
  chosen = [
    "--id=x",
    "--model=revnet-38",
    "--dataset=digits",
    "--validation",
    "--override=seed=1",
    "--max_num_steps=1",
  ]
  found, config = opened(tmp_path, *given, *chosen, "--jit", "--dtype=float32", "--activation_memory=2GB")
  program, _, continuing = found.command("--override=seed=2").partition(" --restore ")
  continuing = f"--restore {continuing}"
  assert shlex.split(program) == sys.orig_argv[: len(shlex.split(program))]
  assert found.how_to_continue().endswith(
    f"{program} will continue with {continuing.removesuffix(' --override=seed=2')}"
  )
  rest = [f"--logs={tmp_path}/l", *given, "--override=seed=2"]
  assert sorted(shlex.split(continuing)) == sorted(["--restore", "--id=x", *rest])
  again = shlex.split(found.command(restore=False))[len(found.program) :]
  assert again[:2] == [f"--config={tmp_path}/r/x/conf.json", "--id=x"]
  found.create(config)
  assert opened(tmp_path, *shlex.split(continuing))[1] == dataclasses.replace(config, seed=2)
  assert opened(tmp_path, *again)[1] == config


# The configuration in force.


def experiment(tmp_path):
  return Experiment.named("x", str(tmp_path / "r"), str(tmp_path / "l"))


def steps_of(tmp_path):
  """The seeds of the configurations of the steps until ..., and of the one in force."""
  kept = {
    step: get_config_from_json(path).seed for step, path in experiment(tmp_path).earlier_configs().items()
  }
  return kept, experiment(tmp_path).load_config().seed


def seeded(seed):
  return dataclasses.replace(get_config("revnet-38"), seed=seed)


def test_what_was_in_force_is_kept_with_the_step_of_the_change(tmp_path):
  found = experiment(tmp_path)
  found.create(seeded(1))
  assert found.change_config(seeded(1), 5) == []
  assert steps_of(tmp_path) == ({}, 1)
  assert found.change_config(seeded(2), 10) == ["seed 1 -> 2"]
  assert found.change_config(seeded(3), 200) == ["seed 2 -> 3"]
  assert steps_of(tmp_path) == ({10: 1, 200: 2}, 3)
  assert found.change_config(seeded(4), 200) == ["seed 3 -> 4"], "no step was taken by 3"
  assert steps_of(tmp_path) == ({10: 1, 200: 2}, 4)
  assert found.change_config(seeded(2), 200) == ["seed 4 -> 2"]
  assert steps_of(tmp_path) == ({10: 1}, 2)


def test_going_back_before_a_change_forgets_it(tmp_path):
  found = experiment(tmp_path)
  found.create(seeded(1))
  for seed, step in ((2, 10), (3, 20)):
    found.change_config(seeded(seed), step)
  assert found.change_config(seeded(3), 5) == []
  assert steps_of(tmp_path) == ({5: 1}, 3)
  assert found.change_config(seeded(1), 4) == ["seed 3 -> 1"]
  assert steps_of(tmp_path) == ({}, 1)
  found.change_config(seeded(2), 10)
  found.create(seeded(7))
  assert steps_of(tmp_path) == ({}, 7), "it has started again"


def test_a_configuration_of_an_earlier_version_is_no_change(tmp_path):
  found = experiment(tmp_path)
  found.create(seeded(1))
  fields = json.loads(found.config_file.read_text())
  for name in ("num_replicas", "num_pass", "jit", "activation_memory"):
    del fields[name]
  found.config_file.write_text(json.dumps(fields))
  config = dataclasses.replace(seeded(1), num_replicas=4)
  assert opened(tmp_path, "--restore", "--id=x")[1] == seeded(1)
  assert found.change_config(config, 3) == []
  assert found.earlier_configs() == {}
  assert found.load_config() == config
  assert found.change_config(seeded(1), 3) == ["num_replicas 4 -> 0"]


def test_a_damaged_configuration_that_is_replaced_is_kept_too(tmp_path):
  found = experiment(tmp_path)
  found.create(seeded(1))
  found.config_file.write_bytes(b"{damaged")
  (change,) = found.change_config(seeded(2), 3)
  assert "conf.json is not JSON" in change
  assert found.earlier_configs()[3].read_bytes() == b"{damaged"
  assert found.load_config() == seeded(2)


def test_ids_are_fresh():
  assert new_id("cifar-10", "resnet-32") != new_id("cifar-10", "resnet-32")
