"""Random uses of the reversible engine, each compared with plain Keras on the same layers and weights.

    PYTHONPATH=.:tests python tests/fuzz.py --count 2000 --seed 0 --processes 2
    PYTHONPATH=.:tests python tests/fuzz.py --only 17

Each seed draws a configuration: functions, couplings, layers between units, the way back, masks, arguments of
the call, control flow around the call, the tape, how it is executed. The engine and `Plain`, which shares no
code with it, run the same program. What they give must be equal, or the engine refuses by one error of its own,
for what `refusable` lists and for nothing else. Where plain Keras cannot run the program, the seed draws anew.
"""

import argparse
import collections
import contextlib
import dataclasses
import faulthandler
import functools
import itertools
import multiprocessing
import multiprocessing.pool
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from chains import keeping
from fuzz_configs import WORDS, Config, draw, refusable
from fuzz_layers import (
  AFFINE,
  BACKWARD,
  BATCH,
  COMPUTED,
  COUPLINGS,
  INVERTIBLE,
  MAKERS,
  OUTSIDE,
  SAME_WIDTH,
  STATEFUL,
  STEPS,
  TAKING,
  USES,
  WIDTH,
  Plain,
  Stack,
  mask_of,
  names_of,
  with_mask,
)
from keras import layers

import resnet.reversible as engine

PER_PROCESS = 100  # configurations: TensorFlow's memory grows with each.
LONGEST = 180  # seconds that a configuration may take
# By dtype: of a difference's norm, relative to the norm of what is expected, and to that of all gradients, for
# those that are 0 but for rounding. A gradient that is lost or doubled differs by 1, by another dropout mask by
# about 0.5.
TOLERANCES = {"float64": (1e-9, 1e-11), "float32": (1e-3, 1e-4), "mixed_bfloat16": (0.1, 0.02)}

# What is run.


@dataclasses.dataclass
class World:
  """The layers, variables and tensors of a configuration."""

  config: Config
  functions: list[layers.Layer]  # F and G of unit 0, F of unit 1, and so on
  engine: list[layers.Layer]  # that run them without storing activations
  plain: Plain
  variables: dict[str, Any]  # of the functions, and around them
  scales: dict[bool, list[Any]]  # of trained couplings: the engine's (True), the oracle's
  tensors: dict[str, tf.Tensor]  # streams and arguments of the call
  held: dict[str, Any]  # variables in place of these
  masks: list[Any]  # of the streams
  start: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def call(self, streams, arguments) -> list:
    """The outputs, by the engine or by the oracle."""
    config, kwargs = self.config, dict(arguments)
    if not config.fits:
      kwargs["training"] = config.training
      if config.masks and config.mask_as == "argument":
        kwargs["mask"] = self.masks
      elif config.masks:
        streams = [with_mask(tf.convert_to_tensor(x), mask) for x, mask in zip(streams, self.masks)]
    if not USES.engine:
      return list(self.plain(tuple(streams), **kwargs))
    streams = list(streams)
    for k, layer in enumerate(self.engine):
      chain = config.layer == "chain"
      functions = split(self.functions, config.chains)[k] if chain else self.functions[k : k + 1]
      names = {"training", "mask"}.union(*map(names_of, functions)) & set(kwargs)
      own = {name: kwargs[name] for name in names}
      if chain:
        streams = list(layer(tuple(streams), **own))
        continue
      recompute = functools.partial(engine.recompute, functions[0], keep=config.keep)
      y = (layer if config.layer == "Recompute" else recompute)(streams[1 - k % 2], **own)
      streams[k % 2] = with_mask(tf.cast(y, tf.float32), mask_of(y)) if config.dtype == "mixed_bfloat16" else y
    return streams

  def inputs(self, tensors) -> tuple[list, dict[str, Any]]:
    """(streams, arguments of the call)."""
    tensors = {**tensors, **self.held}
    if self.config.alias:
      tensors[self.config.alias[0]] = tensors[self.config.alias[1]]
    arguments = {name: tensors[name] for name in ("time", "key", "value") if name in tensors}
    if "a" in tensors:
      arguments["extra"] = {"a": tensors["a"], "rest": [tensors["b"], tensors["c"]]}
    return [tensors["x1"], tensors["x2"]], arguments

  def all_variables(self) -> dict[str, Any]:
    return self.variables | {f"scale {k}": v for k, v in enumerate(self.scales[USES.engine])}

  def sources(self, inputs) -> dict[str, Any]:
    """What gradients are wanted for."""
    found = {f"input {k}": raw(leaf) for k, leaf in enumerate(tf.nest.flatten(inputs))}
    found |= {name: raw(v) for name, v in self.all_variables().items() if v.trainable}
    return dict(list(found.items())[:: 2 if self.config.tape == "partial" else 1])

  def assign(self, new: Callable, trained_only=False) -> None:
    for name, variable in self.all_variables().items():
      if variable.trainable or not trained_only:
        variable.assign(new(name, variable))


