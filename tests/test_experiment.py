"""The flags of the run scripts choose experiment and configuration."""

import types

import pytest

from resnet.configs import get_config
from resnet.experiments.experiment import Experiment
from resnet.training_flags import choose_experiment, new_id
from resnet.utils.errors import UserError


def opened(tmp_path, dataset=None, run_validation=None, **given):
  names = ("id", "model", "config", "dtype", "kept_units", "activation_memory")
  defaults = {"restore": False, "override": [], **dict.fromkeys(names)}
  folders = {"results": str(tmp_path / "r"), "logs": str(tmp_path / "l")}
  flags = types.SimpleNamespace(**{**defaults, **folders, **given})
  return choose_experiment(flags, "resnet-32", dataset, run_validation)


def test_flags_choose_the_configuration(tmp_path):
  experiment, config = opened(tmp_path)
  assert config == get_config("resnet-32")
  assert experiment.id.startswith("exp_cifar-10_resnet-32_")
  _, config = opened(tmp_path, id="x", model="revnet-38", dataset="cifar-100", override=["batch_size=7"])
  assert (config.name, config.dataset, config.num_classes, config.batch_size) == (
    "revnet-38",
    "cifar-100",
    100,
    7,
  )
  _, config = opened(tmp_path, id="x", run_validation=True, dtype="mixed_bfloat16")
  assert config.run_validation
  assert config.dtype == "mixed_bfloat16"


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"restore": True}, "--restore needs --id"),
    ({"restore": True, "id": "nothing"}, "no experiment nothing in .*conf.json is missing"),
    ({"restore": True, "id": "x", "model": "resnet-32"}, "--model is resnet-32, but experiment x"),
    ({"restore": True, "id": "x", "dataset": "cifar-100"}, "--dataset is cifar-100, but experiment x"),
    ({"restore": True, "id": "x", "run_validation": True}, "--validation is True, but experiment x"),
    ({"restore": True, "id": "x", "dtype": "mixed_float16"}, "--dtype is mixed_float16, but experiment x"),
    ({"id": "x"}, "experiment x exists in"),
    ({"id": "a/b"}, "an experiment's ID must be the name of a folder, without '/', got 'a/b'"),
    ({"id": ".."}, "an experiment's ID must be the name of a folder"),
  ],
)
def test_flags_that_contradict_the_experiment_are_refused(tmp_path, kwargs, message):
  Experiment.named("x", str(tmp_path / "r"), str(tmp_path / "l")).create(get_config("revnet-38"))
  (tmp_path / "r/x/model.ckpt-1.index").touch()
  with pytest.raises(UserError, match=message):
    opened(tmp_path, **kwargs)


def test_ids_are_fresh():
  assert new_id("cifar-10", "resnet-32") != new_id("cifar-10", "resnet-32")
