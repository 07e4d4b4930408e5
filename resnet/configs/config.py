"""One configuration: the network, how it is trained, and what values are allowed."""

import dataclasses
import itertools
import math
import reprlib
import types
import typing

from resnet.utils.errors import UserError
from resnet.utils.quantities import parse_bytes

NUM_CLASSES = {
  "cifar-10": 10,
  "cifar-100": 100,
  "fashion-mnist": 10,
  "digits": 10,
  "imagenet": 1000,
}  # of each dataset
MODEL_CLASSES = ("resnet", "revnet")
PREPROCESSORS = ("cifar", "inception", "vgg")
CHAINS = ("unrolled", "while_loop")
ACTIVATION_MEMORY = ("least", "auto", "all")  # or an amount
DTYPES = ("float32", "mixed_bfloat16", "mixed_float16", "float64")

# A bottleneck unit's 1x1, 3x3, 1x1 convolutions work at a quarter of its output width; the configured
# filters are that quarter (He et al. 2016, "Identity Mappings in Deep Residual Networks").
BOTTLENECK_FACTOR = 4

# TensorFlow computes in 32 bits.
MAX_INT = 2**31 - 1
MAX_FLOAT = (2 - 2**-23) * 2.0**127
_RANGES = {
  int: f"a whole number, at most {MAX_INT}",
  float: f"a number, at most {MAX_FLOAT:.2g}",
  bool: "true or false",
  str: "a word",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Everything that determines a training run, with the original code's field names.

  Raises:
    UserError: a field has the wrong type or an impossible value.

  Example:
    >>> config = get_config("revnet-38")
    >>> config.height, config.width, config.num_channel
    (32, 32, 3)
    >>> override_config(config, ["activation_memory=2GB"]).keep
    2000000000.0
  """

  name: str  # of the model, as in --model
  dataset: str
  # Network.
  model_class: str
  height: int  # of the input images, pixels
  width: int
  num_channel: int
  num_classes: int
  num_residual_units: tuple[int, ...]  # per stage
  filters: tuple[int, ...]  # of the stem, then per stage; both streams of a RevNet together
  strides: tuple[int, ...]  # of each stage's first unit
  use_bottleneck: bool
  init_filter: int  # stem kernel size, pixels
  init_stride: int
  init_max_pool: bool  # 3x3 max pool of stride 2 after the stem
  manual_gradients: bool  # rebuild activations in the backward pass instead of storing them
  chain: str  # form of the manual gradients, see resnet/reversible/chain.py
  activation_memory: str = "auto"  # of each device, to rebuild less: least, auto, all, or an amount such as 2GB
  grid_bits: int = 0  # 14, say, rebuilds to the last bit, see ReversibleChain; 0: no grid, as in version 0.1
  dtype: str  # Keras' dtype policy of the residual functions; streams are float32, or float64 with float64
  # Training.
  batch_size: int  # of one update, over all replicas
  num_replicas: int = 0  # devices that the batch is split over, as the last run had them; 0: not known
  num_pass: int = 1  # in which a replica takes its part of the batch, one after the other
  jit: bool = False  # compile forward and backward pass by XLA
  valid_batch_size: int  # of evaluation
  preprocessor: str
  momentum: float  # of SGD
  wd: float  # weight decay: gradient += wd * kernel
  base_learn_rate: float
  lr_decay_steps: tuple[int, ...]  # iterations at which the rates of lr_list start
  lr_list: tuple[float, ...]
  max_train_iter: int  # iterations (updates)
  disp_iter: int  # log the loss every so many iterations
  valid_iter: int  # evaluate every so many iterations
  save_iter: int  # write a checkpoint every so many iterations
  run_validation: bool  # hold out a tenth of the training images, and evaluate on it
  seed: int

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
    _check_choices(self)
    _check_numbers(self)
    _check_stages(self)
    _check_widths(self)
    _check_activation_memory(self)

  @property
  def unit_filters(self) -> tuple[int, ...]:
    """Output channels of the stem, then of each stage's units."""
    factor = BOTTLENECK_FACTOR if self.use_bottleneck else 1
    return (self.filters[0], *(factor * filters for filters in self.filters[1:]))

  @property
  def keep(self) -> str | float:
    """activation_memory as `resnet.reversible.Rebuild` takes it: "least", "auto", "all", or bytes."""
    memory = self.activation_memory
    return memory if memory in ACTIVATION_MEMORY else parse_bytes(memory)


def _checked(field: dataclasses.Field, value: object) -> object:
  """`value` as the field's declared type: lists become tuples, whole numbers become floats."""
  declared = field.type
  if isinstance(declared, types.GenericAlias):
    item_type = typing.get_args(declared)[0]
    if isinstance(value, list | tuple) and all(_is_a(item_type, item) for item in value):
      return tuple(item_type(item) for item in value)
    raise UserError(f"{field.name} must be a list, each of it {_RANGES[item_type]}, got {_shown(value)}")
  assert isinstance(declared, type)
  if not _is_a(declared, value):
    raise UserError(f"{field.name} must be {_RANGES[declared]}, got {_shown(value)}")
  return declared(value)


def _shown(value: object) -> str:
  try:
    return reprlib.repr(value)
  except ValueError:  # Python writes out no integer of more than some thousand digits.
    return "one of thousands of digits"


def _is_a(declared: type, value: object) -> bool:
  if declared is float:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_FLOAT
  if declared is int:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INT
  return isinstance(value, declared)


def _check_choices(config: Config) -> None:
  for field, allowed in (
    ("dataset", NUM_CLASSES),
    ("model_class", MODEL_CLASSES),
    ("preprocessor", PREPROCESSORS),
    ("chain", CHAINS),
    ("dtype", DTYPES),
  ):
    value = getattr(config, field)
    if value not in allowed:
      raise UserError(f"{field} must be one of {', '.join(allowed)}; got {value!r}")
  if not config.name or "/" in config.name:
    raise UserError(f"name must be a word without '/', got {config.name!r}")


def _check_numbers(config: Config) -> None:
  at_least_one = (
    "height width num_channel num_classes init_filter init_stride batch_size valid_batch_size "
    "max_train_iter disp_iter valid_iter save_iter num_pass"
  )
  for name in at_least_one.split():
    if getattr(config, name) < 1:
      raise UserError(f"{name} must be at least 1, got {getattr(config, name)}")
  for name in ("num_residual_units", "filters", "strides", "lr_decay_steps"):
    if any(item < 1 for item in getattr(config, name)):
      raise UserError(f"{name} must all be at least 1, got {list(getattr(config, name))}")
  if not 0 <= config.momentum < 1:
    raise UserError(f"momentum must be in [0, 1), got {config.momentum}")
  if not 0 <= config.seed < 2**31:
    raise UserError(f"seed must be in [0, 2**31), got {config.seed}")
  if not 0 <= config.grid_bits < 24:
    raise UserError(f"grid_bits must be in [0, 24), got {config.grid_bits}")
  for name in ("wd", "num_replicas"):
    if getattr(config, name) < 0:
      raise UserError(f"{name} must not be negative, got {getattr(config, name)}")
  for rate in (config.base_learn_rate, *config.lr_list):
    if rate < 0:
      raise UserError(f"base_learn_rate and lr_list must not be negative, got {rate}")
  if len(config.lr_list) != len(config.lr_decay_steps):
    raise UserError(
      f"lr_list must have one rate for each of lr_decay_steps, "
      f"got {len(config.lr_list)} rates for {len(config.lr_decay_steps)} steps"
    )
  if any(later <= sooner for sooner, later in itertools.pairwise(config.lr_decay_steps)):
    raise UserError(f"lr_decay_steps must increase, got {list(config.lr_decay_steps)}")


def _check_stages(config: Config) -> None:
  stages = len(config.num_residual_units)
  if stages < 1:
    raise UserError("num_residual_units must name at least one stage, got []")
  if len(config.strides) != stages:
    raise UserError(
      f"strides must have one entry for each of the {stages} stages of num_residual_units, "
      f"got {len(config.strides)}"
    )
  if len(config.filters) != stages + 1:
    raise UserError(
      f"filters must have {stages + 1} entries, for the stem and the {stages} stages of "
      f"num_residual_units, got {len(config.filters)}"
    )


def _check_widths(config: Config) -> None:
  if config.model_class == "revnet":
    for filters in config.filters:
      if filters % 2:
        raise UserError(f"filters of a RevNet must be even (two equal streams), got {filters}")
  elif config.manual_gradients:
    raise UserError("manual_gradients must be false for model_class 'resnet': it is not reversible")
  elif config.grid_bits:
    raise UserError(f"grid_bits must be 0 for model_class 'resnet': it has no streams; got {config.grid_bits}")
  if config.use_bottleneck:
    return
  # Without projections the skip path pads channels evenly and pools without a remainder.
  streams = 2 if config.model_class == "revnet" else 1
  for before, after in itertools.pairwise(filters // streams for filters in config.filters):
    if after < before or (after - before) % 2:
      raise UserError(
        f"filters without use_bottleneck must grow by a multiple of {2 * streams} from stage to stage "
        f"(the skip path pads zero channels on both sides), got {list(config.filters)}"
      )
  height, width = (stem_size(config, size) for size in (config.height, config.width))
  for stride in config.strides:
    if height % stride or width % stride:
      raise UserError(
        f"strides without use_bottleneck must divide the feature map; got {list(config.strides)} "
        f"for images of {config.height}x{config.width}"
      )
    height, width = height // stride, width // stride


def _check_activation_memory(config: Config) -> None:
  try:
    keep = config.keep
  except ValueError as error:
    raise UserError(
      f"activation_memory must be {', '.join(ACTIVATION_MEMORY)}, or an amount of memory such as 2GB; "
      f"got {config.activation_memory!r}"
    ) from error
  if config.chain == "while_loop" and keep not in ("least", "auto"):
    raise UserError(
      "activation_memory must be least or auto with chain while_loop, which keeps nothing; "
      f"got {config.activation_memory}"
    )


def stem_size(config: Config, size: int) -> int:
  """The height or width of the stem's output, for images of this height or width; pixels."""
  size = math.ceil(size / config.init_stride)
  return math.ceil(size / 2) if config.init_max_pool else size