def raw(x):
  return x.value if isinstance(x, keras.Variable) else x


def other_value(_, variable):
  value = tf.convert_to_tensor(raw(variable))
  return value * 0.7 + 0.1 if value.dtype.is_floating else value + 1


def split(functions, chains):
  return [functions] if chains == 1 else [functions[:2], functions[2:]]


def make_function(config: Config, spec: str, width: int, in_width: int) -> layers.Layer:
  names = spec.split(" > ")
  parts = [MAKERS[name](width) for name in names]
  if names[-1] in SAME_WIDTH and (len(parts) > 1 or width != in_width):
    parts.append(layers.Dense(width))
  if spec in TAKING or (len(parts) == 1 and config.wrap != "Stack, again"):
    return parts[0]
  if config.wrap == "Sequential":
    return keras.Sequential(parts)
  if config.wrap == "Model":
    x = keras.Input([*[STEPS] * config.sequence, in_width])
    return keras.Model(x, functools.reduce(lambda y, part: part(y), parts, x))
  return Stack(parts, config.wrap)


def make_functions(config: Config, in_width: int) -> list[layers.Layer]:
  functions: list[layers.Layer] = []
  for k, coupling in enumerate(config.coupling_names):
    if (config.share == "FG" and k % 2) or (config.share == "units" and k and k % 2 == 0):
      functions.append(functions[-1 if config.share == "FG" else 0])
      continue
    spec = config.unlike if config.unlike and k == 2 * config.units - 2 else config.functions[k % 2]
    width = 2 * WIDTH if coupling in AFFINE else WIDTH
    functions.append(make_function(config, spec, width, WIDTH if k else in_width))
  for function in functions[::2] if config.freeze == "before" else ():
    function.trainable = False
  return functions


def make_engine(config: Config, functions, couplings, between, shape, in_width: int) -> list[layers.Layer]:
  """The built layers."""
  if config.layer != "chain":
    made = [engine.Recompute(function, keep=config.keep) for function in functions]
    for layer, function in zip(made, functions):
      if names_of(function):
        layer.build((*shape, WIDTH))
      else:
        layer(keras.KerasTensor((*shape, WIDTH), function.variable_dtype))
    return made
  given = {"default": None, "one": couplings[0], "pair": tuple(couplings), "list": couplings}
  kwargs = {"log_det": config.log_det, "grid_bits": config.grid_bits, "backward": BACKWARD[config.backward]}
  made, kwargs["coupling"] = [], given[config.coupling_as]
  for some, width in zip(split(functions, config.chains), [in_width, WIDTH]):
    units: list = list(zip(some[::2], some[1::2]))
    for place, (_, layer) in reversed([*enumerate(between)]):
      units[place:place] = [layer] if layer else []
    made.append(engine.ReversibleChain(units, **kwargs))
    made[-1].build([(*shape, width)] * 2)
    if config.kept:
      keeping(made[-1], *config.kept)
  return made


