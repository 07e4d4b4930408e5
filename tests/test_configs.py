"""Configurations: the original's numbers, and one clear error for each kind of mistake."""

import dataclasses
import json

import pytest

from resnet.configs import get_config, get_config_from_json, override_config, save_config

# name: (units per stage, filters, bottleneck)
CIFAR = {
  "resnet-32": ((5, 5, 5), (16, 16, 32, 64), False),
  "resnet-110": ((18, 18, 18), (16, 16, 32, 64), False),
  "resnet-164": ((18, 18, 18), (16, 16, 32, 64), True),
  "revnet-38": ((3, 3, 3), (32, 32, 64, 112), False),
  "revnet-110": ((9, 9, 9), (32, 32, 64, 128), False),
  "revnet-164": ((9, 9, 9), (32, 32, 64, 128), True),
}
IMAGENET = {
  "resnet-50": ((3, 4, 6, 3), (64, 64, 128, 256, 512), True),
  "resnet-101": ((3, 4, 23, 3), (64, 64, 128, 256, 512), True),
  "resnet-152": ((3, 8, 36, 3), (64, 64, 128, 256, 512), True),
  "revnet-56": ((2, 2, 3, 2), (128, 128, 256, 512, 832), True),
  "revnet-104": ((2, 2, 11, 2), (128, 128, 256, 512, 832), True),
}


@pytest.mark.parametrize("name", [*CIFAR, *IMAGENET])
def test_architectures_are_the_original_ones(name):
  config = get_config(name)
  expected = {**CIFAR, **IMAGENET}[name]
  assert (config.num_residual_units, config.filters, config.use_bottleneck) == expected
  assert config.name == name
  assert config.model_class == name.split("-")[0]
  assert config.manual_gradients == name.startswith("revnet")


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_training_is_the_original_one(name):
  config = get_config(name)
  assert (config.height, config.width, config.num_channel, config.batch_size) == (32, 32, 3, 100)
  assert (config.init_filter, config.init_stride, config.init_max_pool) == (3, 1, False)
  assert (config.strides, config.wd, config.momentum, config.seed) == ((1, 2, 2), 2e-4, 0.9, 0)
  assert (config.base_learn_rate, config.lr_decay_steps, config.lr_list) == (0.1, (40000, 60000), (0.01, 0.001))
  assert (config.max_train_iter, config.disp_iter, config.valid_iter, config.save_iter) == (
    80000,
    100,
    1000,
    10000,
  )


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_training_is_the_original_one(name):
  config = get_config(name)
  assert (config.height, config.width, config.num_classes) == (224, 224, 1000)
  assert (config.batch_size, config.valid_batch_size, config.preprocessor) == (256, 50, "inception")
  assert (config.init_filter, config.init_stride, config.init_max_pool) == (7, 2, True)
  assert (config.strides, config.wd, config.momentum, config.seed) == ((1, 2, 2, 2), 1e-4, 0.9, 1234)
  assert config.base_learn_rate == 0.1
  assert config.lr_decay_steps == (160000, 320000, 480000)
  assert config.lr_list == (0.01, 0.001, 0.0001)
  assert (config.max_train_iter, config.disp_iter, config.save_iter) == (600000, 10, 5000)


