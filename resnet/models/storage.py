"""What a RevNet with manual gradients keeps for its backward pass, from nothing to everything, and its memory.

`Config.kept_units` is a dial of 3 U steps for U units: in each step one unit keeps more. A unit may keep

- "streams": x1 and x2, so that they are not rebuilt. The last convolutions of F and G do not run again.
- "outputs": those of the other convolutions, which then do not run again. Normalised values and ReLUs do.
- "everything", as ordinary backpropagation does. It does not run again.

The steps come in the order of the time that a kept byte saves: see `_worth`. Within a stage they go from the
last unit to the first, since what the last units keep is freed soonest. "all" is 3 U: nothing is computed
again. "auto" is the largest setting that needs no more than `AUTO` times the memory of 0.
"""

import dataclasses
import itertools
import math

from resnet.configs.config import BOTTLENECK_FACTOR, Config, stem_size
from resnet.utils.errors import UserError
from resnet.utils.quantities import show_bytes

KINDS = ("streams", "outputs", "everything")
# What moving a byte between memory and processor costs, in multiplications. It ranks what is kept, no more.
MULTIPLICATIONS_OF_A_BYTE = 10
# "auto" takes up to so many times the least memory: what is kept first saves the most time.
AUTO = 1.75
# F and G of a unit may be worked on at once where this adds at most so much to the peak.
OVERLAP = 1.05


@dataclasses.dataclass
class Kept:
  """How many of a stage's last units keep each kind of tensors."""

  streams: int = 0
  outputs: int = 0
  everything: int = 0


def kept_of_stages(config: Config, dial: int | None = None) -> list[Kept]:
  """What each stage keeps at a setting of the dial, by default `config.kept_units`."""
  left = dial_of(config) if dial is None else dial
  counts = [Kept() for _ in config.num_residual_units]
  for stage, kind in _order(config):
    units = min(left, config.num_residual_units[stage])
    setattr(counts[stage], kind, units)
    left -= units
  return counts


def overlapping_stages(config: Config) -> list[bool]:
  """For each stage, whether F may run again while the gradients of G are taken."""
  dial = dial_of(config)
  most = OVERLAP * activation_bytes(config, dial)
  return [together <= most for _, together in _peaks(config, dial)]


def describe(config: Config, images: int) -> str:
  """What is kept of the forward pass, and what memory that takes for so many images, in words."""
  stages, total = kept_of_stages(config), sum(config.num_residual_units)
  counts = [sum(getattr(kept, kind) for kept in stages) for kind in KINDS]
  size = show_bytes(images * activation_bytes(config, dial_of(config)))
  return (
    f"of {total} units {counts[0]} keep their streams, {counts[1]} their convolutions' outputs, {counts[2]} "
    f"everything: about {size} of activations for the {images} images that a device takes at a time (an "
    "estimate)"
  )


def dial_of(config: Config) -> int:
  """`config.kept_units` as a number."""
  if config.kept_units == "auto":
    return largest_dial(config, AUTO * activation_bytes(config, 0)) if config.chain != "while_loop" else 0
  return config.most_kept_units if config.kept_units == "all" else int(config.kept_units)


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


def largest_dial(config: Config, budget: float) -> int:
  """The largest setting of the dial whose `activation_bytes` fit `budget`; 0 if none does."""
  dials = range(1 + config.most_kept_units)
  return max((dial for dial in dials if activation_bytes(config, dial) <= budget), default=0)


def activation_bytes(config: Config, dial: int) -> int:
  """An estimate of the peak of a training step: what of it grows with the batch, in bytes for each image."""
  return max(alone for alone, _ in _peaks(config, dial))