def freeze(config: Config, functions, made) -> None:
  for layer in {"after": functions[-2:-1], "all": made + functions}.get(config.freeze, ()):
    layer.trainable = False
  for variable in functions[0].trainable_variables[:1] if config.freeze == "variable" else ():
    variable.trainable = False


def make_world(config: Config) -> World:
  USES.engine, USES.run = True, 0
  keras.utils.set_random_seed(1)
  rng, dtype = np.random.RandomState(0), keras.config.floatx()
  make_outside = keras.Variable if "reads keras.Variable" in config.parts else tf.Variable
  OUTSIDE.variable, COMPUTED.tensor = make_outside(1.3, dtype=dtype), tf.constant(1.3, dtype)
  shape, in_width = [STEPS] * config.sequence, 3 if "shortcut" in config.couplings else WIDTH
  functions = make_functions(config, in_width)
  couplings = [COUPLINGS[name]() for name in config.couplings]
  between = [
    (name, INVERTIBLE[name](2 * (WIDTH if place else in_width)) if name else None)
    for place, name in enumerate(config.between)
  ]
  made = make_engine(config, functions, couplings, between, (None, *shape), in_width)
  freeze(config, functions, made)
  moving = [layer for _, layer in between if layer]
  shortcuts = [one.layer for one in couplings if isinstance(one, engine.Shortcut)]
  owned = {id(v): v for layer in [*functions, *shortcuts, *moving] for v in layer.variables}
  variables = {f"{v.path} {k}": v for k, v in enumerate(owned.values())}
  if config.parts & {"assigns", "outside tensor", "reads tf.Variable", "reads keras.Variable"}:
    variables["outside"] = OUTSIDE.variable
  of_engine = {id(v): v for layer in made for v in layer.variables if id(v) not in owned}
  names = config.coupling_names
  own_scales = [keras.Variable(0.9, dtype=dtype) for name in names if name == "trained"]
  unused = {"trained": iter(own_scales), "shortcut": iter(shortcuts)}
  needs = [next(unused[name]) if name in unused else None for name in names]
  scales = {True: list(of_engine.values()), False: own_scales}
  tensors = {}
  for name in config.tensor_names:
    width = in_width if name in ("x1", "x2") else WIDTH
    tensors[name] = tf.constant(rng.normal(size=[BATCH, *shape, width]), dtype)
  kind = {"tf.Variable": tf.Variable, "keras.Variable": keras.Variable}.get(config.streams)
  held = {name: kind(value) for name, value in tensors.items()} if kind else {}
  lengths = [[[4], [2], [1]], [[1], [3], [2]]]
  masks = [tf.constant(np.arange(STEPS) < lengths[which - 1]) if which else None for which in config.masks]
  plain = Plain(functions, list(zip(names, needs)), between, config.grid_bits, config.log_det)
  if config.freeze == "all":
    plain.trainable = False
  world = World(config, functions, made, plain, variables, scales, tensors, held, masks)
  for name, variable in variables.items():  # Away from where layers begin, which gives gradients that are 0.
    value = np.array(tf.convert_to_tensor(raw(variable)))
    world.start[name] = value + rng.uniform(0, 0.4, value.shape).astype(value.dtype) * (value.dtype.kind == "f")
  world.start |= {f"scale {k}": np.array(0.9 + k / 20) for k in range(len(names))}
  return world


# Programs.


class Cell(layers.Layer):
  """y2 and the next state y1, of an entry of the sequence and the state before."""

  state_size = output_size = WIDTH

  def __init__(self, run):
    super().__init__(autocast=False)
    self.run = run

  def call(self, inputs, states):
    y1, y2 = self.run([inputs, states[0]])
    return y2, [y1]


class Within(layers.Layer):
  """Gives what a function without arguments gives, in the call of a layer of some policy."""

  def __init__(self, run, policy):
    super().__init__(dtype=policy)
    self.run = run

  def call(self, _):
    return self.run()