def test_an_unknown_model_is_refused_with_the_list_of_models():
  with pytest.raises(ValueError, match=r"'revnet-111'.*resnet-32.*revnet-110.*revnet-104"):
    get_config("revnet-111")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"filters": (33, 32, 64, 112)}, "filters .* even .* 33"),
    ({"filters": (32, 32, 64)}, "filters must have 4 entries"),
    ({"strides": (1, 2)}, "strides must have one entry for each of the 3 stages"),
    ({"lr_list": (0.1,)}, "lr_list must have one rate for each"),
    ({"lr_decay_steps": (60, 40)}, "lr_decay_steps must increase"),
    ({"base_learn_rate": -0.1}, "base_learn_rate and lr_list must not be negative, got -0.1"),
    ({"lr_list": (0.1, -0.2)}, "got -0.2"),
    ({"wd": -1.0}, "wd must not be negative"),
    *(
      (
        {"activation_memory": amount},
        f"activation_memory must be least, auto, all, or an amount of memory such as 2GB; got '{amount}'",
      )
      for amount in ("most", "", "2", "0GB", "0.4B", "-1GB", "nanGB", "9" * 400 + "GB")
    ),
    ({"activation_memory": 2e9}, "activation_memory must be a word, got 2000000000.0"),
    *(
      (
        {"activation_memory": memory, "chain": "while_loop"},
        f"activation_memory must be least or auto with chain while_loop, which keeps nothing; got {memory}",
      )
      for memory in ("all", "2GB")
    ),
    ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"batch_size": 1.5}, "batch_size must be a whole number, at most 2147483647, got 1.5"),
    ({"batch_size": True}, "batch_size must be a whole number, at most 2147483647, got True"),
    ({"wd": float("nan")}, "wd must be a number, at most 3.4e.38, got nan"),
    ({"use_bottleneck": 1}, "use_bottleneck must be true or false, got 1"),
    ({"filters": 32}, "filters must be a list, each of it a whole number, at most 2147483647, got 32"),
    ({"height": 10**30}, "height must be a whole number, at most 2147483647, got 1000"),
    ({"filters": (10**10,)}, "filters must be a list, each of it a whole number"),
    ({"momentum": 10**400}, "momentum must be a number, at most 3.4e.38, got 1000"),
    ({"momentum": 10**5000}, "momentum must be a number, at most 3.4e.38, got one of thousands of digits"),
    (
      {"filters": (10**5000,)},
      "filters must be a list, each of it a whole number, at most 2147483647, got one",
    ),
    ({"base_learn_rate": 1e39}, "base_learn_rate must be a number, at most 3.4e.38, got 1e.39"),
    ({"model_class": "densenet"}, "model_class must be one of resnet, revnet; got 'densenet'"),
    ({"dataset": "mnist"}, "dataset must be one of cifar-10, cifar-100, fashion-mnist, digits, imagenet"),
    ({"chain": "auto"}, "chain must be one of unrolled, while_loop; got 'auto'"),
    ({"model_class": "resnet"}, "manual_gradients must be false"),
    ({"filters": (32, 32, 64, 48)}, "filters without use_bottleneck must grow"),
    ({"strides": (1, 3, 2)}, "strides without use_bottleneck must divide the feature map"),
    ({"num_residual_units": (), "strides": (), "filters": (32,)}, "at least one stage"),
    ({"num_residual_units": (3, 0, 3)}, "num_residual_units must all be at least 1"),
    ({"seed": -1}, "seed must be in"),
    ({"grid_bits": 24}, r"grid_bits must be in \[0, 24\), got 24"),
    (
      {"model_class": "resnet", "manual_gradients": False, "grid_bits": 14},
      "grid_bits must be 0",
    ),
  ],
)
def test_impossible_values_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(get_config("revnet-38"), **fields)


@pytest.mark.parametrize(
  ("memory", "keep"),
  [
    ("least", "least"),
    ("auto", "auto"),
    ("all", "all"),
    ("2GB", 2e9),
    ("1.5 KiB", 1536),
    ("1.1gb", 1_100_000_000),
    ("1.6B", 2),
  ],
)
def test_activation_memory_is_a_word_or_bytes(memory, keep):
  assert override_config(get_config("revnet-38"), [f"activation_memory={memory}"]).keep == keep


def test_configs_survive_json(tmp_path):
  for name in [*CIFAR, *IMAGENET, "resnet-test", "revnet-test", "revnet-btl-test"]:
    save_config(get_config(name), tmp_path / "conf.json")
    assert get_config_from_json(tmp_path / "conf.json") == get_config(name)


NEW = ("grid_bits", "activation_memory", "num_replicas", "num_pass", "jit")  # since version 0.1


@pytest.mark.parametrize(
  "name", [field.name for field in dataclasses.fields(get_config("revnet-38")) if field.name not in NEW]
)
def test_a_json_config_must_have_every_field(tmp_path, name):
  fields = dataclasses.asdict(get_config("revnet-38"))
  del fields[name]
  (tmp_path / "conf.json").write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=f"missing field {name}$"):
    get_config_from_json(tmp_path / "conf.json")


