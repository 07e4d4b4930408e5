"""The flags of the training scripts, and the experiment and configuration that they choose."""

import dataclasses
import datetime
import random
import sys
from typing import Any

from absl import flags

from resnet.configs import get_config, override_config
from resnet.configs.config import NUM_CLASSES, Config
from resnet.configs.config_factory import config_names
from resnet.experiments.experiment import Experiment
from resnet.original.config_file import load_config
from resnet.utils.errors import UserError

# Flags that need not be given again, since they choose the experiment or are fields of its configuration.
_SAVED = {"id", "restore", "model", "config", "dataset", "validation", "override", "max_num_steps"}
_FIELDS = ("dtype", "activation_memory", "num_pass", "jit")


def define_training_flags(dataset: str, results: str, gpus_by_default: str) -> None:
  """Defines the flags that training scripts have in common.

  Args:
    dataset: "imagenet" or "cifar-10", whose models --model may name.
    results: default of --results.
    gpus_by_default: how many GPUs are taken without --num_gpu, for its help.
  """
  models = [name for name in config_names() if get_config(name).dataset == dataset]
  flags.DEFINE_string("model", None, f"Model: {', '.join(models)}.")
  flags.DEFINE_string("config", None, "JSON file of a configuration, instead of --model.")
  flags.DEFINE_string("id", None, "Experiment ID. Default: a new one.")
  flags.DEFINE_string("results", results, "Folder of configurations and checkpoints, by experiment ID.")
  flags.DEFINE_string("logs", "./logs/public", "Folder of the training curves, by experiment ID.")
  flags.DEFINE_bool("restore", False, "Continue the experiment of --id from its newest checkpoint.")
  flags.DEFINE_integer("max_num_steps", -1, "Take at most so many steps in this run; -1: no limit.")
  flags.DEFINE_integer(
    "num_gpu", None, f"Number of GPUs of each machine; 0: the CPU. Default: {gpus_by_default}.", lower_bound=0
  )
  flags.DEFINE_integer(
    "keep_checkpoints",
    None,
    "Remove older checkpoints than the newest so many that are good; one that run_imagenet_eval.py --watch has "
    "yet to evaluate stays. Default: keep all.",
    lower_bound=1,
  )
  flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "What the residual functions compute in; streams and weights are float32. Default: the configuration's.",
  )
  flags.DEFINE_string(
    "activation_memory",
    None,
    "Of a RevNet: the memory that its activations may take to save time. least: all are rebuilt. auto: up to "
    "1.75 times the memory of least. all: all are stored. An amount such as 2GB: as many are stored as fit so "
    "much of each device. Default: the configuration's.",
  )
  flags.DEFINE_bool(
    "jit", None, "Compile forward and backward pass by XLA. Default: a new experiment does not."
  )
  flags.DEFINE_bool(
    "monitor_reconstruction", False, "Log how well a RevNet's activations are rebuilt; warn when they are not."
  )
  flags.DEFINE_multi_string(
    "override", [], "field=value: a field of the configuration to change, from this run on. Repeatable."
  )


def choose_experiment(
  values: flags.FlagValues,
  default_model: str,
  dataset: str | None = None,
  run_validation: bool | None = None,
  num_classes: int | None = None,
) -> tuple[Experiment, Config]:
  """The experiment and configuration that a run script's flags ask for.

  Args:
    values: of the flags, None for one not given. Without --id the experiment is a new one. With --restore, the
      configuration is the one of the experiment's last run, unless --config names another.
    default_model: of a new experiment.
    dataset: instead of the configuration's; sets num_classes too. None leaves it.
    run_validation: instead of the configuration's. None leaves it.
    num_classes: of the data, instead of a named model's. None leaves it.

  Raises:
    UserError: flags that contradict each other or the experiment, or an impossible configuration.
  """
  if values.restore and values.id is None:
    raise UserError("--restore needs --id, the experiment to continue")
  given = {field: values[field].value for field in _FIELDS if field in values}
  overrides = [f"{field}={_json(value)}" for field, value in given.items() if value is not None]
  overrides += values.override
  if any(change.startswith("num_replicas=") for change in overrides):
    raise UserError(
      "num_replicas is no choice: it is the number of devices that --num_gpu and the machines give"
    )
  chosen = [
    ("model", "name", values.model),
    ("dataset", "dataset", dataset),
    ("validation", "run_validation", run_validation),
    ("dtype", "dtype", values.dtype),
  ]
  if values.config is not None:
    config = load_config(values.config)
  elif values.restore:
    config = Experiment.named(values.id or "", values.results, values.logs).load_config()
    for flag, field, value in chosen:
      saved = getattr(config, field)
      if value not in (None, saved):
        raise UserError(f"--{flag} is {value}, but experiment {values.id} was started with {saved}")
  else:
    config = get_config(default_model if values.model is None else values.model)
    if num_classes is not None:
      config = dataclasses.replace(config, num_classes=num_classes)
  fields: dict[str, Any] = {field: value for _, field, value in chosen[1:] if value is not None}
  if dataset is not None:
    fields["num_classes"] = NUM_CLASSES[dataset]
  config = override_config(dataclasses.replace(config, **fields), overrides)
  if values.activation_memory not in (None, "auto") and not config.manual_gradients:
    raise UserError(f"--activation_memory needs a RevNet with manual_gradients, which {config.name} is not")
  if values.monitor_reconstruction and config.model_class != "revnet":
    raise UserError(f"--monitor_reconstruction needs a RevNet; {config.name} rebuilds nothing")
  name = values.id if values.id is not None else new_id(config.dataset, config.name)
  experiment = Experiment.named(name, values.results, values.logs)
  if not values.restore:
    experiment.require_new()
  # Python's own arguments begin with the interpreter and end with the script's.
  program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
  return dataclasses.replace(experiment, program=tuple(program), flags=given_again(values)), config


def given_again(values: flags.FlagValues) -> tuple[str, ...]:
  """The flags of the command line that the next command needs, too, since no configuration has them."""
  names = [name for name in values if values[name].present and name not in {*_SAVED, *_FIELDS}]
  return tuple(values[name].serialize() for name in sorted(names))


def _json(value: object) -> object:
  return str(value).lower() if isinstance(value, bool) else value


def new_id(dataset: str, model: str) -> str:
  """A fresh id, e.g. exp_cifar-100_revnet-110_2017-05-19-12-30-00-123456-042."""
  now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S-%f")
  return f"exp_{dataset}_{model}_{now}-{random.SystemRandom().randrange(1000):03d}"
