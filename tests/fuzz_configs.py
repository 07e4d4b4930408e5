"""The random configurations of fuzz.py: what one is, how it is drawn, and what the engine may refuse of it."""

import dataclasses
import random
from typing import Any

from fuzz_layers import (
  AFFINE,
  ANY_SHAPE,
  BACKWARD,
  EXACT,
  INVERTIBLE,
  KEEP_MASKS,
  RECURRENT,
  REFUSED,
  SAME_WIDTH,
  SEQUENCE,
  STATEFUL,
  TAKING,
  TENSORS,
)


@dataclasses.dataclass(frozen=True)
class Config:
  """One random use. What is as here is not printed."""

  functions: tuple[str, str] = ("dense", "dense")  # F and G: names of MAKERS, joined by " > "
  unlike: str = ""  # F of the last unit, if it is another
  wrap: str = "Sequential"  # what holds functions of several parts
  share: str = ""  # FG: one layer is F and G of a unit; units: one F
  freeze: str = ""  # before or after the chain is made the Fs, one variable, all
  units: int = 2
  chains: int = 1  # among which the units are divided
  layer: str = "chain"  # or Recompute, recompute of each function
  keep: tuple[str, ...] = ("statistics",)  # of Recompute
  couplings: tuple[str, ...] = ("additive",)
  coupling_as: str = "default"  # one, pair, list
  log_det: bool = False
  between: tuple[str, ...] = ()  # names of INVERTIBLE, before the first unit and after each; "" is none
  backward: str = "least"
  kept: tuple[int, ...] = ()  # instead: how many units keep streams, outputs, everything
  grid_bits: int | None = None
  training: bool = True
  sequence: bool = False  # streams [N, T, C]
  dtype: str = "float64"
  masks: tuple[int, ...] = ()  # of the streams: 0 none, else which
  mask_as: str = "carried"
  streams: str = "tensors"  # or variables; arguments of the call, too
  alias: tuple[str, ...] = ()  # two inputs that are one tensor
  uses: str = "both"  # of the outputs
  control: str = ""  # control flow around the call
  within: str = ""  # the policy of a layer around that
  tape: str = "one"
  execution: str = "eager"
  batch: str = "known"
  steps: int = 1  # Weights change in between.

  def __str__(self):
    shown = [f for f in dataclasses.fields(self) if f.name == "functions" or getattr(self, f.name) != f.default]
    return ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in shown)

  @property
  def parts(self) -> set[str]:
    return set(" > ".join([*self.functions, self.unlike or self.functions[0]]).split(" > "))

  @property
  def fits(self) -> bool:
    return "fit" in self.execution

  @property
  def tensor_names(self) -> list[str]:
    takes = [name for part in sorted(self.parts & set(TAKING)) for name in part.split(", ")]
    return ["x1", "x2", *[tensor for name in takes for tensor in TENSORS[name]]]

  @property
  def coupling_names(self) -> list[str]:
    return [self.couplings[k % len(self.couplings)] for k in range(2 * self.units)]


# What the engine may refuse, by its documentation, and what the error then says.
WORDS = {
  "tf.random": "random",
  "assigns": "variable",
  "reads tf.Variable": "variable",
  "reads keras.Variable": "variable",
  "outside tensor": "outside",
  "tf.recompute_grad": "recompute_grad",
  "keras.remat": "keras.remat",
  "tf.custom_gradient": "custom_gradient",
  "add_loss": "loss",
  "activity": "loss",
  "loop: shared state": "loop=True",
  "loop: masks that change": "loop=True",
  "loop: synchronised": "loop=True",
  "second order": "gradients of gradients",
  "forward mode": "forward",
}


def refusable(config: Config) -> list[str]:
  """For which of these a configuration may be refused."""
  loop, parts = config.backward == "loop", config.parts
  masks = bool(config.masks) or "makes mask" in parts
  again = config.wrap == "Stack, again"  # Each part is in a Recompute of its own.
  rebuilds = config.backward != "Store" or "chain" in parts or again
  holds = {
    "loop: shared state": loop and config.share and parts & STATEFUL,
    "loop: masks that change": loop and masks and (config.masks != (1, 1) or not parts <= KEEP_MASKS),
    "loop: synchronised": loop and "synchronized" in parts,
    "second order": config.tape == "second" and rebuilds,
    "forward mode": config.tape == "forward" and rebuilds,
  }
  return [reason for reason in WORDS if reason in parts or holds.get(reason)]


def draw_couplings(rng: random.Random, units: int, alike: bool) -> tuple[tuple[str, ...], str]:
  """(couplings, how they are given). `alike`: the outputs of all functions have one width."""
  sums = ["additive", "additive", "minus", "scaled", "trained", "trained"]
  names = sums if alike else [*sums, *AFFINE]
  kind = rng.choices(["default", "one", "pair", "list", "shortcut"], [35, 30, 12, 12, 11])[0]
  if kind == "one":
    return (rng.choice([*sums, *AFFINE]),), kind
  if kind == "shortcut" and not alike:
    return ("shortcut", "shortcut", *rng.choices(sums, k=2) * (units - 1)), "list"
  if kind in ("pair", "list"):
    return tuple(rng.choices(names, k=2 if kind == "pair" else 2 * units)), kind
  return ("additive",), "default"