def test_a_json_config_of_version_0_1_loads(tmp_path):
  fields = dataclasses.asdict(get_config("revnet-38"))
  for name in NEW:
    del fields[name]
  fields |= {"chain": "auto", "optimizer": "mom", "lr_scheduler": "fixed"}
  (tmp_path / "conf.json").write_text(json.dumps(fields))
  assert get_config_from_json(tmp_path / "conf.json") == get_config("revnet-38")
  assert get_config("revnet-38").chain == "unrolled"


@pytest.mark.parametrize(
  ("fields", "keep"),
  [
    ({"kept_units": "0"}, "least"),
    ({"kept_units": 0}, "least"),
    ({"kept_units": "0", "chain": "while_loop"}, "least"),
    ({"kept_units": "all"}, "all"),
    ({"kept_units": "auto"}, "auto"),
    ({"kept_units": "38"}, "auto"),
    ({"kept_units": 3}, "auto"),
    ({"kept_units": "0", "activation_memory": 0.0}, "least"),
    ({"kept_units": "auto", "activation_memory": 2e9}, 2e9),
    ({"kept_units": "all", "activation_memory": 1536}, 1536),
    ({"activation_memory": 0}, "auto"),
    ({"activation_memory": "least"}, "least"),
  ],
)
def test_what_an_earlier_config_keeps(tmp_path, fields, keep):
  saved = {**dataclasses.asdict(get_config("revnet-38")), **fields}
  if "activation_memory" not in fields:
    del saved["activation_memory"]
  (tmp_path / "conf.json").write_text(json.dumps(saved))
  assert get_config_from_json(tmp_path / "conf.json").keep == keep


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"kept_units": "all"}, "unknown field 'kept_units'"),  # Beside today's activation_memory.
    ({"kept_units": "many", "activation_memory": 0.0}, "kept_units must be auto, all or a number, got 'many'"),
    ({"activation_memory": -1.0}, "activation_memory must be least, auto, all, or .* got '-1B'"),
    ({"activation_memory": True}, "activation_memory must be a word, got True"),
    ({"optimizer": "adam"}, "optimizer must be 'mom', got 'adam'"),
    ({"lr_scheduler": None}, "lr_scheduler must be 'fixed', got None"),
  ],
)
def test_a_choice_that_was_never_there_is_not_dropped_silently(tmp_path, fields, message):
  (tmp_path / "conf.json").write_text(json.dumps(dataclasses.asdict(get_config("revnet-38")) | fields))
  with pytest.raises(ValueError, match=f"conf.json: {message}"):
    get_config_from_json(tmp_path / "conf.json")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "is not JSON"),
    ("[1]", "must be a JSON object"),
    ('{"batchsize": 3}', "unknown field 'batchsize' .did you mean batch_size.*; allowed are name, dataset"),
  ],
)
def test_bad_json_is_refused(tmp_path, text, message):
  (tmp_path / "conf.json").write_text(text)
  with pytest.raises(ValueError, match=message):
    get_config_from_json(tmp_path / "conf.json")


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"cannot read config .*nowhere.json: No such file"):
    get_config_from_json(tmp_path / "nowhere.json")


def test_overrides_replace_fields():
  config = override_config(
    get_config("revnet-38"),
    ["batch_size=50", "lr_list=0.5,0.25", "lr_decay_steps=[10, 20]", "manual_gradients=false", "name=mine"],
  )
  assert (config.batch_size, config.lr_list, config.lr_decay_steps) == (50, (0.5, 0.25), (10, 20))
  assert (config.manual_gradients, config.name) == (False, "mine")


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("batch_size", "override must be field=value, got 'batch_size'"),
    ("batchsize=3", "unknown field 'batchsize' .did you mean batch_size"),
    ("kept_units=0", "unknown field 'kept_units'.*; allowed are name, dataset, .*activation_memory"),
    ("batch_size=many", "override of batch_size is not a JSON value: 'many'"),
    ("batch_size=" + "9" * 5000, "override of batch_size is not a JSON value: '999"),
    ("height=" + "[" * 10**5, "override of height is not a JSON value"),
    ("wd=NaN", "wd must be a number, at most 3.4e.38, got nan"),
    ("lr_list=Infinity", "lr_list must be a list, each of it a number, at most 3.4e.38, got .inf."),
    ("batch_size=-3", "batch_size must be at least 1, got -3"),
  ],
)
def test_bad_overrides_are_refused(override, message):
  with pytest.raises(ValueError, match=message):
    override_config(get_config("revnet-38"), [override])
