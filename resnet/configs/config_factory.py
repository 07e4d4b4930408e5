"""The registry of named configurations, and their JSON form."""

import contextlib
import dataclasses
import difflib
import json
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from resnet.configs.config import Config
from resnet.utils.errors import UserError

_REGISTRY: dict[str, Config] = {}
# Fields of version 0.1, in its saved files, that had one possible value.
_FORMER_FIELDS = {"optimizer": "mom", "lr_scheduler": "fixed"}
_ORIGINAL_NAMES = {"revnet-54": "revnet-56"}  # what the original code calls otherwise


def register(config: Config) -> Config:
  """Makes `config` available by its name; returns it."""
  assert config.name not in _REGISTRY, f"two configurations are called {config.name}"
  _REGISTRY[config.name] = config
  return config


def get_config(name: str) -> Config:
  """The configuration registered as `name`, e.g. "revnet-110".

  Raises:
    UserError: no such model; lists those there are.

  Example:
    >>> get_config("revnet-110").num_residual_units
    (9, 9, 9)
  """
  if name not in _REGISTRY:
    if name in _ORIGINAL_NAMES:
      hint = f" (the original's {name} is called {_ORIGINAL_NAMES[name]})"
    else:
      hint = _did_you_mean(name, _REGISTRY)
    raise UserError(f"unknown model {name!r}{hint}; allowed are {', '.join(_REGISTRY)}")
  return _REGISTRY[name]


def config_names() -> list[str]:
  """The names of the registered configurations."""
  return list(_REGISTRY)


def get_config_from_json(path: str | os.PathLike) -> Config:
  """The configuration saved at `path` by `save_config`.

  Raises:
    UserError: no such file, not JSON, a field unknown, missing or impossible.

  Example:
    >>> save_config(get_config("revnet-38"), "conf.json")
    >>> get_config_from_json("conf.json") == get_config("revnet-38")
    True
  """
  fields = read_fields(path)
  with errors_naming(path):
    return config_from_fields(fields)


def read_fields(path: str | os.PathLike) -> dict[str, Any]:
  """The fields of a configuration's JSON file, whatever they are.

  Raises:
    UserError: no such file, or not a JSON object.
  """
  try:
    with open(path, encoding="utf-8") as file:
      fields = json.load(file)
  except OSError as error:
    raise UserError(f"cannot read config {path}: {error.strerror}") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"config {path} is not JSON: {error}") from error
  if not isinstance(fields, dict):
    raise UserError(f"config {path} must be a JSON object of fields, got a {type(fields).__name__}")
  return fields


def config_from_fields(fields: Mapping[str, Any]) -> Config:
  """The configuration of these fields, as they are in files of this version or of an earlier one.

  Raises:
    UserError: a field is unknown, missing or impossible.
  """
  for name, value in _FORMER_FIELDS.items():
    if fields.get(name, value) != value:
      raise UserError(f"{name} must be {value!r}, got {fields[name]!r}")
  fields = {name: value for name, value in fields.items() if name not in _FORMER_FIELDS}
  if fields.get("chain") == "auto":  # In version 0.1, always the unrolled one.
    fields["chain"] = "unrolled"
  _replace_kept_units(fields)
  for name in fields:
    _require_field(name)
  needed = [field.name for field in dataclasses.fields(Config) if field.default is dataclasses.MISSING]
  missing = [name for name in needed if name not in fields]
  if missing:
    raise UserError(f"missing field {', '.join(missing)}")
  return Config(**fields)


def _replace_kept_units(fields: dict[str, Any]) -> None:
  """Turns kept_units, and activation_memory as bytes, into today's activation_memory.

  Where activation_memory was not 0, it chose; otherwise kept_units did: all, auto, or a number of steps, of
  which 0 alone has a name today.
  """
  memory, kept = fields.get("activation_memory", 0), str(fields.get("kept_units", "auto"))
  if type(memory) not in (int, float):
    return
  if kept not in ("auto", "all") and not kept.isdecimal():
    raise UserError(f"kept_units must be auto, all or a number, got {kept!r}")
  fields.pop("kept_units", None)
  fields["activation_memory"] = f"{memory:.0f}B" if memory else {"0": "least", "all": "all"}.get(kept, "auto")


@contextlib.contextmanager
def errors_naming(path: str | os.PathLike) -> Iterator[None]:
  """Within it, a UserError names the configuration's file."""
  try:
    yield
  except UserError as error:
    raise UserError(f"config {path}: {error}") from error


def save_config(config: Config, path: str | os.PathLike) -> None:
  """Writes `config` as JSON, every field included; the file is whole or not there.

  Raises:
    OSError: it cannot be written.

  Example:
    >>> save_config(get_config("revnet-38"), "conf.json")
  """
  temporary = f"{os.fspath(path)}.tmp"
  with open(temporary, "w", encoding="utf-8") as file:
    json.dump(dataclasses.asdict(config), file, indent=1)
    file.write("\n")
  os.replace(temporary, path)


def override_config(config: Config, overrides: Iterable[str]) -> Config:
  """`config` with fields replaced.

  Args:
    config: the configuration to start from.
    overrides: "field=value" each, the value as in JSON; a list may be written with or without its
      brackets ("lr_list=0.01,0.001"), a string with or without its quotes.

  Raises:
    UserError: malformed, an unknown field or an impossible value.

  Example:
    >>> override_config(get_config("revnet-38"), ["wd=1e-4", "filters=16,16,32,64"]).wd
    0.0001
  """
  changes: dict[str, Any] = {}
  for override in overrides:
    name, equals, text = override.partition("=")
    if not equals:
      raise UserError(f"override must be field=value, got {override!r}")
    _require_field(name)
    current = getattr(config, name)
    changes[name] = text if isinstance(current, str) else _parse(name, text, isinstance(current, tuple))
  return dataclasses.replace(config, **changes)


def differences(before: Config, after: Config) -> list[str]:
  """The fields that differ, as "field old -> new" with values as in JSON. An unknown num_replicas does not."""
  fields = ((name, getattr(before, name), getattr(after, name)) for name in _field_names())
  return [
    f"{name} {json.dumps(old)} -> {json.dumps(new)}"
    for name, old, new in fields
    if old != new and (name, old) != ("num_replicas", 0)
  ]


def _parse(name: str, text: str, is_list: bool) -> object:
  if is_list and not text.strip().startswith("["):
    text = f"[{text}]"
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f"override of {name} is not a JSON value: {reprlib.repr(text)}") from error


def _field_names() -> list[str]:
  return [field.name for field in dataclasses.fields(Config)]


def _require_field(name: str) -> None:
  names = _field_names()
  if name not in names:
    raise UserError(f"unknown field {name!r}{_did_you_mean(name, names)}; allowed are {', '.join(names)}")


def _did_you_mean(name: str, names: Iterable[str]) -> str:
  close = difflib.get_close_matches(name, names, n=1)
  return f" (did you mean {close[0]}?)" if close else ""
