"""Reading the configurations that the original code saved."""

import json

import pytest
from parity_cases import CASES, FOLDER, case_config

from resnet.configs import get_config, save_config
from resnet.original.config_file import OWN_FIELDS, load_config
from resnet.training.lr_schedule import learning_rate_schedule
from resnet.utils.errors import UserError


@pytest.fixture
def reread(tmp_path):
  """A function: `case`'s conf.json as the original saved it, with fields changed (None removes), read."""

  def read(case, **changes):
    fields = {**json.loads((FOLDER / case / "conf.json").read_text()), **changes}
    for name in [name for name, value in changes.items() if value is None]:
      del fields[name]
    path = tmp_path / "conf.json"
    path.write_text(json.dumps(fields))
    return load_config(path)

  return read


@pytest.mark.parametrize("case", ["resnet-test", "revnet-test", "revnet-btl-test"])
def test_the_test_configurations_are_those_registered_here(case):
  assert case_config(case, valid_batch_size=100) == get_config(case)


def test_an_imagenet_configuration():
  config = case_config("revnet-imagenet-tiny")
  assert (config.name, config.dataset, config.preprocessor) == ("tiny", "imagenet", "inception")
  assert (config.model_class, config.manual_gradients, config.num_classes) == ("revnet", True, 7)
  assert config.valid_batch_size == 64
  assert config.filters == (16, 16, 16, 24, 32)
  assert not case_config("resnet-imagenet-tiny").manual_gradients


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_same_when_saved_in_the_form_used_here(tmp_path, case):
  path = tmp_path / "conf.json"
  save_config(case_config(case), path)
  assert load_config(path) == case_config(case)
  assert not set(json.loads(path.read_text())) & set(OWN_FIELDS)


def test_the_dataset_of_cifar_is_told_by_the_number_of_classes(reread):
  assert reread("revnet-test", num_classes=100).dataset == "cifar-100"
  for unset in (10, None):
    config = reread("revnet-test", num_classes=unset)
    assert (config.dataset, config.num_classes) == ("cifar-10", 10)


def test_num_classes_null_as_before_the_original_sets_it(tmp_path):
  fields = json.loads((FOLDER / "revnet-test" / "conf.json").read_text())
  (tmp_path / "conf.json").write_text(json.dumps({**fields, "num_classes": None}))
  assert load_config(tmp_path / "conf.json").num_classes == 10


def test_a_name_is_taken_from_the_same_network_registered_here_and_kept_otherwise(reread):
  assert reread("revnet-test", name="resnet-32").name == "revnet-test"
  assert reread("revnet-test", name="mine", filters=[8, 8, 16]).name == "mine"


def test_filters_and_strides_beyond_the_last_stage_are_cut(reread):
  config = reread("revnet-test", strides=[1, 2, 2, 7], filters=[16, 16, 32, 64])
  assert (config.strides, config.filters) == ((1, 2), (16, 16, 32))
  with pytest.raises(UserError, match="strides must have one entry for each"):
    reread("revnet-test", strides=[1])


def test_boundaries_that_training_has_used_up(reread):
  """The original removes a boundary from its configuration as it passes it."""
  config = reread("revnet-test", lr_decay_steps=[], lr_list=[])
  schedule = learning_rate_schedule(config)
  assert [float(schedule(step)) for step in (0, 1, 80000)] == [pytest.approx(0.1)] * 3


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"warmup": 5}, "unknown field 'warmup'"),
    ({"momentun": 0.9}, "unknown field 'momentun'.*did you mean momentum"),
    ({"filters": None}, "missing field filters"),
    ({"manual_gradients": None}, "missing field manual_gradients"),
    ({"relu_leakiness": 0.1}, "relu_leakiness must be 0, got 0.1"),
    ({"relu_leakiness": True}, "relu_leakiness must be 0, got True"),
    ({"filter_initialization": "uniform"}, "filter_initialization must be 'normal', got 'uniform'"),
    ({"activate_before_residual": [True, True]}, "activate_before_residual must be true for the first"),
    ({"activate_before_residual": [False, False]}, "activate_before_residual must be true for the first"),
    ({"lr_scheduler_type": "exponential"}, "lr_scheduler_type must be 'fixed', got 'exponential'"),
    ({"optimizer": "sgd"}, "optimizer must be 'mom', got 'sgd'"),
  ],
)
def test_what_cannot_be_meant_here_is_an_error(reread, changes, message):
  with pytest.raises(UserError, match=message):
    reread("revnet-test", **changes)


@pytest.mark.parametrize("field", ["dataset", "preprocessor", "run_validation", "chain"])
def test_a_field_missing_from_a_configuration_of_our_own_stays_an_error(tmp_path, field):
  path = tmp_path / "conf.json"
  save_config(get_config("revnet-test"), path)
  fields = json.loads(path.read_text())
  del fields[field]
  path.write_text(json.dumps(fields))
  with pytest.raises(UserError, match=f"missing field {field}"):
    load_config(path)