def around(config: Config, call: Callable, streams: list) -> list:
  """`call` on the streams, in some control flow."""
  if not config.control:
    return call(streams)
  x1, x2 = map(tf.convert_to_tensor, streams)
  parallel = {"parallel_iterations": 1 if config.parts & STATEFUL else 10}
  branches = [lambda: [x1[..., :1] * tf.ones([WIDTH], x1.dtype)] * 2, lambda: call([x1, x2])]
  if config.control == "cond":
    return tf.cond(tf.reduce_sum(x1) < 1e9, branches[1], branches[0])
  if config.control == "switch":
    return tf.switch_case(tf.cast(tf.reduce_sum(x1) < 1e9, tf.int32), [*branches, branches[0]])
  if config.control == "while":
    twice = {"maximum_iterations": 2, **parallel}
    return list(tf.while_loop(lambda *_: True, lambda *pair: call(list(pair)), [x1, x2], **twice))
  if config.control == "map":
    pairs, dtypes = (tf.stack([x1, 2 * x1]), tf.stack([x2, -x2])), [x1.dtype] * 2
    return tf.map_fn(lambda pair: call(list(pair)), pairs, fn_output_signature=dtypes, **parallel)
  sequence, *state = layers.RNN(Cell(call), True, True, dtype=x1.dtype.name)(tf.stack([x1, 2 * x1], 1), x2)
  return [sequence, *state]


def losses_of(config: Config, outputs: list) -> list[tf.Tensor]:
  y1, y2, *log_det = outputs
  uses = {"both": (y1, y2), "first": (y1, y1), "second": (y2, y2), "stop": (y1, tf.stop_gradient(y2))}
  a, b = uses.get(config.uses) or (tf.reduce_sum(y1) * y2, y1)
  return [tf.reduce_sum(tf.sin(a)), tf.add_n([tf.reduce_sum(b**2), *map(tf.reduce_sum, log_det)])]


def gradients(tape, target, sources: dict[str, Any], label="", **kwargs) -> dict[str, tf.Tensor]:
  found = getattr(tape, label or "gradient")(target, list(sources.values()), **kwargs)
  shape = tf.shape(target) if label == "jacobian" else []
  zeros = [tf.zeros(tf.concat([shape, tf.shape(x)], 0), tf.as_dtype(x.dtype)) for x in sources.values()]
  return {
    f"gradient of {name}": tf.convert_to_tensor(zero if d is None else d)
    for name, zero, d in zip(sources, zeros, found)
  }


