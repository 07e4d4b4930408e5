"""The flags of the training scripts, and the experiment and configuration that they choose."""

import dataclasses
import datetime
import random
from typing import Any, Protocol

from absl import flags

from resnet.configs import get_config, override_config
from resnet.configs.config import NUM_CLASSES, Config
from resnet.configs.config_factory import config_names
from resnet.experiments.experiment import Experiment
from resnet.original.config_file import load_config
from resnet.utils.errors import UserError
from resnet.utils.quantities import define_bytes


def define_training_flags(dataset: str, results: str, num_gpu: int | None) -> None:
  """Defines the flags that training scripts have in common.

  Args:
    dataset: "imagenet" or "cifar-10", whose models --model may name.
    results: default of --results.
    num_gpu: default of --num_gpu; None for all.
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
    "num_gpu", num_gpu, "Number of GPUs of each machine; all if not given; 0: the CPU.", lower_bound=0
  )
  flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "What the residual functions compute in; streams and weights are float32. Default: the configuration's.",
  )
  flags.DEFINE_string(
    "kept_units",
    None,
    "Of a RevNet: how much of its forward pass it keeps for its backward pass, to save time. N: so "
    "many steps, from 0 to three for each unit, in each of which a unit keeps its streams, its convolutions' "
    "outputs, or everything. all: all of them. auto: as many as need no more than 1.75 times the memory of 0. "
    "Default: the configuration's.",
  )
  define_bytes(
    "activation_memory",
    "Instead of --kept_units: as many as fit when the activations take this memory of each device, e.g. 2GB.",
  )
  flags.DEFINE_bool("jit", False, "Compile forward and backward pass by XLA.")
  flags.DEFINE_bool(
    "monitor_reconstruction", False, "Log how well a RevNet's activations are rebuilt; warn when they are not."
  )
  flags.DEFINE_multi_string(
    "override", [], "field=value: a field of the configuration to change, in this run. Repeatable."
  )


class TrainingFlags(Protocol):
  """The flags of a run script that choose experiment and configuration; None is a flag not given."""

  id: str | None
  results: str
  logs: str
  restore: bool
  model: str | None
  config: str | None
  dtype: str | None
  kept_units: str | None
  activation_memory: float | None
  override: list[str]


def choose_experiment(
  values: TrainingFlags,
  default_model: str,
  dataset: str | None = None,
  run_validation: bool | None = None,
  num_classes: int | None = None,
) -> tuple[Experiment, Config]:
  """The experiment and configuration that a run script's flags ask for.

  Args:
    values: the values of the flags. Without --id the experiment is a new one. With --restore, the configuration
      is the one that the experiment was started with, unless --config names another.
    default_model: of a new experiment.
    dataset: instead of the configuration's; sets num_classes too. None leaves it.
    run_validation: instead of the configuration's. None leaves it.
    num_classes: of the data, instead of a named model's. None leaves it.

  Raises:
    UserError: flags that contradict each other or the experiment, or an impossible configuration.
  """
  if values.restore and values.id is None:
    raise UserError("--restore needs --id, the experiment to continue")
  kept_units = [] if values.kept_units is None else [f"kept_units={values.kept_units}"]
  overrides = [*kept_units, *values.override]
  if values.activation_memory is not None and any(change.startswith("kept_units=") for change in overrides):
    raise UserError("--activation_memory chooses the kept units; give it or --kept_units, not both")
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
    for flag, field, given in chosen:
      saved = getattr(config, field)
      if given not in (None, saved):
        raise UserError(f"--{flag} is {given}, but experiment {values.id} was started with {saved}")
  else:
    config = get_config(default_model if values.model is None else values.model)
    if num_classes is not None:
      config = dataclasses.replace(config, num_classes=num_classes)
  fields: dict[str, Any] = {field: given for _, field, given in chosen[1:] if given is not None}
  if dataset is not None:
    fields["num_classes"] = NUM_CLASSES[dataset]
  config = override_config(dataclasses.replace(config, **fields), overrides)
  if values.kept_units is not None and not config.manual_gradients:
    raise UserError(f"--kept_units needs a RevNet with manual_gradients, which {config.name} is not")
  name = values.id if values.id is not None else new_id(config.dataset, config.name)
  experiment = Experiment.named(name, values.results, values.logs)
  if not values.restore:
    experiment.require_new()
  return experiment, config


def new_id(dataset: str, model: str) -> str:
  """A fresh id, e.g. exp_cifar-100_revnet-110_2017-05-19-12-30-00-123456-042."""
  now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S-%f")
  return f"exp_{dataset}_{model}_{now}-{random.SystemRandom().randrange(1000):03d}"
