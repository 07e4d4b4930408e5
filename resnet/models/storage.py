"""What a RevNet with manual gradients keeps for its backward pass, from nothing to everything, and its memory.

`Config.kept_units` is a dial of two rounds. Each goes from the last unit of the network to the first:

- N, from 0 to the number U of units: the last N units keep their streams and the outputs of their convolutions.
  They compute normalised values and ReLUs again, but no convolution, except the projection in the first
  bottleneck of a stage. The units before them are rebuilt, and the stem is recomputed.
- U + N: all units keep these, and the last N of them store everything, as ordinary backpropagation does.
- "all": 2 U. Nothing is computed again.
- "auto": the largest N, up to U, that needs no more memory than 0 does.

This is the order of the time that a kept byte saves. Convolutions take about as long in each stage, but the
maps of a stage are half as large as those of the stage before. Normalising and ReLU take one pass over a map.
And what the last units keep is freed before the backward pass comes to the large maps, where memory peaks.
"""

import dataclasses
import math

from resnet.configs.config import BOTTLENECK_FACTOR, Config, stem_size
from resnet.utils.errors import UserError
from resnet.utils.quantities import show_bytes


def kept_and_stored(config: Config) -> list[tuple[int, int]]:
  """For each stage how many of its last units keep convolutions' outputs, and how many store everything."""
  total = sum(config.num_residual_units)
  dial = dial_of(config)
  kept, stored = min(dial, total), max(dial - total, 0)
  counts = []
  for units in reversed(config.num_residual_units):
    counts.append((min(kept, units), min(stored, units)))
    kept, stored = kept - counts[-1][0], stored - counts[-1][1]
  return counts[::-1]


def describe(config: Config, images: int) -> str:
  """What is kept of the forward pass, and what memory that takes for so many images, in words."""
  dial, total = dial_of(config), sum(config.num_residual_units)
  what = f"{min(dial, total)} of {total} units keep their convolutions' outputs"
  if dial > total:
    what += f", {dial - total} of them everything"
  size = show_bytes(images * activation_bytes(config, dial))
  return (
    f"{what}: about {size} of activations for the {images} images that a device takes at a time (an estimate)"
  )


def dial_of(config: Config) -> int:
  """`config.kept_units` as a number."""
  total = sum(config.num_residual_units)
  if config.kept_units == "auto":
    return largest_dial(config, activation_bytes(config, 0), total) if config.chain != "while_loop" else 0
  return 2 * total if config.kept_units == "all" else int(config.kept_units)


def fit_memory(config: Config, budget: float, images: int) -> Config:
  """`config`, keeping as much as fits the memory.

  Args:
    config: any.
    budget: bytes, for the activations of a training step on one device.
    images: that go through the network at a time there.

  Raises:
    UserError: the network is none that rebuilds activations by the unrolled chain, or even this needs more.
  """
  if not config.manual_gradients or config.chain == "while_loop":
    kind = (
      "chain while_loop keeps nothing" if config.manual_gradients else "without manual_gradients all is stored"
    )
    raise UserError(f"--activation_memory needs a RevNet that can choose what it keeps; {config.name}: {kind}")
  least = images * activation_bytes(config, 0)
  if least > budget:
    raise UserError(
      f"--activation_memory must be at least {math.ceil(least / 1e6)} MB, which {images} images of "
      f"{config.name} need if nothing is kept; got {show_bytes(budget)}. Lower batch_size, or use more GPUs"
    )
  return dataclasses.replace(config, kept_units=str(largest_dial(config, budget / images)))


def largest_dial(config: Config, budget: float, limit: int | None = None) -> int:
  """The largest setting of the dial, up to `limit`, whose `activation_bytes` fit `budget`; 0 if none does."""
  settings = range(1 + (2 * sum(config.num_residual_units) if limit is None else limit))
  return max((dial for dial in settings if activation_bytes(config, dial) <= budget), default=0)


def activation_bytes(config: Config, dial: int) -> int:
  """An estimate of the memory of a training step that grows with the batch: the peak, in bytes for each image.

  It goes back from unit to unit. Each time there is what the units up to here keep, and what this one works on.
  """
  units = _units(config)
  total = len(units)
  peak = kept = _stem_bytes(config) if dial == 2 * total else _image_bytes(config)
  for position, unit in enumerate(units):
    stores, keeps = total - position <= dial - total, total - position <= dial
    kept += unit.inputs
    # A unit that is run again makes all of its activations; those kept are already there.
    kept += unit.kept + unit.normalised if stores else unit.kept if keeps else 0
    working = unit.working + (0 if stores else unit.normalised if keeps else unit.kept + unit.normalised)
    peak = max(peak, kept + working)
  return peak


@dataclasses.dataclass(frozen=True)
class _Unit:
  """What a unit makes, in bytes for each image."""

  inputs: int  # the streams before it, which the first unit of a stage keeps
  kept: int  # its streams, and the outputs of its convolutions but the last of F and of G
  normalised: int  # the inputs of its convolutions
  working: int  # in the backward pass: its outputs, their gradients, and gradients within F or G


def _units(config: Config) -> list[_Unit]:
  number = 8 if config.dtype == "float64" else 4  # bytes, of the streams
  half = 2 if config.dtype.startswith("mixed") else number  # in F and G
  height, width = (stem_size(config, size) for size in (config.height, config.width))
  before = config.filters[0] * height * width * number
  units = []
  for count, stride, filters in zip(config.num_residual_units, config.strides, config.unit_filters[1:]):
    height, width = math.ceil(height / stride), math.ceil(width / stride)
    channels = filters // 2
    narrow = channels // BOTTLENECK_FACTOR
    inner = 2 * narrow if config.use_bottleneck else channels
    values = height * width
    stream = channels * values * number
    unit = _Unit(
      inputs=before,
      kept=2 * (stream + inner * values * half),
      normalised=2 * (channels + inner) * values * half,
      working=6 * stream,
    )
    units += [unit, *[dataclasses.replace(unit, inputs=0)] * (count - 1)]
    before = 2 * stream
  return units


def _image_bytes(config: Config) -> int:
  return config.num_channel * config.height * config.width * 4


def _stem_bytes(config: Config) -> int:
  size = math.ceil(config.height / config.init_stride) * math.ceil(config.width / config.init_stride)
  return _image_bytes(config) + 2 * size * config.filters[0] * 4