def step(world: World, tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Outputs, their masks and gradients, by name."""
  config, kind = world.config, world.config.tape
  for function in world.functions if config.within else ():  # Keras does so in the outermost layer.
    function._clear_losses()
  streams, arguments = world.inputs(tensors)
  sources = world.sources((streams, arguments))

  def run(streams):
    COMPUTED.tensor = tf.exp(tf.convert_to_tensor(raw(OUTSIDE.variable)))
    call = functools.partial(around, config, lambda streams: world.call(streams, arguments), streams)
    return Within(call, config.within)(tf.constant(0)) if config.within else call()

  if kind == "forward":
    x1 = tf.convert_to_tensor(streams[0])
    with tf.autodiff.ForwardAccumulator(x1, tf.ones_like(x1)) as accumulator:
      outputs = run([x1, streams[1]])
    return outputs_of(config, outputs) | {f"jvp {k}": accumulator.jvp(y, "zero") for k, y in enumerate(outputs)}
  with contextlib.ExitStack() as stack:
    outer = stack.enter_context(tf.GradientTape()) if kind in ("nested", "second") else None
    with tf.GradientTape(persistent=kind in ("persistent", "assigned", "jacobian")) as tape:
      for each in (tape, outer) if outer else (tape,):
        each.watch([x for x in sources.values() if not isinstance(x, tf.Variable)])
      outputs = run(streams)
      losses = losses_of(config, outputs)
      added = [tf.cast(loss, losses[0].dtype) for function in world.functions for loss in function.losses]
      loss = tf.add_n(losses + added * (not config.control))
    if kind == "assigned":
      world.assign(other_value)
    if kind == "list":
      weights = [tf.fill(tf.shape(y), tf.constant(0.3 + k, y.dtype)) for k, y in enumerate(outputs)]
      found = gradients(tape, outputs, sources, output_gradients=weights)
    elif kind == "jacobian":
      found = gradients(tape, tf.stack(losses), sources, "jacobian")
    else:
      found = gradients(tape, loss, sources)
    if kind in ("persistent", "assigned"):
      found |= {f"{name}, again": d for name, d in gradients(tape, losses[0], sources).items()}
    if kind == "second":
      loss = tf.add_n([tf.reduce_sum(d**2) for d in found.values()])
  if outer:
    found |= {f"{name}, outer": d for name, d in gradients(outer, loss, sources).items()}
  return outputs_of(config, outputs) | found


def outputs_of(config: Config, outputs: list) -> dict[str, tf.Tensor]:
  masks = {f"mask {k}": mask_of(y) for k, y in enumerate(outputs) if not config.control}
  masks = {name: tf.identity(mask) for name, mask in masks.items() if mask is not None}
  return {f"output {k}": y for k, y in enumerate(outputs)} | masks


def fit(world: World) -> dict[str, Any]:
  """How variables move in training by Keras, in a functional model with a dense layer before the streams."""
  config, x = world.config, dict(world.tensors)
  size = None if config.batch == "unknown" else BATCH
  inputs = {name: keras.Input(value.shape[1:], size, name=name) for name, value in x.items()}
  first = layers.Dense(x["x1"].shape[-1], kernel_initializer=keras.initializers.GlorotUniform(3))
  streams = {name: inputs[name] for name in ("x1", "x2")}
  for name, mask in zip(streams, world.masks):
    if mask is not None:
      x[name] *= tf.cast(mask, x[name].dtype)[..., None]
      streams[name] = layers.Masking(0.0)(streams[name])
  model = keras.Model(
    inputs, world.call(*world.inputs(inputs | {name: first(y) for name, y in streams.items()}))
  )
  model.compile(keras.optimizers.SGD(0.1), ["mse", "mse"], jit_compile=False)
  y = [tf.ones([BATCH, *x["x1"].shape[1:-1], WIDTH], x["x1"].dtype)] * 2
  variables = {"first": first.kernel, **world.all_variables()}
  before = {name: array(raw(variable)) for name, variable in variables.items()}
  if config.steps == 1:
    model.train_on_batch(x, y)
  else:
    model.fit(x, y, batch_size=BATCH, epochs=config.steps, verbose=0)
  return {f"move of {name}": array(raw(variable)) - before[name] for name, variable in variables.items()}


@functools.cache
def mirrored() -> tf.distribute.Strategy:
  """One for all configurations: TensorFlow numbers what devices exchange, anew for each strategy."""
  return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def strategy_of(config: Config) -> tf.distribute.Strategy:
  return mirrored() if "mirrored" in config.execution else tf.distribute.get_strategy()


def execute(world: World, by_engine: bool) -> dict[str, np.ndarray]:
  """What the configuration's program gives, by the engine or by the oracle."""
  USES.engine, USES.run = by_engine, 1 + by_engine
  tf.random.set_seed(1)
  world.assign(lambda name, _: world.start[name])
  config, strategy, tensors = world.config, strategy_of(world.config), world.tensors
  if config.fits:
    return {name: array(value) for name, value in fit(world).items()}
  program = one = functools.partial(step, world)
  if config.execution in ("graph", "XLA"):
    size = None if config.batch == "unknown" else BATCH
    spec = {name: tf.TensorSpec([size, *x.shape[1:]], x.dtype) for name, x in tensors.items()}
    program = tf.function(one, [spec], autograph=False, jit_compile=config.execution == "XLA")
  elif config.execution == "mirrored":
    program = tf.function(lambda tensors: strategy.run(one, (tensors,)), autograph=False)
    scatter = strategy.experimental_distribute_values_from_function
    tensors = {n: scatter(lambda c, x=x: x / (1 + c.replica_id_in_sync_group)) for n, x in tensors.items()}
  found = {}
  for number in range(config.steps):
    if number:
      world.assign(other_value, trained_only=True)
    found |= {f"{name}{', second step' * number}": value for name, value in program(tensors).items()}
  found |= {f"state {name}": raw(variable) for name, variable in world.all_variables().items()}
  return {
    f"{name}{f', replica {replica}' * bool(replica)}": array(part)
    for name, value in found.items()
    for replica, part in enumerate(strategy.experimental_local_results(value))
  }


def array(x) -> np.ndarray:
  x = tf.convert_to_tensor(x)
  return np.array(tf.cast(x, tf.float64) if x.dtype.is_floating else x)


# What is compared.


@dataclasses.dataclass(frozen=True)
class Result:
  seed: int
  outcome: str  # equal, refused, different, error
  config: Config
  details: str = ""
  redrawn: int = 0  # configurations that plain Keras could not run


class CannotRun(Exception):
  """Plain Keras cannot run a configuration."""


def differences(config: Config, actual: dict, expected: dict) -> list[str]:
  relative, of_all = TOLERANCES[config.dtype]
  groups: collections.Counter = collections.Counter()
  for name, value in expected.items():
    groups[name.split()[0]] += float(np.linalg.norm(value)) ** 2
  by = {name: "the engine" if name in actual else "plain Keras" for name in actual.keys() ^ expected.keys()}
  found = [f"{name} only by {who}" for name, who in by.items()]
  for name in sorted(actual.keys() & expected.keys()):
    a, e = actual[name], expected[name]
    if a.shape != e.shape:
      found.append(f"{name} has shape {a.shape} instead of {e.shape}")
    elif e.dtype.kind != "f":
      found += [] if np.array_equal(a, e) else [f"{name} is {a.ravel()[:12]} instead of {e.ravel()[:12]}"]
    else:
      error, norm = np.linalg.norm(a - e), np.linalg.norm(e)
      if not error <= relative * norm + of_all * groups[name.split()[0]] ** 0.5:
        found.append(f"{name} differs by {error:.2g}, norm {norm:.2g}")
  return found


def is_allowed(error: Exception, config: Config, functions: list[layers.Layer]) -> bool:
  """Whether the engine itself refuses what it may refuse, and says what and where."""
  raised_by = traceback.extract_tb(error.__traceback__)[-1].filename
  ours = any(f"resnet/{package}/" in raised_by for package in ("reversible", "recomputation"))
  where = [r"[FG] of unit \d", "ReversibleChain", "[Rr]ecompute", "loop=True", *[f.name for f in functions]]
  what = [WORDS[reason] for reason in refusable(config)]
  says = [bool(words) and bool(re.search("|".join(words), str(error))) for words in (where, what)]
  return ours and isinstance(error, ValueError | NotImplementedError) and all(says)


@contextlib.contextmanager
def settings(config: Config) -> Iterator[None]:
  """A fresh Keras, with the configuration's dtypes and strategy."""
  before = keras.config.floatx(), keras.config.dtype_policy()
  keras.backend.clear_session()
  keras.config.set_floatx("float64" if config.dtype == "float64" else "float32")
  keras.config.set_dtype_policy(config.dtype)
  try:
    with warnings.catch_warnings(), strategy_of(config).scope():
      warnings.simplefilter("ignore")
      yield
  finally:
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def compare(config: Config) -> tuple[str, str]:
  """(outcome, details) of a configuration.

  Raises:
    CannotRun: plain Keras cannot run it.
  """
  functions: list[layers.Layer] = []
  with settings(config):
    try:
      world = make_world(config)
      functions = world.functions
      try:
        expected = execute(world, by_engine=False)
      except Exception as error:
        raise CannotRun(f"{type(error).__name__}: {error}") from error
      if not all(np.all(np.isfinite(value)) for value in expected.values()):
        raise CannotRun("numbers that are not finite")
      found = differences(config, execute(world, by_engine=True), expected)
    except CannotRun:
      raise
    except Exception as error:
      allowed = is_allowed(error, config, functions)
      message = f"{type(error).__name__}: {' '.join(str(error).split())}"
      return ("refused" if allowed else "error"), "\n".join([message, *traceback.format_exception(error)])
  return ("different" if found else "equal"), "\n".join(found)


def check(seed: int) -> Result:
  """The result of a seed."""
  for attempt in itertools.count():
    config = draw(seed, attempt)
    with contextlib.suppress(CannotRun):
      outcome, details = compare(config)
      return Result(seed, outcome, config, details, attempt)
  raise AssertionError


# Processes.


def prepare() -> None:
  """Two devices; one thread for each of TensorFlow's operations."""
  cpu = tf.config.list_physical_devices("CPU")[0]
  tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.get_logger().setLevel("ERROR")


def work(seeds: list[int], connection) -> None:
  prepare()
  for seed in seeds:
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    connection.send(check(seed))
  faulthandler.cancel_dump_traceback_later()


def check_in_process(seeds: list[int], report: Callable[[Result], None]) -> None:
  """Checks seeds in a process of their own; if it ends early, those after that in another one."""
  spawn = multiprocessing.get_context("spawn")
  while seeds:
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=work, args=(seeds, sender))
    process.start()
    sender.close()
    with contextlib.suppress(EOFError):
      while seeds:
        report(receiver.recv())
        seeds = seeds[1:]
    process.join()
    if seeds:
      report(Result(seeds[0], "error", draw(seeds[0]), f"the process ended with {process.exitcode}"))
      seeds = seeds[1:]