def draw_function(rng: random.Random, special: float, sequence: bool) -> str:
  if rng.random() < special:
    taking = [name for name in TAKING if sequence or name != "key, value"]
    return rng.choice(rng.choice([taking, list(REFUSED)]))
  kinds = [SAME_WIDTH, ANY_SHAPE, *[SEQUENCE, SEQUENCE, RECURRENT] * sequence]
  weights = [6, 6, *[3, 3, 1] * sequence]
  drawn = rng.choices(kinds, weights, k=rng.choice([1, 1, 1, 2, 2, 3]))
  return " > ".join(rng.choice(list(some)) for some in drawn)


def draw(seed: int, attempt: int = 0) -> Config:
  """The configuration of a seed."""
  rng = random.Random(f"{seed} {attempt}")

  def maybe(probability, *values, default: Any = ""):
    return rng.choice(values) if rng.random() < probability else default

  sequence = rng.random() < 0.4
  kinds = ["eager", "graph", "XLA", "fit", "mirrored", "mirrored fit"]
  execution = rng.choices(kinds, [57, 24, 4, 5, 8, 2])[0]
  fits = "fit" in execution
  chain = rng.random() < 0.8
  units = rng.choice([1, 1, 2, 2, 3, 4] if execution == "eager" else [1, 1, 2, 3])
  share = maybe(0.15, "FG", "units")
  couplings, coupling_as = draw_couplings(rng, units, bool(share)) if chain else (("replace",), "default")
  shortcut = "shortcut" in couplings
  chains = maybe(0.1, 2, default=1) if chain and units > 1 and coupling_as != "list" else 1
  loop = chain and chains == 1 and rng.random() < 0.25
  moves = chain and chains == 1 and rng.random() < 0.25
  between = tuple(maybe(0.5, *INVERTIBLE) for _ in range(units + 1)) if moves else ()
  around = ["cond", "switch", "map", *["while"] * (not shortcut), *["RNN"] * (not shortcut and not sequence)]
  control = maybe(0.25, *around) if not fits else ""
  # Affine(bound) computes s in F's precision, `Plain` in the stream's.
  low = "float32" if fits or "bounded" in couplings else "mixed_bfloat16"
  exact = chain and set(couplings) <= {"additive", "minus"} and chains == 1
  can_mask = sequence and control != "map"
  masks = maybe(0.5 * can_mask, (1, 1), (1, 1), (1, 2), (1, 0), (0, 1), default=())
  tapes = ["persistent", "assigned", "jacobian", "partial", "nested", "second", "forward", "list"]
  config = Config(
    functions=(draw_function(rng, 0.35, sequence), draw_function(rng, 0.1, sequence)),
    unlike=draw_function(rng, 0.1, sequence) if units > 1 and rng.random() < 0.08 else "",
    wrap=rng.choice(["Sequential", "Sequential", "Model", "Stack", "Stack, masking", "Stack, again"]),
    share=share,
    freeze=maybe(0.15, "before", "after", "variable", "all"),
    units=units,
    chains=chains,
    layer="chain" if chain else "Recompute" if fits else rng.choice(["Recompute", "recompute"]),
    keep=("statistics",) if chain else rng.choice([("statistics",), (), ("statistics", "activations")]),
    couplings=couplings,
    coupling_as=coupling_as,
    log_det=chain and chains == 1 and not (shortcut or fits or control) and rng.random() < 0.15,
    between=between,
    backward="loop" if loop else maybe(0.4, *BACKWARD, default="least") if chain else "least",
    kept=maybe(
      0.3 * (chain and chains == 1 and not loop), tuple(rng.choices(range(units + 1), k=3)), default=()
    ),
    grid_bits=maybe(0.12, 14, 20, default=None) if exact and set(between) <= {"", *EXACT} else None,
    training=rng.random() < 0.85,
    sequence=sequence,
    dtype=maybe(0.25, "float32", low, default="float64"),
    masks=masks,
    mask_as=rng.choice(["carried", "argument"]) if masks and chain and chains == 1 and not fits else "carried",
    streams="tensors" if fits else maybe(0.15, "tf.Variable", "keras.Variable", default="tensors"),
    uses=maybe(0.4, "first", "second", "stop", "product", default="both"),
    control=control,
    tape="one" if fits else maybe(0.4, *tapes, default="one"),
    execution="graph" if execution == "eager" and control not in ("", "RNN") else execution,
    batch=maybe(0.15, "unknown", default="known") if execution in ("graph", "fit", "mirrored fit") else "known",
    steps=maybe(0.25, 2, default=1),
  )
  inputs = config.tensor_names
  if rng.random() < (0.15 if len(inputs) == 2 else 0.4) and not (shortcut and len(inputs) > 2):
    config = dataclasses.replace(config, alias=tuple(rng.sample(inputs, 2)))
  if "outside tensor" in config.parts and rng.random() < 0.3:  # Rare otherwise.
    config = dataclasses.replace(config, execution="mirrored")
  if rng.random() < 0.15 and not fits:
    config = dataclasses.replace(config, within=rng.choice(["mixed_bfloat16", "float64"]))
  if config.tape == "assigned" and config.parts & {"tf.recompute_grad", "tf.custom_gradient", "keras.remat"}:
    config = dataclasses.replace(config, tape="persistent")  # Plain Keras reads weights as they are then.
  return dataclasses.replace(config, steps=2) if "tf.function" in config.parts else config