def _peaks(config: Config, dial: int) -> list[tuple[int, int]]:
  """The peaks of the backward pass in each stage, bytes for each image: with one function of a unit, with both.

  It goes back from unit to unit. Each time there is what the units up to here keep, and what this one works on.
  """
  stages = kept_of_stages(config, dial)
  stem = stages[0].everything == config.num_residual_units[0]
  kept = _stem_bytes(config) if stem else _image_bytes(config)
  peaks = []
  for unit, of_stage, count in zip(_units(config), stages, config.num_residual_units):
    alone = together = 0
    for from_last in range(count, 0, -1):
      stores, keeps = from_last <= of_stage.everything, from_last <= of_stage.outputs
      changes = from_last == count and unit.inputs
      kept += unit.inputs if changes else unit.streams if stores or from_last <= of_stage.streams else 0
      kept += unit.outputs if stores or keeps else 0
      kept += unit.normalised if stores else 0
      # A unit that is run again makes its activations again, but those kept.
      again = 0 if stores else unit.normalised + (0 if keeps else unit.outputs)
      alone = max(alone, kept + unit.working + again // 2)
      together = max(together, kept + unit.working + again)
    peaks.append((alone, together))
  return peaks


@dataclasses.dataclass(frozen=True)
class _Unit:
  """What a unit of a stage makes, in bytes for each image, and the multiplications for it.

  Attributes:
    inputs: the streams before the stage, which are always kept, except before the first stage if its first unit
      can be undone.
    streams: those before any other unit.
    outputs: of the convolutions but the last of F and of G.
    normalised: the inputs of the convolutions.
    working: in the backward pass, the streams and their gradients, and what is on the way within F or G.
    multiplications: by the kind of what is kept, those that need not be done again.
  """

  inputs: int
  streams: int
  outputs: int
  normalised: int
  working: int
  multiplications: dict[str, int]


def _order(config: Config) -> list[tuple[int, str]]:
  """(stage, kind), the most worthwhile first."""
  units = _units(config)
  choices = itertools.product(reversed(range(len(units))), KINDS)
  return sorted(choices, key=lambda choice: _worth(units[choice[0]], choice[1]), reverse=True)


def _worth(unit: _Unit, kind: str) -> float:
  """The multiplications, or what takes as long, that a kept byte saves."""
  if kind == "everything":  # A pass over what is normalised, each byte read and written.
    return 2 * MULTIPLICATIONS_OF_A_BYTE
  if kind == "streams":  # Rebuilding reads two tensors and writes one.
    return unit.multiplications[kind] / unit.streams + 3 * MULTIPLICATIONS_OF_A_BYTE
  return unit.multiplications[kind] / unit.outputs


def _units(config: Config) -> list[_Unit]:
  """A unit of each stage."""
  number = 8 if config.dtype == "float64" else 4  # bytes, of the streams
  half = 2 if config.dtype.startswith("mixed") else number  # in F and G
  height, width = (stem_size(config, size) for size in (config.height, config.width))
  before = config.filters[0] * height * width * number
  units: list[_Unit] = []
  previous, *following = config.unit_filters
  for stride, filters in zip(config.strides, following, strict=True):
    height, width = math.ceil(height / stride), math.ceil(width / stride)
    channels, values = filters // 2, height * width
    narrow = channels // BOTTLENECK_FACTOR
    stream = channels * values * number
    if config.use_bottleneck:
      inner, inner_products, last_products = 2 * narrow, channels * narrow + 9 * narrow**2, narrow * channels
    else:
      inner, inner_products, last_products = channels, 9 * channels**2, 9 * channels**2
    units.append(
      _Unit(
        inputs=before if units or stride > 1 or filters != previous else 0,
        streams=2 * stream,
        outputs=2 * inner * values * half,
        normalised=2 * (channels + inner) * values * half,
        working=5 * stream + inner * values * half,
        multiplications={"streams": 2 * last_products * values, "outputs": 2 * inner_products * values},
      )
    )
    before, previous = 2 * stream, filters
  return units


def _image_bytes(config: Config) -> int:
  return config.num_channel * config.height * config.width * 4


def _stem_bytes(config: Config) -> int:
  size = math.ceil(config.height / config.init_stride) * math.ceil(config.width / config.init_stride)
  return _image_bytes(config) + 2 * size * config.filters[0] * 4