def check_all(seeds: range, processes: int) -> list[Result]:
  results: list[Result] = []
  lock = threading.Lock()

  def report(result: Result) -> None:
    with lock:
      results.append(result)
      if result.outcome in ("different", "error"):
        lines = result.details.split("\n")[: 1 if result.outcome == "error" else 3]
        lines = [f"seed {result.seed} {result.outcome}: {result.config}", *[line[:600] for line in lines]]
        print(*lines, sep="\n    ", flush=True)
      if len(results) % 50 == 0:
        counts = collections.Counter(result.outcome for result in results)
        print(f"{len(results)} of {len(seeds)}: {dict(counts)}", flush=True)

  size = max(1, min(PER_PROCESS, -(-len(seeds) // processes)))
  shares = [list(seeds[start : start + size]) for start in range(0, len(seeds), size)]
  with multiprocessing.pool.ThreadPool(processes) as pool:
    pool.map(lambda share: check_in_process(share, report), shares, 1)
  return results


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--count", type=int, default=2000, help="of configurations")
  parser.add_argument("--seed", type=int, default=0, help="of the first configuration")
  parser.add_argument("--only", type=int, help="the one seed to run, with all details")
  parser.add_argument("--processes", type=int, default=2)
  arguments = parser.parse_args()
  if arguments.only is not None:
    prepare()
    results = [check(arguments.only)]
    print(repr(results[0].config), results[0].details, f"refusable: {refusable(results[0].config)}", sep="\n")
  else:
    results = check_all(range(arguments.seed, arguments.seed + arguments.count), arguments.processes)
  refused = [" + ".join(refusable(result.config)) for result in results if result.outcome == "refused"]
  for reasons, number in collections.Counter(refused).most_common():
    print(f"refused, {reasons}: {number}")
  counts = collections.Counter(result.outcome for result in results)
  print(
    f"{counts['equal']} equal, {counts['refused']} refused, {counts['different']} different, "
    f"{counts['error']} errors, {sum(result.redrawn for result in results)} redrawn"
  )
  return int(bool(counts["different"] + counts["error"]))


if __name__ == "__main__":
  sys.exit(main())
